"""Reading the rise of the loss within ρ: the sharpness that sharpness-aware minimisation lowers, from below."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate
from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import Chapter, method_of, reason_missing, step_table, unmeasured
from reports.charts import Line, lines, stacked
from reports.document import Figure
from reports.finding import Finding

ID = "ascent/rise"
CITATION = "Foret et al., arXiv 2010.01412; Andriushchenko et al., arXiv 2302.07011"


def read(run: Run) -> Chapter:
    """Finding and figure about the rise of the loss nearby."""
    return Chapter(tuple(_rise(run)), tuple(_figure(run)))


def _rise(run: Run) -> list[Finding]:
    last, rho = run.last("ascent", "rise"), run.last("ascent", "rho")
    if last is None or last.value is None:
        reason = reason_missing(run, "ascent")
        return [] if reason is None else [unmeasured(ID, "The rise of the loss nearby", reason, (), CITATION)]
    within = "within ρ" if rho is None else f"within ρ = {rho.value:g}"
    if "adaptive" in method_of(last):
        within += " of each weight's size"
    if last.value > 0:
        claim = f"The loss rises by at least {last.value:.3g} {within}"
        start = _at(run, "loss", last.step)
        claim += f", from {start:.4g}" if start is not None else ""
    else:
        claim = f"One step up the gradient found no rise of the loss {within}"
    slope = _at(run, "first_order", last.step)
    meaning = "The worst nearby loss, from below: one step up the gradient, so there may be a higher one."
    if slope is not None and 0 < slope < last.value:
        meaning += f" The slope alone would give {slope:.3g}; the rest is curvature."
    return [
        Finding(
            id=ID,
            level="ok",
            claim=f"{claim}, at step {last.step}.",
            value=Estimate(last.value, last.error or 0.0, "residual", method_of(last)),
            threshold="",
            meaning=meaning + " It compares only at the same ρ and with the same loss, and it says nothing about "
            "generalisation: across models and training recipes the two were not seen to go together.",
            advice=(),
            evidence=("ascent-rise",) if len(run.series("ascent", "rise")) > 1 else (),
            method=method_of(last),
            citation=CITATION,
        )
    ]


def _at(run: Run, name: str, step: int) -> float | None:
    """The number of another quantity of the same check."""
    one = run.last("ascent", name)
    return one.value if one is not None and one.step == step else None


def _figure(run: Run) -> list[Figure]:
    rise, loss = run.series("ascent", "rise"), run.series("ascent", "loss")
    if len(rise) < 2:
        return []
    return [
        Figure(
            id="ascent-rise",
            title="Rise of the loss nearby, and the loss",
            caption="Above: the rise found within ρ, a lower bound. Below: the loss that it starts from. It grows with "
            "curvature, and shrinks with the gradient as the loss comes down.",
            alt=f"Rise of the loss within ρ over steps {rise.steps[0]} to {rise.steps[-1]}, from {rise.values[0]:.3g} "
            f"to {rise.values[-1]:.3g}.",
            draw=partial(_draw, rise, loss),
            table=step_table(("rise within ρ", "loss"), (rise, loss)),
            size=(7.2, 4.0),
        )
    ]


def _draw(rise: Series, loss: Series, canvas: Canvas) -> None:
    top, bottom = stacked(canvas, (3, 2))
    positive = rise.values[numpy.isfinite(rise.values)]
    wide = bool(len(positive) and positive.min() > 0 and positive.max() > 10 * positive.min())
    lines(top, [Line("rise", rise)], "rise within ρ", log=wide)
    if not wide and len(positive) and positive.min() >= 0:
        top.set_ylim(bottom=0.0)
    lines(bottom, [Line("loss", loss, color=palette.SERIES[1])], "loss", log=True)
