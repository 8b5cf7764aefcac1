"""Reading batch sharpness: the curvature that mini-batches meet along their own gradients, beside λmax.

The verdict that is taken from it is that on stability (``sharpness/regime``). What is said here is how much of it is
noise: how far batch sharpness and λmax are apart.
"""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate, format_value
from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import Chapter, method_of, reason_missing, step_table, unmeasured
from reports.charts import Edge, Line, stacked
from reports.document import Figure
from reports.finding import Finding
from reports.stability.context import small_batch_edge
from reports.stability.deciding import batch_size, deciding, ratios
from reports.stability.edge_lines import end_of_log_axis, far_from_edge, lines_on_edge

ID = "batch_sharpness/noise"
CITATION = "Andreyev & Beneventano, arXiv 2412.20553"


def read(run: Run) -> Chapter:
    """Finding and figure about batch sharpness."""
    finding = _noise(run)
    return Chapter(() if finding is None else (finding,), tuple(_figures(run)))


def _noise(run: Run) -> Finding | None:
    last = run.last("batch_sharpness", "value") or run.last("batch_sharpness", "ratio")
    if last is None or last.value is None:
        reason = reason_missing(run, "batch_sharpness")
        advice = ("An Objective (model, loss, data), a batch size below its examples, and the optimizer are needed.",)
        return None if reason is None else unmeasured(ID, "Batch sharpness", reason, advice, CITATION)
    size = batch_size(run)
    what = "Batch sharpness" if last.name == "value" else "Batch sharpness over the edge"
    claim = f"{what} is {format_value(last.value, last.error)}"
    claim += f" for batches of {size:,}, at step {last.step}" if size else f" at step {last.step}"
    whole = run.last("sharpness", "sharpness")
    if last.name == "value" and whole is not None and whole.value and whole.value > 0:
        claim += f", {last.value / whole.value:.2g} times λmax"
    noise = run.last("batch_sharpness", "noise_interaction")
    meaning = (
        "The curvature of a batch's own loss along its own gradient, averaged over batches. It grows as batches get "
        "smaller, and it is what settles at the edge in mini-batch training, while λmax stays below."
    )
    if noise is not None and noise.value is not None:
        meaning += (
            f" The noise interaction E[g_BᵀHg_B]/‖∇L‖² is {format_value(noise.value, noise.error)}: where it is above "
            "2/η, the average SGD step no longer lowers the whole loss. Near a minimum it is large all the same."
        )
    momentum = run.last("batch_sharpness", "momentum")
    if momentum is not None and momentum.value is not None:
        meaning += (
            f" Along the steps that momentum takes, E[sᵀH_Bs/(s·g_B)] is "
            f"{format_value(momentum.value, momentum.error)}: at 2/η such a step leaves its batch's loss as it was."
        )
    return Finding(
        id=ID,
        level="ok",
        claim=claim + ".",
        value=Estimate(last.value, last.error or 0.0, "standard error", method_of(last)),
        threshold="",
        meaning=meaning,
        advice=(),
        evidence=("batch-sharpness",) if len(run.series("batch_sharpness", "ratio")) > 1 else (),
        method=method_of(last),
        citation=CITATION,
    )


def _figures(run: Run) -> list[Figure]:
    batch, whole = ratios(run, "batch_sharpness"), ratios(run, "sharpness")
    if len(batch) < 2:
        return []
    curves = [Line("batch sharpness", batch, band=True)]
    if len(whole) > 1:
        curves.append(Line("λmax", whole, color=palette.SERIES[1]))
    decided = deciding(run)
    small = None if decided is None else small_batch_edge(run, decided)
    low = None if small is None else Edge(small, f"edge of small\nbatches, {small:.2g}")
    dotted = "" if small is None else f" With momentum small batches settle at (1−β)/(1+β), {small:.2g} (dotted)."
    return [
        Figure(
            id="batch-sharpness",
            title="Batch sharpness and λmax against the edge",
            caption="Both over the curvature at which steps stop contracting (dashed). Under mini-batches batch "
            "sharpness is the one that settles there; λmax stays below. The band is one standard error." + dotted,
            alt=f"Batch sharpness over its edge, steps {batch.steps[0]} to {batch.steps[-1]}, from "
            f"{batch.values[0]:.3g} to {batch.values[-1]:.3g}"
            + (f"; λmax from {whole.values[0]:.3g} to {whole.values[-1]:.3g}." if len(whole) > 1 else "."),
            draw=partial(_draw, curves, low),
            table=step_table(
                ("batch sharpness ratio", "its error", "λmax ratio"),
                (batch, Series(batch.steps, batch.errors, batch.errors), whole),
            ),
        )
    ]


def _draw(curves: list[Line], low: Edge | None, canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    values = numpy.concatenate([curve.series.values for curve in curves])
    finite = values[numpy.isfinite(values)]
    wild = far_from_edge(values)
    shown = [Line(one.label, one.series, one.band and not wild, one.color) for one in curves]
    lines_on_edge(axes, shown, "over the edge", Edge(1.0, "edge of stability"), low=low, log=wild)
    if wild:
        end_of_log_axis(axes, values)
    else:
        axes.set_ylim(bottom=min(0.0, float(finite.min())) if len(finite) else 0.0)
