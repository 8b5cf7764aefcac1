"""Runs where their losses are equal, not only where their steps are.

One optimizer is ahead of another at every step, so at equal steps everything that moves with the loss differs too.
What the optimizer itself makes different is seen where the losses are the same (arXiv 2507.12224). The loss is
smoothed by a median over five checks, the level is a little above the lowest that both reach, and the step is the one
at which each first falls to it, interpolated between checks along an exponential.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from diagnostics.estimate import Estimate
from probes.run.reader import Series
from reports.comparison.contender import Contender
from reports.comparison.differences import Difference, judged, reference_of
from reports.comparison.estimating import ENOUGH, finite, nearest, on_line
from reports.comparison.quantities import Compared

REACH = 2
"""Checks on either side that a smoothed loss is the median of."""

MARGIN = 0.05
"""Part of the way from the lowest common loss back to the start: at the lowest itself, only noise says when."""

HARDLY = 0.02
"""A loss that has fallen by less than this part has hardly fallen."""

SOONER = "steps to that loss"
SOONER_WHY = "the same loss sooner; a step of one optimizer may cost more than one of another"


@dataclass(frozen=True)
class Level:
    """A loss that both runs fall to.

    Attributes:
        loss: the level.
        steps: at which each first falls to it.
        apart: half the distance between the two checks that it lies between, in each.
    """

    loss: float
    steps: tuple[float, float]
    apart: tuple[float, float]


@dataclass(frozen=True)
class Matched:
    """A run against the reference at the same loss; without a level, ``reason`` says why there is none."""

    reference: Contender
    run: Contender
    level: Level | None
    differences: tuple[Difference, ...]
    reason: str = ""


def matched(runs: Sequence[Contender], quantities: Sequence[Compared]) -> tuple[Matched, ...]:
    """Each run against the reference where their losses are equal; nothing without a loss in common."""
    loss = next((one for one in quantities if one.quantity.theme == "Loss"), None)
    if loss is None:
        return ()
    against = reference_of(runs, quantities)
    others = [place for place in range(len(runs)) if place != against]
    return tuple(_pair(runs, quantities, loss, against, place) for place in others)


def _pair(
    runs: Sequence[Contender], quantities: Sequence[Compared], loss: Compared, against: int, place: int
) -> Matched:
    pair = (runs[against], runs[place])
    if loss.quantity.better is None:
        return Matched(*pair, None, (), "their losses are of other examples or in another mode")
    level = common_level(loss.series[against], loss.series[place])
    if isinstance(level, str):
        return Matched(*pair, None, (), level)
    steps = (
        Estimate(step, apart, "bound", "between two checks")
        for step, apart in zip(level.steps, level.apart, strict=True)
    )
    before, value = steps
    found = [Difference(SOONER, *pair, before, value, judged(before, value, "lower"), f"loss {level.loss:.4g}")]
    for one in quantities:
        if one is not loss:
            found += _there(one, pair, (one.series[against], one.series[place]), level)
    return Matched(*pair, level, tuple(found))


def _there(
    one: Compared, pair: tuple[Contender, Contender], series: tuple[Series, Series], level: Level
) -> list[Difference]:
    """The quantity at the step where each run has the common loss; nothing where one run lacks it."""
    known = [finite(part) for part in series]
    if not all(map(len, known)):
        return []
    name = one.quantity.name
    if any(len(part) < ENOUGH for part in known):
        return [Difference(name, *pair, None, None, "unclear", f"too few checks ({min(map(len, known))})")]
    outside = any(not part.steps[0] <= step <= part.steps[-1] for part, step in zip(known, level.steps, strict=True))
    if outside:
        return [Difference(name, *pair, None, None, "unclear", "not measured around that loss")]
    log = one.quantity.log
    before, value = (on_line(nearest(part, step), step, log=log) for part, step in zip(known, level.steps, strict=True))
    where = f"step {level.steps[0]:.0f} and step {level.steps[1]:.0f}"
    return [Difference(name, *pair, before, value, judged(before, value, one.quantity.better, log=log), where)]


def common_level(one: Series, other: Series) -> Level | str:
    """The loss that both fall to and where they do; or why there is none.

    Example:
        >>> steps, none = numpy.arange(0, 1000, 10), numpy.full(100, numpy.nan)
        >>> slow, fast = (Series(steps, numpy.exp(-steps / scale), none) for scale in (400.0, 100.0))
        >>> level = common_level(slow, fast)
        >>> round(level.steps[0] / level.steps[1], 6)
        4.0
    """
    pair = (smoothed(one), smoothed(other))
    if any(len(part) < ENOUGH for part in pair):
        return f"too few checks of the loss ({min(map(len, pair))})"
    start, lowest = min(float(part.values[0]) for part in pair), max(float(part.values.min()) for part in pair)
    if not lowest < start:
        return f"the losses have no level in common: one begins at {start:.4g}, the other falls to {lowest:.4g}"
    if start - lowest < HARDLY * abs(start):
        return f"the losses have hardly fallen in common, from {start:.4g} to {lowest:.4g}"
    loss = lowest ** (1 - MARGIN) * start**MARGIN if lowest > 0 else lowest + MARGIN * (start - lowest)
    first, second = (first_below(part, loss) for part in pair)
    return Level(loss, (first[0], second[0]), (first[1], second[1]))


def smoothed(series: Series) -> Series:
    """The running median of the finite values, over as many on one side as on the other."""
    known = finite(series)
    values = known.values.copy()
    for place in range(len(values)):
        reach = min(REACH, place, len(values) - 1 - place)
        values[place] = numpy.median(known.values[place - reach : place + reach + 1])
    return Series(known.steps, values, numpy.full(len(values), numpy.nan))


def first_below(series: Series, level: float) -> tuple[float, float]:
    """The step at which a loss first falls to a level that it falls to, and half the distance between its checks."""
    place = int(numpy.argmax(series.values <= level))
    if place == 0:
        return float(series.steps[0]), 0.0
    (left, right), (high, low) = series.steps[place - 1 : place + 1], series.values[place - 1 : place + 1]
    part = math.log(high / level) / math.log(high / low) if low > 0 else (high - level) / (high - low)
    return float(left + part * (right - left)), float(right - left) / 2
