"""Whether the learning rate rose faster than the early curvature could fall.

A fresh network is often sharper than the edge allows. A warm-up lets it move to flatter places while steps are still
short; without one, or with one that is too short, the first steps overshoot and the loss rises (arXiv 2110.04369).
"""

from __future__ import annotations

import numpy

from diagnostics.estimate import Estimate
from probes.run import Run
from probes.run.reader import Series
from reports.chapter import method_of
from reports.finding import Finding
from reports.stability.deciding import EARLY, Deciding, deciding
from reports.stability.regime import EDGE_BAND, FAR_BEYOND
from reports.stability.verdict import loss_of, measured_without_batch_statistics

ID = "sharpness/warm_up"
CITATION = "Gilmer et al., arXiv 2110.04369"

RISEN = 1.25
"""A loss this many times the lowest before has risen. A run that sharpens into the edge early overshoots it a little,
to a ratio of some 1.3 and a loss up by a fifth, and loses nothing by it."""


def warm_up(run: Run) -> list[Finding]:
    """A warning where early steps were too long and the loss rose with them; nothing otherwise."""
    decided = deciding(run)
    if decided is None or decided.basis == "realised" or measured_without_batch_statistics(run):
        return []
    found = _highest_early(decided, run.steps)
    if found is None:
        return []
    step, ratio, error = found
    rise = _rise(loss_of(run), step, run.steps)
    if rise is None:
        return []
    before, after = rise
    to = f"{after:.4g}" if numpy.isfinite(after) else "what is not a number"
    return [
        Finding(
            id=ID,
            level="warn",
            claim=f"The learning rate was {ratio:.2g} times too high for the early curvature: at step {step} the ratio "
            f"was above 1, and the loss rose from {before:.4g} to {to}. A warm-up was missing or too short.",
            value=Estimate(ratio, error, "residual", method_of(decided.last)),
            threshold=f"a ratio above {FAR_BEYOND:g} in the first {EARLY:.0%} of the run, and a loss up by a quarter",
            meaning="Early steps overshot along the sharpest directions. A rate that starts low lets curvature fall "
            "first; then the same peak rate is often stable.",
            advice=(
                f"Start with a warm-up, or lengthen it: at step {step} the rate should be {1 / ratio:.0%} of what it "
                "was.",
                "Or lower the peak rate by that factor, or clip gradients until the warm-up is over.",
                "A smaller initial scale (last layer, residual branches) starts with less curvature.",
            ),
            evidence=("batch-sharpness",) if decided.basis == "batch" else ("sharpness-ratio",),
            method=method_of(decided.last),
            citation=CITATION,
        )
    ]


def _highest_early(decided: Deciding, steps: int) -> tuple[int, float, float] | None:
    """Step, ratio and error of the highest early ratio, where it is beyond the edge by more than its error."""
    ratio = decided.ratio
    if len(ratio) < 2:
        return None
    errors = decided.reach * numpy.where(numpy.isnan(ratio.errors), 0.0, ratio.errors)
    early = (ratio.steps <= EARLY * steps) & numpy.isfinite(ratio.values)
    above = numpy.flatnonzero(early & (ratio.values > FAR_BEYOND) & (ratio.values - errors > EDGE_BAND[1]))
    if not len(above):
        return None
    highest = int(above[numpy.argmax(ratio.values[above])])
    return int(ratio.steps[highest]), float(ratio.values[highest]), float(errors[highest])


def _rise(loss: Series, step: int, steps: int) -> tuple[float, float] | None:
    """The loss before and after, if it rose within as long again as the beginning lasts; None if it did not."""
    near = loss.steps <= max(2 * EARLY * steps, step + EARLY * steps)
    before = loss.values[near & (loss.steps <= step) & numpy.isfinite(loss.values)]
    after = loss.values[near & (loss.steps >= step)]
    if not len(before) or not len(after):
        return None
    lowest = float(before.min())
    worst = float("inf") if not numpy.isfinite(after).all() else float(after.max())
    return (lowest, worst) if worst - lowest > (RISEN - 1) * abs(lowest) else None
