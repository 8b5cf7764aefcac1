"""Reading the sharpness at the end of gradient flow: whether a run can follow the flow, or has to flatten first.

Where gradient flow from here would end is sharper or flatter than 2/η. Gradient descent cannot settle above 2/η, and
at the edge it lowers that end step by step, while its own sharpness swings (arXiv 2305.13064).
"""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate, format_value
from probes.run import Record, Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import Chapter, method_of, reason_missing, step_table, unmeasured
from reports.charts import Line, lines, stacked
from reports.document import Figure
from reports.finding import Finding
from reports.stability.deciding import draws_batches
from reports.stability.edge_lines import wide
from reports.stability.gradient_curvature import ANOTHER_FUNCTION
from reports.stability.verdict import measured_without_batch_statistics

ID = "gradient_flow/end"
CITATION = "Kreisler et al., arXiv 2305.13064"

UNRESOLVED = 0.2
"""With a larger relative error the flow has not come near an end: as with cross-entropy on separable data."""
ABOUT = 0.05
"""So close to the threshold counts as at it: gradient descent ends there, a little below."""


def read(run: Run) -> Chapter:
    """Finding and figure about where gradient flow would end."""
    last = run.last("gradient_flow", "sharpness")
    if last is None or last.value is None:
        reason = reason_missing(run, "gradient_flow")
    else:
        reason = ANOTHER_FUNCTION if measured_without_batch_statistics(run) else None
    if reason is not None:
        return Chapter((unmeasured(ID, "The end of gradient flow", reason, (), CITATION),))
    return Chapter() if last is None else Chapter((_end(run, last),), tuple(_figure(run)))


def _end(run: Run, last: Record) -> Finding:
    value, error = last.value or 0.0, last.error or 0.0
    edge, now = _at(run, "threshold", last.step), _at(run, "now", last.step)
    known = value > 0 and error <= UNRESOLVED * value
    claim = f"Gradient flow from step {last.step} would end at a sharpness of {format_value(value, error)}"
    if not known:
        claim = f"Where gradient flow from step {last.step} ends is not resolved: a sharpness of "
        claim += format_value(value, error)
    elif edge is not None:
        rule = method_of(edge).removeprefix("sgd: ")
        claim += f", {value / (edge.value or 1.0):.3g} times the threshold {rule} = {edge.value:.4g}"
    claim += "" if now is None else f"; now it is {format_value(now.value or 0.0, now.error)}"
    return Finding(
        id=ID,
        level="ok",
        claim=claim + ".",
        value=Estimate(value, error, "residual", method_of(last)),
        threshold="",
        meaning=" ".join((_meaning(value, error, edge, known), *(_course(run) if known else ()))),
        advice=(),
        evidence=("gradient-flow",) if len(run.series("gradient_flow", "sharpness")) > 1 else (),
        method=method_of(last),
        citation=CITATION,
    )


def _meaning(value: float, error: float, edge: Record | None, known: bool) -> str:
    if not known:
        return (
            "The curvature still changes where the flow was left, as with cross-entropy on separable data, whose loss "
            "has no minimum to flow to."
        )
    if edge is None or not edge.value or edge.value <= 0:
        return "The curvature that infinitely small steps would lead to. There is no threshold of plain SGD beside it."
    if value - error > (1 + ABOUT) * edge.value:
        return (
            "That is sharper than gradient descent can settle at with this rate: training has to flatten it first. At "
            "the edge of stability each step does, by a little."
        )
    if value + error >= (1 - ABOUT) * edge.value:
        return "That is about the threshold: the run has come to where gradient descent at the edge ends."
    return "That is below the threshold: at this rate gradient descent can follow the flow to its end."


def _course(run: Run) -> list[str]:
    """How it has moved, and for what it is known."""
    said = []
    end = _finite(run.series("gradient_flow", "sharpness"))
    if len(end) > 1 and abs(end.values[-1] - end.values[0]) > float(numpy.nansum(end.errors[[0, -1]])):
        moved = "fallen" if end.values[-1] < end.values[0] else "risen"
        said.append(f"Over the run it has {moved} from {end.values[0]:.4g} to {end.values[-1]:.4g}.")
    said.append(
        "Along gradient descent it never rises: proved for scalar networks, seen in others"
        + ("; the noise of mini-batches moves it on its own." if draws_batches(run) else ".")
    )
    return said


def _at(run: Run, name: str, step: int) -> Record | None:
    one = run.last("gradient_flow", name)
    return one if one is not None and one.step == step else None


def _figure(run: Run) -> list[Figure]:
    end, edge = run.series("gradient_flow", "sharpness"), run.series("gradient_flow", "threshold")
    if len(end) < 2:
        return []
    now = run.series("sharpness", "sharpness")
    now = now if len(now) > 1 else run.series("gradient_flow", "now")
    curves = [Line("end of the flow", end, band=True), Line("λmax now", now, color=palette.SERIES[1])]
    if len(edge) > 1:
        curves.append(Line("threshold", edge, color=palette.EDGE))
    return [
        Figure(
            id="gradient-flow",
            title="Sharpness at the end of gradient flow",
            caption="What gradient flow from each check would end at, beside the sharpness of the moment. Gradient "
            "descent can settle only below the threshold, so an end above it has to come down first.",
            alt=f"Sharpness at the end of gradient flow, from {end.values[0]:.4g} at step {end.steps[0]} to "
            f"{end.values[-1]:.4g} at step {end.steps[-1]}.",
            draw=partial(_draw, curves),
            table=step_table(tuple(curve.label for curve in curves), [curve.series for curve in curves]),
        )
    ]


def _draw(curves: list[Line], canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    # A gap in one curve is not a gap in another: what is missing is left out, so that the rest stays joined.
    whole = [Line(one.label, _finite(one.series), one.band, one.color) for one in curves]
    lines(axes, whole, "curvature", log=wide(whole))


def _finite(one: Series) -> Series:
    kept = numpy.isfinite(one.values)
    return Series(one.steps[kept], one.values[kept], one.errors[kept])
