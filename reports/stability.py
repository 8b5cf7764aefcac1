"""The verdict on stability: which regime, what it means, and where a run that blew up should look for the cause."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy

from diagnostics.estimate import Estimate, format_value
from probes.run import Run
from probes.run.reader import Series
from reports.chapter import method_of, reason_missing, unmeasured
from reports.finding import Finding, Level
from reports.regime import EDGE_BAND, Regime, Verdict, judge

ID = "sharpness/regime"
CITATION = "Cohen et al. 2021, arXiv 2103.00065; Cohen et al. 2022, arXiv 2207.14484"

_MINIBATCH = (
    "If training draws mini-batches, this ratio settles below 1 and does not decide alone: batch sharpness does "
    "(arXiv 2412.20553)."
)
_LOWER = (
    "Lower the learning rate: to a third, then by the ratio.",
    "Lengthen the warm-up, so that curvature can fall before the rate is full.",
)
_ELSEWHERE = (
    "Look at the data and the loss: non-finite or huge inputs, labels out of range, a logarithm or a division at zero, "
    "a wrong sign.",
    "With mixed precision, look at the loss scale and at overflow in float16.",
    "A single bad mini-batch can do it too: log the loss of each step and clip gradients.",
)


@dataclass(frozen=True)
class _Words:
    """What a regime is called, and what it means."""

    level: Level
    verdict: str
    meaning: str
    advice: tuple[str, ...] = ()


_REGIMES: dict[Regime, _Words] = {
    "diverged": _Words("fail", "Training has diverged", "What was measured from here on says nothing about learning."),
    "blown up": _Words(
        "fail",
        "The run was thrown off and has not come back",
        "The loss jumped while steps were too long for the curvature, and is not below where it began. A low ratio "
        "afterwards is no recovery: a network that was thrown far out is often dead and flat there.",
        _LOWER,
    ),
    "beyond": _Words(
        "fail",
        "Steps are too long for the curvature",
        "Along the sharpest direction each step now overshoots by more than it corrects, so the oscillation grows. "
        "Either the loss rises until curvature gives way, or training diverges.",
        _LOWER,
    ),
    "catapult": _Words(
        "warn",
        "The run was thrown to a flatter region and has settled",
        "The ratio went well above 1 and came back: a catapult. It costs a spike in the loss and can be survived; more "
        "than once in a run it is a sign of too high a rate.",
        ("If the spike hurt, lengthen the warm-up or start at a lower rate.",),
    ),
    "edge": _Words(
        "ok",
        "The run is at the edge of stability",
        "Curvature has risen until the step can only just follow it, and oscillation along the sharpest directions now "
        "holds it there. This is the usual state of full-batch training, not a fault: the loss falls over many steps, "
        "though not at every one. " + _MINIBATCH,
    ),
    "sharpening": _Words(
        "ok",
        "Curvature is rising towards the edge of stability",
        "Progressive sharpening: steps still contract, and will until the ratio reaches 1. " + _MINIBATCH,
    ),
    "stable": _Words(
        "ok",
        "Steps are well within what the curvature allows",
        "Every direction contracts under the present step. Whether a larger one would train better is another "
        "question. " + _MINIBATCH,
    ),
}


def verdict(run: Run) -> Finding | None:
    """The finding on stability; None when nobody asked."""
    ratio, loss = run.series("sharpness", "ratio"), run.series("sharpness", "loss")
    judged, last = judge(ratio, loss), run.last("sharpness", "ratio")
    if judged is None or last is None or last.value is None:
        return _without_ratio(run, loss)
    words = _REGIMES[judged.regime]
    threshold = run.last("sharpness", "threshold")
    now = format_value(last.value, last.error)
    finding = Finding(
        id=ID,
        level=words.level,
        claim=f"{words.verdict}: {_numbers(judged, now, last.step, ratio, loss)}.",
        value=Estimate(last.value, last.error or 0.0, "residual", method_of(last)),
        threshold="1, the edge of stability"
        + (f": curvature {threshold.value:.5g} ({threshold.note})" if threshold and threshold.value else ""),
        meaning=words.meaning,
        advice=words.advice,
        evidence=("sharpness-ratio",) if len(ratio) > 1 else (),
        method=method_of(last),
        citation=CITATION,
    )
    if judged.regime == "diverged":
        return _with_cause(finding, judged)
    return _in_another_mode(finding, now, last.step) if measured_without_batch_statistics(run) else finding


def measured_without_batch_statistics(run: Run) -> bool:
    """Whether the model trains with batch normalisation and was measured in evaluation mode: as another function."""
    objective = run.header.get("objective") or {}
    return objective.get("mode") == "eval" and bool(objective.get("batch_norm"))


def _numbers(judged: Verdict, now: str, step: int, ratio: Series, loss: Series) -> str:
    if judged.regime in ("diverged", "blown up"):
        end = f"{loss.values[-1]:.4g}" if numpy.isfinite(loss.values[-1]) else "not a number"
        moved = f"the loss went from {loss.values[0]:.4g} to {end} by step {int(loss.steps[-1])}"
        return f"{moved}; the stability ratio was highest, {judged.peak:.3g}, at step {judged.peak_step}"
    text = f"stability ratio {now} at step {step}"
    if len(ratio) > 1:
        text += f", {'up' if judged.last > judged.first else 'down'} from {judged.first:.2g}"
        if judged.regime == "catapult":
            text += f", after {judged.peak:.3g} at step {judged.peak_step}"
        elif judged.regime == "stable" and judged.peak > max(judged.first, 2 * judged.last):
            text += f", highest {judged.peak:.2g} at step {judged.peak_step}"
        elif judged.regime == "edge" and judged.reached not in (None, int(ratio.steps[0])):
            text += f", near the edge since step {judged.reached}"
    return text


def _with_cause(finding: Finding, judged: Verdict) -> Finding:
    """Whether the step was too long for the curvature before the loss went; if not, the cause is elsewhere."""
    if judged.peak > EDGE_BAND[1]:
        cause = (
            f"The ratio passed 1 before that: the learning rate was too large for the curvature at {judged.peak_step}."
        )
        return replace(finding, meaning=f"{cause} {finding.meaning}", advice=_LOWER)
    cause = "The ratio never passed 1 where it was measured, so the step was not too long for the curvature."
    return replace(finding, meaning=f"{cause} {finding.meaning}", advice=_ELSEWHERE)


def _in_another_mode(finding: Finding, now: str, step: int) -> Finding:
    return replace(
        finding,
        level="unmeasured",
        claim=f"Stability ratio {now} at step {step} is that of evaluation mode, and this model trains with batch "
        "normalisation: no verdict.",
        meaning="In evaluation mode batch normalisation uses its running statistics. That is another function than the "
        "one that trains, and its curvature can differ by an order of magnitude, either way.",
        advice=('Objective(..., mode="train") measures the function that trains.',),
    )


def _without_ratio(run: Run, loss: Series) -> Finding | None:
    if len(loss) and not numpy.isfinite(loss.values[-1]):
        words = _REGIMES["diverged"]
        return Finding(
            id=ID,
            level="fail",
            claim=f"{words.verdict}: the loss is not a number at step {int(loss.steps[-1])}.",
            value=None,
            threshold="a finite loss",
            meaning=words.meaning,
            advice=_ELSEWHERE,
            evidence=(),
            method=method_of(run.last("sharpness", "loss")),
            citation=CITATION,
        )
    reason = reason_missing(run, "sharpness")
    if reason is None:
        return None
    advice = ("An Objective (model, loss, data) and the optimizer are what it needs.",)
    return unmeasured(ID, "Stability", reason, advice, CITATION)
