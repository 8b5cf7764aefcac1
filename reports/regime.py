"""Which regime of stability a run is in, from its stability ratios and losses.

The ratio is curvature over the optimizer's threshold. Full-batch training sharpens until the ratio is 1 and then
hovers there, a little above, because the step oscillates along the sharpest directions and that holds curvature down
(arXiv 2103.00065, 2209.15594). A ratio well above 1 that lasts means growth; one that jumps and falls again, with a
spike in the loss, is a catapult (arXiv 2003.02218): survived when the loss then goes below where it was, a blow-up
when it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy

from probes.run.reader import Series

Regime = Literal["diverged", "blown up", "beyond", "catapult", "edge", "sharpening", "stable"]

EDGE_BAND = (0.9, 1.15)
FAR_BEYOND = 1.3
NEAR = 0.25
RISE = 1.2
SPIKE = 1.5
RECENT = 5


@dataclass(frozen=True)
class Verdict:
    """A regime and what it was judged on.

    Attributes:
        regime: the name.
        first: the first finite ratio of the run.
        last: the last.
        peak: the highest.
        peak_step: where it was.
        reached: the first step at which the ratio came near the edge; None if it never did.
    """

    regime: Regime
    first: float
    last: float
    peak: float
    peak_step: int
    reached: int | None


def judge(ratio: Series, loss: Series) -> Verdict | None:
    """The regime of a run; None without a single finite ratio."""
    measured = numpy.isfinite(ratio.values)
    values, steps = ratio.values[measured], ratio.steps[measured]
    if not len(values):
        return None
    peak = int(numpy.argmax(values))
    near = numpy.flatnonzero(values >= EDGE_BAND[0])
    return Verdict(
        regime=_regime(values, loss.values),
        first=float(values[0]),
        last=float(values[-1]),
        peak=float(values[peak]),
        peak_step=int(steps[peak]),
        reached=int(steps[near[0]]) if len(near) else None,
    )


def _regime(values: numpy.ndarray, losses: numpy.ndarray) -> Regime:
    # Late in the run one odd check must not decide; early there is nothing else.
    level = float(numpy.median(values[-RECENT:]))
    if len(losses) and (not numpy.isfinite(losses[-1]) or losses[-1] > 10 * abs(losses[0])):
        return "diverged"
    if values.max() > FAR_BEYOND and _spiked(losses):
        if losses[-1] >= 0.9 * losses[0]:
            return "blown up"
        if level <= EDGE_BAND[1]:
            return "catapult"
    if level > FAR_BEYOND:
        return "beyond"
    if level >= EDGE_BAND[0]:
        return "edge"
    # Sharpening is a rise that is still going on, not one that has been and gone.
    if len(values) > 2 and values[-1] > max(NEAR, RISE * values[0]) and values[-1] >= 0.9 * values.max():
        return "sharpening"
    return "stable"


def _spiked(losses: numpy.ndarray) -> bool:
    """Whether the loss ever stood well above what it had been: without that a high ratio was only an overshoot."""
    best = numpy.fmin.accumulate(losses)
    return bool(len(losses) > 1 and (losses[1:] > SPIKE * best[:-1]).any())
