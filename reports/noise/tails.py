"""Reading the tail of gradient noise: whether its variance, and with it the noise scale, is that of a few examples.

In every network that fits its data the tail becomes heavy: most examples are learned, and the few that are not make
what is left of the gradient. That is no fault. It is one where most examples are still far from learned.
"""

from __future__ import annotations

from dataclasses import replace

from diagnostics.estimate import Estimate, exact
from diagnostics.noise.tails import HEAVY, is_heavy
from probes.run import Run
from reports.chapter import method_of
from reports.finding import Finding

ID = "noise_scale/tails"
CITATION = "Simsekli et al., arXiv 1901.06053; Hill 1975"

LEARNED = 0.3
"""Of the first median gradient norm: where the median is below, half of the examples are well on their way."""

MOST = 0.5
"""Of the noise: what a hundredth of the examples makes where they are outliers."""

_ADVICE = (
    "Look at the examples with the longest gradients (per_example_gradient_norms): wrong labels, outliers, inputs out "
    "of scale.",
    "Clip gradients, or use a loss that grows linearly (Huber), if single steps throw the loss up.",
)
_OUTLIERS = (
    "Their gradients are many times longer than those of the others, which are far from learned. The variance grows "
    "with the number of examples measured, so noise scales are those of this sample and not of the data."
)
_USUAL = (
    "The variance grows with the number of examples measured, so noise scales are those of this sample and not of the "
    "data. That is usual once most examples have been learned, and no fault."
)


def tails(run: Run) -> list[Finding]:
    """A finding where the tail was measured at all: of the first check with outliers among examples to be learned."""
    last = run.last("noise_scale", "top_share")
    if last is None or last.value is None:
        return []
    waiting = [step for step in _waiting(run) if _is_heavy(run, step)]
    step = waiting[0] if waiting else last.step
    heavy = _is_heavy(run, step)
    share, index = _at(run, "top_share", step), _at(run, "tail_index", step)
    told = "" if index is None else f" (tail index {index})"
    usual = ", which is usual once most are learned" if heavy and not waiting else ""
    return [
        Finding(
            id=ID,
            level="warn" if waiting else "ok",
            claim=f"The hundredth of examples with the longest gradients makes {float(share or 0):.0%} of the "
            f"gradient noise at step {step}{told}{usual}.",
            value=share if share is None else replace(share, how=method_of(last)),
            threshold=f"half of the noise, or a tail index below {HEAVY:g}",
            meaning=_OUTLIERS if waiting else _USUAL if heavy else "Noise scales are those of the data, not of a few.",
            advice=_ADVICE if waiting else (),
            evidence=(),
            method=method_of(last),
            citation=CITATION,
        )
    ]


def _is_heavy(run: Run, step: int) -> bool:
    share, index = _at(run, "top_share", step), _at(run, "tail_index", step)
    return (share is not None and float(share) > MOST) or (index is not None and is_heavy(index))


def _at(run: Run, name: str, step: int) -> Estimate | None:
    one = run.series("noise_scale", name)
    (places,) = (one.steps == step).nonzero()
    if not len(places):
        return None
    value, error = float(one.values[places[0]]), float(one.errors[places[0]])
    return Estimate(value, error, "standard error", "") if error > 0 else exact(value, "")


def _waiting(run: Run) -> list[int]:
    """Checks at which the median example still has most of its first gradient; one check alone cannot tell."""
    median = run.series("noise_scale", "median_norm")
    if len(median) < 2:
        return []
    return [
        int(step) for step, norm in zip(median.steps, median.values, strict=True) if norm > LEARNED * median.values[0]
    ]
