"""Reading the size of updates: how far a step moves each matrix, beside its norm."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import exact
from probes.run import Run
from reports.chapter import method_of, step_table
from reports.charts import Edge, Line, lines, short, stacked
from reports.document import Figure
from reports.finding import Finding
from reports.learning_rate.rates import last_at_rate
from reports.learning_rate.tensor_curves import curves, matrices, spread_over_depth
from reports.words import counted

CITATION = "Stanford CS231n notes, 'Ratio of weights:updates'; Kosson et al., arXiv 2305.17212"

LARGE_UPDATE = 0.1
SMALL_UPDATE = 1e-6
NO_ADVICE: tuple[str, ...] = ()


def update_size(run: Run) -> list[Finding]:
    """Whether steps are of a usual size for the weights they change."""
    names = matrices(run, "relative_update")
    series = {name: run.series("learning_rate", "relative_update", name) for name in names}
    step = last_at_rate(run, {int(step) for one in series.values() for step in one.steps})
    sizes: dict[str, float] = {}
    for name, one in series.items():
        at_step = one.values[one.steps == step]
        if len(at_step) and at_step[0] > 0:
            sizes[name] = float(at_step[0])
    if not sizes:
        return []
    largest = max(sizes, key=lambda name: sizes[name])
    middle = float(numpy.median(list(sizes.values())))
    record = run.last("learning_rate", "relative_update", largest)
    claim = f"Step {step} moved weight matrices by {middle:.2g} of their norm (median of {len(sizes)})"
    meaning, advice = "Steps are of a usual size for the weights they change.", NO_ADVICE
    if sizes[largest] > LARGE_UPDATE:
        claim += f", and {short(largest)} by {sizes[largest]:.2g}"
        meaning = (
            "A step that replaces a tenth of a matrix undoes what was learnt before. It is common in the first steps "
            "and harmful after."
        )
        advice = ("Lower the learning rate, for this group at least.", "Lengthen the warm-up.")
    elif middle < SMALL_UPDATE:
        meaning = "At this size a weight would need a million steps to change by its own length: training stands still."
        advice = (
            "See first that gradients arrive: dead units and detached layers stop updates too.",
            "Then raise the learning rate.",
        )
    return [
        Finding(
            id="learning_rate/update_size",
            level="warn" if advice else "ok",
            claim=claim + ".",
            value=exact(middle, method_of(record)),
            threshold=f"about 10⁻³ is customary; above {LARGE_UPDATE:g} or below 10⁻⁶ is reported",
            meaning=meaning,
            advice=advice,
            evidence=("update-size",) if len(series[largest]) > 1 else (),
            method=method_of(record),
            citation=CITATION,
        )
    ]


def update_figure(run: Run) -> list[Figure]:
    """Relative updates over steps, for a few tensors."""
    names = matrices(run, "relative_update")
    series = {name: one for name in names if len(one := run.series("learning_rate", "relative_update", name)) > 1}
    if not series:
        return []
    shown, few = spread_over_depth(list(series))
    return [
        Figure(
            id="update-size",
            title="Size of updates",
            caption="Norm of the realised step over the norm of the tensor. Around 10⁻³ (dashed) is customary." + few,
            alt=f"Size of updates over steps for {counted(len(shown), 'tensor')}, log scale.",
            draw=partial(_draw, curves({name: series[name] for name in shown})),
            table=step_table(shown, [series[name] for name in shown]),
        )
    ]


def _draw(drawn: list[Line], canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    lines(axes, drawn, "relative update", edge=Edge(1e-3, "customary"), log=True)
