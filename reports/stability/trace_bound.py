"""The trace beside λmax, both over the curvature at which steps stop contracting.

Gradient descent is stable while λmax is below the threshold. At a minimum that fits every example, SGD on single
examples with a squared loss needs the trace below it as well (arXiv 2305.17490); at larger batches noise asks for less.
So the two curves hold between them what a batch size can make of the same Hessian.
"""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import step_table
from reports.charts import Edge, Line, lines, stacked
from reports.document import Figure


def trace_bound(run: Run) -> list[Figure]:
    """The figure, where a trace was measured at two steps at least and the threshold is one on plain curvature."""
    trace, largest = _over_threshold(run, "trace"), _over_threshold(run, "largest")
    whole = run.series("sharpness", "ratio")
    measured = run.series("gradient_curvature", "trace_ratio")
    trace, largest = measured if len(measured) > 1 else trace, whole if len(whole) > 1 else largest
    if len(trace) < 2:
        return []
    curves = [Line("trace", trace, color=palette.SERIES[2])]
    if len(largest) > 1:
        curves.append(Line("λmax", largest))
    return [
        Figure(
            id="trace-bound",
            title="Trace and λmax against the edge",
            caption="For SGD ηtr(H)/2 and ηλmax/2. Whole batches need the lower curve below 1; batches of one example, "
            "at a minimum that fits them all, the upper one too (arXiv 2305.17490). Other batch sizes lie between.",
            alt=f"Trace over the threshold, from {trace.values[0]:.3g} to {trace.values[-1]:.3g}, and λmax below it, "
            "log scale; the edge is at 1.",
            draw=partial(_draw, curves),
            table=step_table(
                tuple(f"{curve.label} over threshold" for curve in curves), [one.series for one in curves]
            ),
        )
    ]


def _over_threshold(run: Run, name: str) -> Series:
    """A quantity of the spectrum over the threshold in force; empty where that is one on preconditioned curvature."""
    values, threshold = run.series("spectrum", name), run.series("sharpness", "threshold")
    curvature, plain = run.series("sharpness", "curvature"), run.series("sharpness", "sharpness")
    same = len(curvature) > 0 and numpy.array_equal(curvature.values, plain.values, equal_nan=True)
    positive = numpy.isfinite(threshold.values) & (threshold.values > 0)
    steps, edges = threshold.steps[positive], threshold.values[positive]
    if not same or not len(steps):
        return Series(values.steps[:0], values.values[:0], values.errors[:0])
    before = numpy.clip(numpy.searchsorted(steps, values.steps, side="right") - 1, 0, None)
    return Series(values.steps, values.values / edges[before], values.errors / edges[before])


def _draw(curves: list[Line], canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    positive = [Line(one.label, _positive(one.series), color=one.color) for one in curves]
    lines(axes, positive, "over the edge", edge=Edge(1.0, "edge for whole batches"), log=True)


def _positive(one: Series) -> Series:
    """A trace or an eigenvalue that is not positive bounds nothing, and a log axis has no place for it."""
    kept = one.values > 0
    return Series(one.steps[kept], one.values[kept], one.errors[kept])
