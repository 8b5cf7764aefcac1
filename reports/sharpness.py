"""Reading sharpness: where the run stands against the edge of stability, and how its curvature has moved."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate, format_value
from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import Chapter, method_of, reason_missing, step_table, unmeasured
from reports.charts import Edge, Line, lines, stacked
from reports.document import Figure
from reports.finding import Finding, Level
from reports.regime import Regime, judge

CITATION = "Cohen et al. 2021, arXiv 2103.00065; Cohen et al. 2022, arXiv 2207.14484"

_MINIBATCH = (
    "If training draws mini-batches, this ratio settles below 1 and does not decide alone: "
    "batch sharpness does (arXiv 2412.20553)."
)


@dataclass(frozen=True)
class _Words:
    """What a regime means, and what to try."""

    level: Level
    verdict: str
    meaning: str
    advice: tuple[str, ...]


_REGIMES: dict[Regime, _Words] = {
    "diverged": _Words(
        "fail",
        "Training has diverged",
        "The loss is no longer finite, or more than ten times where it began. No other number of this run can be "
        "trusted past "
        "that point.",
        (
            "Restart from before the rise with a learning rate a third as large.",
            "Lengthen the warm-up: early curvature is often the highest of the run.",
            "Clip gradients if the rise begins with single large ones.",
        ),
    ),
    "beyond": _Words(
        "fail",
        "Steps are too long for the curvature",
        "Along the sharpest direction each step now overshoots by more than it corrects, so the oscillation grows. "
        "Either the loss rises until curvature gives way, or training diverges.",
        (
            "Lower the learning rate until the ratio is at most 1.",
            "Lengthen the warm-up, so that curvature can fall before the rate is full.",
        ),
    ),
    "catapult": _Words(
        "warn",
        "The run was thrown to a flatter region and has settled",
        "The ratio went well above 1 and came back: a catapult. It costs a spike in the loss and can be survived; "
        "more than once in a run it is a sign of too high a rate.",
        ("If the spike hurt, lengthen the warm-up or start at a lower rate.",),
    ),
    "edge": _Words(
        "ok",
        "The run is at the edge of stability",
        "Curvature has risen until the step can only just follow it, and oscillation along the sharpest directions now "
        "holds it there. This is the usual state of full-batch training, not a fault: the loss falls over many steps, "
        "though not at every one. " + _MINIBATCH,
        (),
    ),
    "sharpening": _Words(
        "ok",
        "Curvature is rising towards the edge of stability",
        "Progressive sharpening: steps still contract, and will until the ratio reaches 1. " + _MINIBATCH,
        (),
    ),
    "stable": _Words(
        "ok",
        "Steps are well within what the curvature allows",
        "Every direction contracts under the present step. A larger learning rate would still be stable here, by "
        "about one over the "
        "ratio; whether it would train better is another question. " + _MINIBATCH,
        (),
    ),
}


def read(run: Run) -> Chapter:
    """Findings and figures about sharpness."""
    ratio, loss = run.series("sharpness", "ratio"), run.series("sharpness", "loss")
    sharpness = run.series("sharpness", "sharpness")
    findings = [_stability(run, ratio, loss), *_rise(run, sharpness)]
    return Chapter(tuple(findings), tuple(_figures(run, ratio, loss, sharpness)))


def _stability(run: Run, ratio: Series, loss: Series) -> Finding:
    last = run.last("sharpness", "ratio")
    verdict = judge(ratio, loss)
    if verdict is None or last is None or last.value is None:
        if len(loss) and not numpy.isfinite(loss.values[-1]):
            return _diverged_without_ratio(run)
        reason = reason_missing(run, "sharpness") or "no measurement was asked for"
        return unmeasured(
            "sharpness/regime",
            "Stability",
            reason,
            ("An Objective (model, loss, data) and the optimizer are what it needs.",),
            CITATION,
        )
    words = _REGIMES[verdict.regime]
    threshold = run.last("sharpness", "threshold")
    rule = (
        "" if threshold is None or threshold.value is None else f": curvature {threshold.value:.5g} ({threshold.note})"
    )
    now = format_value(last.value, last.error)
    claim = f"{words.verdict}: stability ratio {now} at step {last.step}"
    if len(ratio) > 1:
        claim += (
            f", up from {verdict.first:.2g}" if verdict.ratio > verdict.first else f", down from {verdict.first:.2g}"
        )
        if verdict.reached not in (None, int(ratio.steps[0])):
            claim += f", near the edge since step {verdict.reached}"
    return Finding(
        id="sharpness/regime",
        level=words.level,
        claim=claim + ".",
        value=Estimate(last.value, last.error or 0.0, "residual", method_of(last)),
        threshold=f"1, the edge of stability{rule}",
        meaning=words.meaning,
        advice=words.advice,
        evidence=("sharpness-ratio",) if len(ratio) > 1 else (),
        method=method_of(last),
        citation=CITATION,
    )


def _diverged_without_ratio(run: Run) -> Finding:
    words = _REGIMES["diverged"]
    return Finding(
        id="sharpness/regime",
        level="fail",
        claim=f"{words.verdict}: the loss is not finite at step {run.steps}, so curvature has no value.",
        value=None,
        threshold="a finite loss",
        meaning=words.meaning,
        advice=words.advice,
        evidence=(),
        method=reason_missing(run, "sharpness") or "",
        citation=CITATION,
    )


def _rise(run: Run, sharpness: Series) -> list[Finding]:
    last = run.last("sharpness", "sharpness")
    finite = sharpness.values[numpy.isfinite(sharpness.values)]
    if last is None or last.value is None or not len(finite):
        return []
    now = format_value(last.value, last.error)
    claim = f"Sharpness (largest Hessian eigenvalue) is {now} at step {last.step}"
    if len(finite) > 1:
        highest = int(sharpness.steps[int(numpy.nanargmax(sharpness.values))])
        claim += f"; it began at {finite[0]:.4g} and was highest, {finite.max():.4g}, at step {highest}"
    return [
        Finding(
            id="sharpness/curvature",
            level="ok",
            claim=claim + ".",
            value=Estimate(last.value, last.error or 0.0, "residual", method_of(last)),
            threshold="",
            meaning="The curvature of the loss along its sharpest direction. It scales with the loss (mean or sum, ½ "
            "or not) and so "
            "compares only within a run; the stability ratio compares across runs. It says nothing about "
            "generalisation.",
            advice=(),
            evidence=("sharpness-curvature",) if len(finite) > 1 else (),
            method=method_of(last),
            citation=CITATION,
        )
    ]


def _figures(run: Run, ratio: Series, loss: Series, sharpness: Series) -> list[Figure]:
    figures = []
    if len(ratio) > 1:
        figures.append(
            Figure(
                id="sharpness-ratio",
                title="Stability ratio and loss",
                caption="Above: curvature over the optimizer's threshold; at 1 (dashed) steps stop contracting. "
                "Below: loss on the monitored batches, log scale.",
                alt=f"Stability ratio over steps {ratio.steps[0]} to {ratio.steps[-1]}, from {ratio.values[0]:.3g} to "
                f"{ratio.values[-1]:.3g}; the edge is at 1.",
                draw=partial(_draw_ratio, ratio, loss),
                table=step_table(("stability ratio", "loss"), (ratio, loss)),
                size=(7.2, 4.4),
            )
        )
    threshold, curvature = run.series("sharpness", "threshold"), run.series("sharpness", "curvature")
    if len(sharpness) > 1:
        curves = [Line("sharpness λmax", sharpness, band=True)]
        if len(curvature) > 1 and not numpy.array_equal(curvature.values, sharpness.values):
            curves.append(Line("preconditioned", curvature, color=palette.SERIES[2]))
        if len(threshold) > 1:
            curves.append(Line("threshold", threshold, color=palette.EDGE))
        figures.append(
            Figure(
                id="sharpness-curvature",
                title="Sharpness and threshold",
                caption="The largest Hessian eigenvalue, and the curvature at which the optimizer's step stops "
                "contracting. "
                "The threshold moves with the learning rate.",
                alt=f"Sharpness over steps, from {sharpness.values[0]:.4g} to {sharpness.values[-1]:.4g}.",
                draw=partial(_draw_curvature, curves),
                table=step_table(tuple(curve.label for curve in curves), [curve.series for curve in curves]),
            )
        )
    return figures


def _draw_ratio(ratio: Series, loss: Series, canvas: Canvas) -> None:
    top, bottom = stacked(canvas, (3, 2))
    lines(top, [Line("ratio", ratio, band=True)], "stability ratio", edge=Edge(1.0, "edge of stability"))
    top.set_ylim(bottom=0.0)
    lines(bottom, [Line("loss", loss, color=palette.SERIES[1])], "loss", log=True)


def _draw_curvature(curves: list[Line], canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    values = numpy.concatenate([curve.series.values for curve in curves])
    finite = values[numpy.isfinite(values) & (values > 0)]
    wide = len(finite) > 0 and finite.max() > 20 * finite.min()
    lines(axes, curves, "curvature", log=wide)
