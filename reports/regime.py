"""Which regime of stability a run is in, from its stability ratios and losses.

The ratio is curvature over the optimizer's threshold. Full-batch training sharpens until the ratio is 1 and then
hovers there, a little above, because the step oscillates along the sharpest directions and that holds curvature down
(arXiv 2103.00065, 2209.15594). A ratio well above 1 that lasts means growth; one that jumps and falls again is a
catapult (arXiv 2003.02218).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy

from probes.run.reader import Series

Regime = Literal["diverged", "beyond", "catapult", "edge", "sharpening", "stable"]

EDGE_BAND = (0.9, 1.15)
FAR_BEYOND = 1.3
RISE = 1.2
SPIKE = 1.5
RECENT = 5


@dataclass(frozen=True)
class Verdict:
    """A regime and what it was judged on.

    Attributes:
        regime: the name.
        ratio: median ratio of the recent checks.
        checks: how many those are.
        first: the first ratio of the run.
        reached: the first step at which the ratio came within the band of the edge; None if it never did.
    """

    regime: Regime
    ratio: float
    checks: int
    first: float
    reached: int | None


def judge(ratio: Series, loss: Series) -> Verdict | None:
    """The regime of a run; None without a single finite ratio."""
    measured = numpy.isfinite(ratio.values)
    values, steps = ratio.values[measured], ratio.steps[measured]
    if not len(values):
        return None
    recent = values[-RECENT:]
    # Late in the run one odd check must not decide; early there is nothing else.
    level = float(numpy.median(recent))
    crossed = numpy.flatnonzero(values >= EDGE_BAND[0])
    reached = int(steps[crossed[0]]) if len(crossed) else None
    return Verdict(_regime(values, level, loss), level, len(recent), float(values[0]), reached)


def _regime(values: numpy.ndarray, level: float, loss: Series) -> Regime:
    losses = loss.values
    if len(losses) and (not numpy.isfinite(losses[-1]) or losses[-1] > 10 * abs(losses[0])):
        return "diverged"
    if level > FAR_BEYOND:
        return "beyond"
    if values.max() > FAR_BEYOND and level <= EDGE_BAND[1] and _spiked(losses):
        return "catapult"
    if level >= EDGE_BAND[0]:
        return "edge"
    # Sharpening is a rise that is still going on, not one that has been and gone.
    if len(values) > 2 and values[-1] > RISE * values[0] and values[-1] >= 0.9 * values.max():
        return "sharpening"
    return "stable"


def _spiked(losses: numpy.ndarray) -> bool:
    """Whether the loss ever stood well above what it had already been: without that, a high ratio was only an
    overshoot.
    """
    best = numpy.minimum.accumulate(losses)
    return bool(len(losses) > 1 and (losses[1:] > SPIKE * best[:-1]).any())
