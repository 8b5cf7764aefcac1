"""The verdict on stability: which regime, what it means, and where a run that blew up should look for the cause."""

from __future__ import annotations

from dataclasses import replace

import numpy

from diagnostics.estimate import ErrorKind, Estimate, format_value
from probes.run import Run
from probes.run.reader import Series
from reports.chapter import method_of, reason_missing, unmeasured
from reports.finding import Finding
from reports.stability.claim import first_not_finite, numbers
from reports.stability.context import around, small_batch_edge
from reports.stability.deciding import YOUNG, Deciding, adaptive, at_rest, deciding, ratios
from reports.stability.regime import EDGE_BAND, FAR_BEYOND, MOST_MARGIN, Verdict, judge
from reports.stability.regime_words import (
    BATCHES,
    BETWEEN,
    ELSEWHERE,
    LONG_BY_ANALOGY,
    LOST_AT_EDGE,
    LOWER,
    REGIMES,
    TRIAL_AT_ONE,
    TRIAL_FINE,
    TRIAL_LONG,
    Words,
)
from reports.stability.stable_rate import stable_rate

ID = "sharpness/regime"
CITATION = "Cohen et al. 2021, arXiv 2103.00065; Cohen et al. 2022, arXiv 2207.14484"
BATCH_CITATION = "Andreyev & Beneventano, arXiv 2412.20553; Cohen et al. 2021, arXiv 2103.00065"

RISEN = 1.1
LASTING = 3
"""A trial step is held against a run only after so many checks."""


def verdict(run: Run) -> Finding | None:
    """The finding on stability; None when nobody asked."""
    decided, loss = deciding(run), loss_of(run)
    small = None if decided is None else small_batch_edge(run, decided)
    judged = (
        None if decided is None else judge(decided.ratio, loss, decided.reach, small or 1.0, _counted_from(decided))
    )
    if decided is None or judged is None or decided.last.value is None:
        return _without_ratio(run, loss)
    words, last = _words(judged, decided, small, loss), decided.last
    kind: ErrorKind = "standard error" if decided.reach > 1 else "residual"
    finding = Finding(
        id=ID,
        level=words.level,
        claim=f"{words.verdict}: {numbers(run, judged, decided, loss)}.",
        value=Estimate(decided.last.value, last.error or 0.0, kind, method_of(last)),
        threshold=_threshold(decided, judged),
        meaning=" ".join((words.meaning, *around(run, judged, decided))),
        advice=_with_number(run, words.advice, judged, decided),
        evidence=_evidence(run, decided),
        method=method_of(last),
        citation=BATCH_CITATION if decided.basis == "batch" else CITATION,
    )
    if judged.regime == "diverged":
        return _with_cause(finding, judged, _with_number(run, LOWER, judged, decided))
    return (
        _in_another_mode(finding, format_value(decided.last.value, last.error), last.step)
        if measured_without_batch_statistics(run)
        else finding
    )


def loss_of(run: Run) -> Series:
    """The loss on the monitored batches, from whichever probe took it: that of single batches is too noisy here."""
    measured = run.series("sharpness", "loss")
    return measured if len(measured) else run.series("spectrum", "loss")


def _counted_from(decided: Deciding) -> int | None:
    if decided.basis == "realised":
        return None
    return YOUNG if adaptive(decided.rule) else 0


def _with_number(run: Run, advice: tuple[str, ...], judged: Verdict, decided: Deciding) -> tuple[str, ...]:
    """How far to lower the rate, where that can be told."""
    rate = stable_rate(run, judged, decided)
    if rate is None:
        return advice
    edge = "the edge of small batches" if judged.edge < 1 else "the edge"
    lower = (
        f"Lower the learning rate: at most η ≈ {rate:.2g}, the rate at which the sharpest check (step "
        f"{judged.peak_step}) would have been at {edge}."
    )
    return tuple(lower if one == LOWER[0] else one for one in advice)


def measured_without_batch_statistics(run: Run) -> bool:
    """Whether the model trains with batch normalisation and was measured in evaluation mode: as another function."""
    objective = run.header.get("objective") or {}
    return objective.get("mode") == "eval" and bool(objective.get("batch_norm"))


def _words(judged: Verdict, decided: Deciding, small: float | None, loss: Series) -> Words:
    if judged.regime == "edge" and judged.lost and decided.basis != "realised":
        return LOST_AT_EDGE
    if decided.basis == "batch":
        return _by_batches(judged, decided, small)
    if decided.basis == "whole" or judged.regime in ("diverged", "blown up"):
        return REGIMES[judged.regime]
    if judged.checks >= LASTING and judged.level - judged.margin > EDGE_BAND[1] and _risen(loss):
        return TRIAL_LONG
    return TRIAL_AT_ONE if judged.level >= 1.0 else TRIAL_FINE


def _risen(loss: Series) -> bool:
    """Whether the loss ends above its lowest. Without that a long trial step may only be one around a minimum."""
    return len(loss) > 0 and bool(loss.values[-1] > RISEN * numpy.nanmin(loss.values))


def _by_batches(judged: Verdict, decided: Deciding, small: float | None) -> Words:
    if judged.regime == "beyond" and not decided.rule.startswith("sgd"):
        return LONG_BY_ANALOGY
    if small is not None and judged.regime in ("stable", "sharpening"):
        near = judged.level + min(judged.margin, MOST_MARGIN * small) >= EDGE_BAND[0] * small
        return BETWEEN if near else BATCHES[judged.regime]
    return BATCHES[judged.regime]


def _threshold(decided: Deciding, judged: Verdict) -> str:
    if decided.basis == "realised":
        return "1, where a step no longer lowers the loss in the quadratic model"
    known = None if decided.threshold is None else decided.threshold.value
    at = f": curvature {known:.5g} ({decided.rule})" if known else ""
    if judged.edge == 1.0:
        return f"1, the edge of stability{at}"
    low = f": curvature {known * judged.edge:.2g}" if known else ""
    return f"{judged.edge:.2g}, the edge of small batches under momentum, (1−β)/(1+β){low}; for large ones 1{at}"


def _evidence(run: Run, decided: Deciding) -> tuple[str, ...]:
    batches = decided.basis == "batch" and len(decided.ratio) > 1
    whole = len(ratios(run, "sharpness")) > 1
    return (*(("batch-sharpness",) if batches else ()), *(("sharpness-ratio",) if whole else ()))


def _with_cause(finding: Finding, judged: Verdict, lower: tuple[str, ...]) -> Finding:
    """Whether the step was too long for the curvature before the loss went; if not, the cause is elsewhere."""
    if judged.peak > EDGE_BAND[1]:
        cause = (
            "The ratio passed 1 before that: the learning rate was too large for the curvature at step "
            f"{judged.peak_step}."
        )
        return replace(finding, meaning=f"{cause} {finding.meaning}", advice=lower)
    if judged.peak > FAR_BEYOND * judged.edge:
        cause = (
            "The ratio passed the edge of small batches before that, but not that of large ones: the step may have "
            "been too long for the curvature, or the cause is elsewhere."
        )
        return replace(finding, meaning=f"{cause} {finding.meaning}", advice=(*lower, *ELSEWHERE))
    cause = "The ratio never passed 1 where it was measured, so the step was not too long for the curvature."
    return replace(finding, meaning=f"{cause} {finding.meaning}", advice=ELSEWHERE)


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
        words = REGIMES["diverged"]
        return Finding(
            id=ID,
            level="fail",
            claim=f"{words.verdict}: the loss is not a number since step {first_not_finite(run, loss)}.",
            value=None,
            threshold="a finite loss",
            meaning=words.meaning,
            advice=ELSEWHERE,
            evidence=(),
            method=method_of(run.last("sharpness", "loss")),
            citation=CITATION,
        )
    resting = sorted(at_rest(run, "sharpness") | at_rest(run, "batch_sharpness"))
    reason = reason_missing(run, "sharpness")
    if resting and (run.last("sharpness", "ratio") or run.last("batch_sharpness", "ratio")):
        advice: tuple[str, ...] = ("Measure while the rate is above 0: more often, or with a larger budget.",)
        return unmeasured(
            ID,
            "Stability",
            f"the learning rate was 0 wherever the ratio was taken, last at step {resting[-1]}",
            advice,
            CITATION,
        )
    if reason is None:
        return None
    advice = ("An Objective (model, loss, data) and the optimizer are what it needs.",)
    if reason == "no optimizer was given":
        advice = ("Pass --task task.py, whose build(checkpoint) returns (Objective, optimizer).",)
    if reason.startswith(("the budget", "interrupted")):
        advice = ("Give it more time: a larger --budget, or none.",)
    return unmeasured(ID, "Stability", reason, advice, CITATION)
