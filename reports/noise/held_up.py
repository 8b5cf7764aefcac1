"""Whether noise holds the loss up: batches far below the noise scale, and a loss that is high and has stopped falling.

At a constant rate the loss of SGD settles where what a step gains is what its noise takes back, at a height in
proportion to η/B (arXiv 1907.04164). A small batch alone is no fault: until then it costs steps and no examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy

from probes.run.reader import Series

APART = 10.0
"""A batch this many times smaller or larger than the noise scale is far from it, errors allowed for."""

HIGH = 0.1
"""A loss below this share of the first has been learnt, whatever it does then."""

LOST = 1.5
"""Times the lowest loss of the first half: noise then takes more than steps gain."""

LATE, EARLY = 3, 2
"""Checks of the loss that either half of a run has to have."""

CERTAIN = 2
"""Checks of the noise scale in the second half."""


@dataclass(frozen=True)
class HeldUp:
    """What the loss was, and has been since.

    Attributes:
        lowest: the lowest loss of the first half.
        at: its step.
        since: the step from which on the second half counts.
        level: the median loss since.
    """

    lowest: float
    at: int
    since: int
    level: float

    @property
    def lost(self) -> bool:
        """Whether what had been learnt is being lost."""
        return self.level > LOST * self.lowest

    def __str__(self) -> str:
        return f"{self.level:.3g} in the median since step {self.since}, after {self.lowest:.3g} at step {self.at}"


def held_up(scale: Series, batch: float | None, loss: Series) -> HeldUp | None:
    """Where the loss stopped falling with batches far below the noise scale; None where either is not so."""
    if batch is None or not batch > 0 or not len(loss) or not numpy.isfinite(loss.values).all():
        return None
    late = loss.steps >= (loss.steps[0] + loss.steps[-1]) / 2
    if late.sum() < LATE or (~late).sum() < EARLY:
        return None
    since = int(loss.steps[late][0])
    errors = numpy.where(numpy.isfinite(scale.errors), scale.errors, 0.0)
    least = (scale.values - 1.96 * errors)[(scale.steps >= since) & numpy.isfinite(scale.values)]
    if len(least) < CERTAIN or not numpy.median(least) > APART * batch:
        return None
    level, best = float(numpy.median(loss.values[late])), int(numpy.argmin(loss.values[~late]))
    lowest = float(loss.values[best])
    if level < lowest or level < HIGH * loss.values[0]:
        return None
    return HeldUp(lowest, int(loss.steps[best]), since, level)
