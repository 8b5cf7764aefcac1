"""When to measure: a schedule is a function of the step, and knows how to say what it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from diagnostics import DiagnosticsError


@dataclass(frozen=True)
class Schedule:
    """``schedule(step) -> bool``, with words for the run's header.

    Any callable from step to bool serves as a schedule too; this class gives it a name.
    """

    text: str
    due: Callable[[int], bool]

    def __call__(self, step: int) -> bool:
        """Whether to measure after this many optimizer steps."""
        return bool(self.due(step))


def every(steps: int) -> Schedule:
    """Steps 0, n, 2n, ...

    Example:
        >>> [step for step in range(7) if every(3)(step)]
        [0, 3, 6]
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise DiagnosticsError("every takes a number of steps", given=repr(steps), expected="an int of at least 1")
    return Schedule(f"every {steps} steps", lambda step: step % steps == 0)


def at(*steps: int) -> Schedule:
    """These steps and no others.

    Example:
        >>> [step for step in range(9) if at(1, 8)(step)]
        [1, 8]
    """
    if not steps or not all(isinstance(step, int) and step >= 0 for step in steps):
        raise DiagnosticsError(
            "at takes steps", given=repr(steps), expected="integers, at least one", attempt="at(1, 10, 100)"
        )
    chosen = frozenset(steps)
    return Schedule("at steps " + ", ".join(map(str, sorted(chosen))), lambda step: step in chosen)


FIRST_AND_LAST = Schedule("the first state and the last", lambda step: step == 0)
"""For what costs as much as training: a Monitor measures the last state whatever the schedule."""


def log_spaced(per_decade: int = 8) -> Schedule:
    """Step 0, then evenly on a log axis: dense where training changes fast, sparse where it does not.

    Example:
        >>> [step for step in range(101) if log_spaced(2)(step)]
        [0, 1, 3, 10, 31, 100]
    """
    if per_decade < 1:
        raise DiagnosticsError("per_decade is too small", given=str(per_decade), expected="at least 1")

    def due(step: int) -> bool:
        if step < 1:
            return step == 0
        # The last grid point that rounds down to at most this step must not be below it.
        index = math.floor(per_decade * math.log10(step + 1) - 1e-9)
        return math.floor(10 ** (index / per_decade) + 1e-9) == step

    return Schedule(f"{per_decade} times per decade of steps", due)


def as_schedule(when: int | Callable[[int], bool]) -> Schedule:
    """A Schedule from what users pass: a number of steps, a Schedule, or any function of the step."""
    if isinstance(when, Schedule):
        return when
    if callable(when):
        return Schedule(getattr(when, "__name__", type(when).__name__), when)
    return every(when)
