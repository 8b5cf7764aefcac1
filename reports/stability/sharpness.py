"""Reading sharpness: where the run stands against the edge of stability, and how its curvature has moved."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate, format_value
from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import Chapter, method_of, step_table
from reports.charts import Edge, Line, lines, stacked
from reports.document import Figure
from reports.finding import Finding
from reports.stability.deciding import ratios, realised
from reports.stability.edge_lines import end_of_log_axis, far_from_edge
from reports.stability.verdict import CITATION, verdict
from reports.stability.warm_up import warm_up

OF_THE_EDGE = "curvature over the optimizer's threshold; at 1 (dashed) steps stop contracting."
OF_A_TRIAL = (
    "ΔᵀHΔ/(−2g·Δ) along one trial step Δ; from 1 (dashed) on a step no longer lowers the loss in the quadratic model. "
    "It is no stability ratio."
)


def read(run: Run) -> Chapter:
    """Findings and figures about sharpness."""
    ratio, loss = ratios(run, "sharpness"), run.series("sharpness", "loss")
    sharpness = run.series("sharpness", "sharpness")
    regime = verdict(run)
    findings = (*(() if regime is None else (regime,)), *warm_up(run), *_rise(run, sharpness))
    return Chapter(findings, tuple(_figures(run, ratio, loss, sharpness)))


def _rise(run: Run, sharpness: Series) -> list[Finding]:
    last = run.last("sharpness", "sharpness")
    finite = sharpness.values[numpy.isfinite(sharpness.values)]
    if last is None or last.value is None or not len(finite):
        return []
    now = format_value(last.value, last.error)
    claim = f"Sharpness (largest Hessian eigenvalue) is {now} at step {last.step}"
    if len(finite) == 2:
        claim += f", {'up' if finite[1] > finite[0] else 'down'} from {finite[0]:.4g} (from 2 checks)"
    elif len(finite) > 2:
        highest = int(sharpness.steps[int(numpy.nanargmax(sharpness.values))])
        if finite[0] == finite.max():
            claim += f"; it began at its highest, {finite[0]:.4g}"
        else:
            claim += f"; it began at {finite[0]:.4g} and was highest, {finite.max():.4g}, at step {highest}"
    return [
        Finding(
            id="sharpness/curvature",
            level="ok",
            claim=claim + ".",
            value=Estimate(last.value, last.error or 0.0, "residual", method_of(last)),
            threshold="",
            meaning="The curvature of the loss along its sharpest direction. It scales with the loss (mean or sum, ½ "
            "or not) and so compares only within a run; the stability ratio compares across runs. It says nothing "
            "about generalisation.",
            advice=(),
            evidence=("sharpness-curvature",) if len(finite) > 1 else (),
            method=method_of(last),
            citation=CITATION,
        )
    ]


def _figures(run: Run, ratio: Series, loss: Series, sharpness: Series) -> list[Figure]:
    figures = []
    trial = realised(run)
    name = "ratio of a trial step" if trial else "stability ratio"
    at_one = "a step no longer lowers the loss" if trial else "edge of stability"
    if len(ratio) > 1:
        figures.append(
            Figure(
                id="sharpness-ratio",
                title="Ratio of a trial step and loss" if trial else "Stability ratio and loss",
                caption=f"Above: {OF_A_TRIAL if trial else OF_THE_EDGE} "
                "Below: loss on the monitored batches, log scale.",
                alt=f"{name.capitalize()} over steps {ratio.steps[0]} to {ratio.steps[-1]}, from "
                f"{ratio.values[0]:.3g} to {ratio.values[-1]:.3g}; at 1 {at_one}.",
                draw=partial(_draw_ratio, ratio, loss, name, at_one),
                table=step_table((name, "loss"), (ratio, loss)),
                size=(7.2, 4.4),
            )
        )
    threshold, curvature = _finite(run.series("sharpness", "threshold")), _finite(run.series("sharpness", "curvature"))
    if len(sharpness) > 1:
        curves = [Line("sharpness λmax", sharpness, band=True)]
        same = _finite(sharpness)
        if len(curvature) > 1 and not trial and not numpy.array_equal(curvature.values, same.values):
            curves.append(Line("preconditioned", curvature, color=palette.SERIES[2]))
        if len(threshold) > 1 and not trial:
            curves.append(Line("threshold", threshold, color=palette.EDGE))
        figures.append(
            Figure(
                id="sharpness-curvature",
                title="Sharpness" if trial else "Sharpness and threshold",
                caption="The largest Hessian eigenvalue. For this optimizer no threshold of it is known."
                if trial
                else "The largest Hessian eigenvalue, and the curvature at which the optimizer's step stops "
                "contracting. The threshold moves with the learning rate.",
                alt=f"Sharpness over steps, from {sharpness.values[0]:.4g} to {sharpness.values[-1]:.4g}.",
                draw=partial(_draw_curvature, curves),
                table=step_table(tuple(curve.label for curve in curves), [curve.series for curve in curves]),
            )
        )
    return figures


def _finite(series: Series) -> Series:
    kept = numpy.isfinite(series.values)
    return Series(series.steps[kept], series.values[kept], series.errors[kept])


def _draw_ratio(ratio: Series, loss: Series, name: str, at_one: str, canvas: Canvas) -> None:
    top, bottom = stacked(canvas, (3, 2))
    finite = ratio.values[numpy.isfinite(ratio.values)]
    wild = far_from_edge(ratio.values)
    lines(top, [Line("ratio", ratio, band=not wild)], name, edge=Edge(1.0, at_one), log=wild)
    if wild:
        end_of_log_axis(top, ratio.values)
    else:
        top.set_ylim(bottom=min(0.0, float(finite.min())) if len(finite) else 0.0)
    lines(bottom, [Line("loss", loss, color=palette.SERIES[1])], "loss", log=True)


def _draw_curvature(curves: list[Line], canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    values = numpy.concatenate([curve.series.values for curve in curves])
    finite = values[numpy.isfinite(values) & (values > 0)]
    wide = len(finite) > 0 and finite.max() > 20 * finite.min()
    lines(axes, curves, "curvature", log=wide)
