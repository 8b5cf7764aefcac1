"""The micro-batches of one optimizer step, and whether their gradients add up to the one that was accumulated.

Hooks see only parts: the gradient of one micro-batch for one parameter, and what ``.grad`` holds with it. The loop may
set ``.grad`` to zero without a step, as it does where AMP skips one, or clip it between two micro-batches. So each
arrival is noted together with what was there before it, and a step counts only where everything fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy

from diagnostics.averages import Draws

Before = Literal["nothing", "ours", "unknown"]
"""In ``.grad`` before a gradient arrives: nothing, exactly what we saw last, or something else, such as zeros."""

EQUAL = 1e-6
"""Relative difference of squared norms of the same gradient at two addresses, where sums may take another order."""

MOST = 1024
"""Micro-batches that are kept: a loop that never calls ``step`` must not fill the memory."""

NONE = "no micro-batch was seen before it (gradients inside a closure are not followed)"
SINGLE = "one micro-batch, where noise needs two"
LEFT_OVER = "gradients were left over from before its first micro-batch"
CHANGED = "gradients were changed between its micro-batches"
FEWER = "fewer micro-batches than in the steps before"
KEPT = "a backward pass with retain_graph or create_graph: others of its micro-batch may follow"
APART = "backward passes that share no parameter: parts of one micro-batch?"


@dataclass(frozen=True)
class Arrival:
    """A gradient of one parameter: the places of its squared norm, and of that of ``.grad`` where it was taken."""

    own: slice
    held: slice | None
    before: Before
    shared: bool


@dataclass(frozen=True)
class Microbatch:
    """One backward pass: its number of examples, whether it kept its graph, and its gradients by parameter."""

    size: int
    kept: bool
    arrivals: dict[int, Arrival] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """Squared norms of each micro-batch's gradient (n,), of their sum, and the sizes (n,)."""

    parts: Draws
    whole: float
    sizes: Draws


def step_of(microbatches: list[Microbatch], numbers: Sequence[float]) -> Step | str:
    """What the tracker needs, or why there is none.

    Args:
        microbatches: since the last step, in order.
        numbers: squared norms, which the arrivals point to.
    """

    def value(at: slice) -> float:
        return sum(numbers[at])

    def equal(arrival: Arrival) -> bool:
        """Whether ``.grad`` holds this gradient and no other."""
        assert arrival.held is not None
        return abs(value(arrival.held) - value(arrival.own)) <= EQUAL * value(arrival.own)

    used = microbatches[_start(microbatches, value, equal) :]
    if len(used) < 2:
        return SINGLE if used else NONE
    if any(one.kept for one in used):
        return KEPT
    parts = numpy.array([sum(value(arrival.own) for arrival in one.arrivals.values()) for one in used])
    sizes = numpy.array([float(one.size) for one in used])
    if not numpy.isfinite(parts).all():
        return Step(parts, float("nan"), sizes)
    last: dict[int, Arrival] = {}
    for microbatch in used:
        if last and not last.keys() & microbatch.arrivals.keys():
            return APART
        for place, arrival in microbatch.arrivals.items():
            first = place not in last
            if first and not (arrival.before == "nothing" or (arrival.before == "unknown" and equal(arrival))):
                return LEFT_OVER
            if not first and arrival.before != "ours" and not (arrival.shared or value(arrival.own) == 0.0):
                return CHANGED
            last[place] = arrival
    if any(arrival.held is None for arrival in last.values()):
        return FEWER
    return Step(parts, sum(value(arrival.held) for arrival in last.values() if arrival.held is not None), sizes)


def _start(microbatches: list[Microbatch], value: Callable[[slice], float], equal: Callable[[Arrival], bool]) -> int:
    """The last micro-batch after which gradients held no other: they had been set to zero before it."""
    start, seen = 0, set[int]()
    for index, microbatch in enumerate(microbatches):
        again = [
            arrival
            for place, arrival in microbatch.arrivals.items()
            if place in seen and arrival.before != "ours" and value(arrival.own) > 0.0
        ]
        if again and all(map(equal, again)):
            start = index
        seen |= microbatch.arrivals.keys()
    return start
