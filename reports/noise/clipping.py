"""Reading clipping: how often it acts, and whether what it leaves still points down the loss."""

from __future__ import annotations

import math

from diagnostics.estimate import Estimate, format_value
from probes.run import Run
from reports.chapter import method_of
from reports.finding import Finding

ID = "gradient_alignment/clipping"
CITATION = "Chen et al., arXiv 2006.15429; Koloskova et al., arXiv 2305.01588"

SIDEWAYS = 0.5
"""Sideways over kept, a turn of 27 degrees: a clipped step that is that far off is another step."""


def clipping(run: Run) -> list[Finding]:
    """Rate and bias at the latest check; silent where the trainer's threshold was not given."""
    rate, limit = run.last("gradient_alignment", "clip_rate"), run.last("gradient_alignment", "max_norm")
    kept = run.last("gradient_alignment", "clip_kept")
    if rate is None or rate.value is None or limit is None or kept is None or kept.value is None:
        return []
    sideways = run.last("gradient_alignment", "clip_sideways")
    turned = None
    if sideways is not None and sideways.value is not None and sideways.step == rate.step and kept.value > 0:
        low = (sideways.value - 1.96 * (sideways.error or 0.0)) / kept.value
        turned = (sideways.value / kept.value, low)
    far = turned is not None and turned[1] > SIDEWAYS
    claim = (
        f"Clipping to {limit.value:g} acts on {rate.value:.0%} of batches at step {rate.step} and keeps "
        f"{format_value(kept.value, kept.error)} of the mean step"
        if rate.value
        else f"Clipping to {limit.value:g} acts on none of the batches drawn at step {rate.step}"
    )
    if turned is not None:
        degrees = math.degrees(math.atan(turned[0]))
        claim += f", turned by {f'{degrees:.0f} degrees' if degrees >= 1.5 else 'next to nothing'}"
    usual = run.last("gradient_alignment", "clip_median_norm")
    if usual is not None and usual.value is not None and usual.step == rate.step:
        claim += f"; the median gradient of a batch has norm {format_value(usual.value)}"
    return [
        Finding(
            id=ID,
            level="warn" if far else "ok",
            claim=f"{claim}.",
            value=Estimate(kept.value, kept.error or 0.0, "standard error", method_of(kept))
            if rate.value
            else Estimate(rate.value, rate.error or 0.0, "bound", method_of(rate)),
            threshold=f"turned by more than {math.degrees(math.atan(SIDEWAYS)):.0f} degrees",
            meaning="Batches with long gradients lose more than others, so that the mean of clipped gradients points "
            "elsewhere than the gradient of the loss: no learning rate makes that good."
            if far
            else "What clipping takes away is mostly length, which the learning rate can give back."
            if rate.value
            else "At this threshold clipping is a guard against rare long gradients, and changes no usual step.",
            advice=(
                "Raise the threshold towards the median norm of batch gradients (clip_median_norm in the records).",
                "Larger batches: their norms differ less.",
            )
            if far
            else (),
            evidence=(),
            method=method_of(kept),
            citation=CITATION,
        )
    ]
