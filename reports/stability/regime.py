"""Which regime of stability a run is in, from its stability ratios and losses.

The ratio is curvature over the optimizer's threshold. Full-batch training sharpens until the ratio is 1 and then
hovers there, a little above, because the step oscillates along the sharpest directions and that holds curvature down
(arXiv 2103.00065, 2209.15594); mini-batch training does the same with batch sharpness (arXiv 2412.20553). A ratio well
above 1 that lasts means growth; one that jumps and falls again, with a spike in the loss, is a catapult (arXiv
2003.02218): survived when the loss then comes back to where it was, a blow-up when it does not. One that goes on
jumping and falling swings. Where the ratio has come back and the loss has hardly fallen, the run has stalled. A regime
is claimed only as far as the errors carry it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy

from probes.run.reader import Series

Regime = Literal[
    "diverged", "blown up", "stalled", "swinging", "beyond", "unresolved", "catapult", "edge", "sharpening", "stable"
]

EDGE_BAND = (0.9, 1.15)
FAR_BEYOND = 1.3
NEAR = 0.25
RISE = 1.2
STILL = 1.05
SPIKE = 1.5
LOST = 3.0
HARDLY = 0.75
"""A loss that ends above this share of the first has hardly fallen."""
UNMOVED = 0.9
PLATEAU = 0.6
"""One that ends above this share of the first, and above UNMOVED of what it was at the last overlong step of a first
half, is stuck too: the frequencies of its tokens alone bring a language model that far."""
RECENT = 5
LATE = 2
"""Checks after which a loss that is high has not come back."""
CALM = 0.5
"""A ratio below this, between others far beyond the edge, is what a throw left behind and no state of rest."""
MOST_MARGIN = 0.15
"""An error wider than this makes no edge out of a ratio that is below it."""


@dataclass(frozen=True)
class Verdict:
    """A regime and what it was judged on.

    Attributes:
        regime: the name.
        first: the first finite ratio of the run.
        last: the last.
        peak: the highest; where long steps are the verdict, of those that count for it.
        peak_step: where it was.
        edge: what a lost run is held against: 1, or the lowest edge.
        reached: the first step at which the ratio came near the edge; None if it never did.
        level: the ratio of late, the median of a few checks.
        margin: how far the truth may be from it.
        checks: how many finite ratios there are.
        beyond: how many of them were clearly far above 1.
        lost: whether the loss is far above its lowest.
    """

    regime: Regime
    first: float
    last: float
    peak: float
    peak_step: int
    edge: float
    reached: int | None
    level: float
    margin: float
    checks: int
    beyond: int
    lost: bool


def judge(
    ratio: Series, loss: Series, reach: float = 1.0, lowest: float = 1.0, since: int | None = 0
) -> Verdict | None:
    """The regime of a run; None without a single finite ratio.

    Args:
        ratio: over steps, with errors.
        loss: over steps, on fixed data.
        reach: how many errors the truth may be away: 1.96 for standard errors.
        lowest: the lowest ratio that can be an edge. With momentum it is below 1, and a run whose loss was lost may
            have been thrown off from there.
        since: from which step on a high ratio is a long step; None where the ratio has no edge.
    """
    measured = numpy.isfinite(ratio.values)
    values, steps = ratio.values[measured], ratio.steps[measured]
    if not len(values):
        return None
    errors = reach * numpy.where(numpy.isnan(ratio.errors), 0.0, ratio.errors)[measured]
    near = numpy.flatnonzero(values >= EDGE_BAND[0])
    # Late in the run one odd check must not decide; early there is nothing else.
    level, margin = float(numpy.median(values[-RECENT:])), float(numpy.median(errors[-RECENT:]))
    regime = _regime(values, errors, level, margin, loss.values, lowest)
    overlong = _overlong(values - errors, steps, since)
    settled = regime in ("catapult", "sharpening", "stable") and level < EDGE_BAND[0]
    if settled and overlong.any() and _hardly_fallen(loss, int(steps[overlong][-1])):
        regime = "stalled"
    elif regime in ("catapult", "edge", "sharpening", "stable") and _swinging(values, overlong):
        regime = "swinging"
    decisive = regime in ("stalled", "swinging", "beyond") and overlong.any()
    peak = int(numpy.argmax(numpy.where(overlong, values, -numpy.inf) if decisive else values))
    return Verdict(
        regime=regime,
        first=float(values[0]),
        last=float(values[-1]),
        peak=float(values[peak]),
        peak_step=int(steps[peak]),
        edge=lowest if regime in ("diverged", "blown up") else 1.0,
        reached=int(steps[near[0]]) if len(near) else None,
        level=level,
        margin=margin,
        checks=len(values),
        beyond=int((values - errors > FAR_BEYOND).sum()),
        lost=_risen_far(loss.values),
    )


def _regime(
    values: numpy.ndarray, errors: numpy.ndarray, level: float, margin: float, losses: numpy.ndarray, lowest: float
) -> Regime:
    if len(losses) and (not numpy.isfinite(losses[-1]) or losses[-1] > 10 * abs(losses[0])):
        return "diverged"
    highest = (values - errors).max()
    thrown = (spiked(losses) and highest > FAR_BEYOND) or (_above_its_start(losses) and highest > EDGE_BAND[1])
    if _lost(losses) and (thrown or (spiked(losses) and highest > FAR_BEYOND * lowest)):
        return "blown up"
    if thrown and level <= EDGE_BAND[1]:
        return "catapult"
    if level > FAR_BEYOND:
        return "beyond" if level - margin > EDGE_BAND[1] else "unresolved"
    if level + min(margin, MOST_MARGIN) >= EDGE_BAND[0]:
        return "edge"
    return "sharpening" if _still_rising(values, errors) else "stable"


def _still_rising(values: numpy.ndarray, errors: numpy.ndarray) -> bool:
    """Sharpening is a rise that is still going on, not one that has been and gone, and more than the errors."""
    if len(values) <= 2:
        return False
    first, middle, last = values[0], values[len(values) // 2], values[-1]
    risen = last > max(NEAR, RISE * first) and last - first > numpy.hypot(errors[0], errors[-1])
    rising = last > STILL * middle and last + errors[-1] >= 0.9 * values.max()
    return bool(risen and rising)


def _overlong(least: numpy.ndarray, steps: numpy.ndarray, since: int | None) -> numpy.ndarray:
    """Checks after the first at which the step was clearly too long."""
    if since is None:
        return numpy.zeros(len(least), dtype=bool)
    overlong: numpy.ndarray = (least > FAR_BEYOND) & (steps >= since) & (numpy.arange(len(least)) > 0)
    return overlong


def _swinging(values: numpy.ndarray, overlong: numpy.ndarray) -> bool:
    """Whether of late the ratio was far beyond the edge more than once, and far below it as well."""
    return bool(overlong[-RECENT:].sum() > 1 and values[-RECENT:].min() < CALM)


def _hardly_fallen(loss: Series, since: int) -> bool:
    """Whether the loss ends not far below its first value, or where it was when the steps were last too long."""
    if len(loss) < 2 or not loss.values[0] > 0:
        return False
    left = loss.values[-1] / loss.values[0]
    before = loss.values[loss.steps <= since]
    early = len(before) > 0 and 2 * since <= loss.steps[-1]
    return bool(left > HARDLY or (left > PLATEAU and early and loss.values[-1] > UNMOVED * before[-1]))


def _lost(losses: numpy.ndarray) -> bool:
    """Whether what had been learnt is gone: back at the first loss, or far above the lowest."""
    return bool(len(losses) and (_of_late(losses) >= 0.9 * losses[0] or _risen_far(losses)))


def _risen_far(losses: numpy.ndarray) -> bool:
    """Whether the loss is far above its lowest, and no small part of the first."""
    if not len(losses):
        return False
    now = _of_late(losses)
    return bool(now > LOST * numpy.nanmin(losses) and now > 0.1 * losses[0])


def _of_late(losses: numpy.ndarray) -> float:
    """The lowest loss of late: one check alone may have met a spike."""
    return float(numpy.fmin.reduce(losses[-min(LATE, max(1, len(losses) // 2)) :]))


def _above_its_start(losses: numpy.ndarray) -> bool:
    """Whether the loss ever stood well above that of the first state: oscillation at the edge does not do that."""
    return bool(len(losses) > 1 and numpy.nanmax(losses) > SPIKE * losses[0] > 0)


def spiked(losses: numpy.ndarray) -> bool:
    """Whether the loss ever stood well above what it had been: without that a high ratio was only an overshoot."""
    best = numpy.fmin.accumulate(losses)
    return bool(len(losses) > 1 and (losses[1:] > SPIKE * best[:-1]).any())
