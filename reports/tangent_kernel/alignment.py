"""Reading alignment: how well the kernel fits the targets, as a whole and layer by layer."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate
from probes.run import Run
from reports import palette
from reports.chapter import method_of, step_table, unmeasured
from reports.charts import Line, lines, short, stacked
from reports.document import Figure
from reports.finding import Finding

ID = "tangent_kernel/alignment"
PROBE = "tangent_kernel"
CITATION = "Baratin et al., arXiv 2008.00938; Lou et al., arXiv 2110.11749"

MOST = 6
"""Layers in a figure, as many as there are colours: the first, the last, and those between that are aligned most."""

LEAST = 0.1
"""Of alignment, from the bottom of the figure to its top."""


def alignment(run: Run) -> list[Finding]:
    """How the kernel came to fit the targets; nothing is alleged."""
    last = run.last(PROBE, "alignment")
    if last is None or last.value is None:
        reason = _reason(run)
        what = "The alignment of the tangent kernel"
        return [] if reason is None else [unmeasured(ID, what, reason, (), CITATION)]
    series = run.series(PROBE, "alignment")
    claim = f"The tangent kernel is aligned with the targets by {last.value:.2f} at step {last.step}"
    if len(series) > 1:
        claim = (
            f"Alignment of the tangent kernel with the targets went from {series.values[0]:.2f} to {last.value:.2f} "
            f"in {int(series.steps[-1] - series.steps[0]):,} steps"
        )
    best = _best(run, last.step)
    if best is not None:
        claim += f"; the layer with the best aligned part is {short(best[0])} ({best[1]:.2f})"
    unbiased, energy = (_same_step(run, name, last.step) for name in ("alignment_unbiased", "label_energy"))
    meaning = (
        "1 where the kernel knows nothing but the targets. It grows as features come to hold what the targets need, "
        "and targets along the largest modes are learned first."
    )
    if unbiased is not None:
        meaning += (
            f" Without pairs of an example with itself it is {unbiased:.2f}, and 0 for a kernel without structure."
        )
    if energy is not None:
        record = run.last(PROBE, "label_energy")
        assert record is not None
        meaning += f" {energy:.0%} is the {str(record.note).partition(';')[0]}."
    return [
        Finding(
            id=ID,
            level="ok",
            claim=f"{claim}.",
            value=Estimate(last.value, last.error or 0.0, "standard error" if last.error else "exact", method_of(last)),
            threshold="",
            meaning=meaning,
            advice=(),
            evidence=(*(("kernel-alignment",) if len(series) > 1 else ()), "kernel-matrix"),
            method=method_of(last),
            citation=CITATION,
        )
    ]


def _reason(run: Run) -> str | None:
    """Why there is no alignment: other numbers are missing for reasons of their own."""
    named = ("alignment", "distance", "measurement")
    silent = [one for one in run.records if (one.probe, one.name in named) == (PROBE, True) and one.status != "ok"]
    notes = [str(one.note) for one in silent if one.note]
    return notes[-1].rstrip(".") if notes else None


def _best(run: Run, step: int) -> tuple[str, float] | None:
    """The layer whose part is aligned best, where there are several."""
    found = {layer: run.last(PROBE, "alignment", layer) for layer in run.layers(PROBE, "alignment")}
    values = {layer: one.value for layer, one in found.items() if one and one.value is not None and one.step == step}
    if len(values) < 2:
        return None
    layer = max(values, key=lambda name: values[name])
    return layer, values[layer]


def _same_step(run: Run, name: str, step: int) -> float | None:
    record = run.last(PROBE, name)
    return record.value if record is not None and record.step == step else None


def figure(run: Run) -> list[Figure]:
    """Alignment over steps: the whole kernel, and the parts of its layers."""
    whole = run.series(PROBE, "alignment")
    if len(whole) < 2:
        return []
    layers = run.layers(PROBE, "alignment")
    shown = _shown(run, layers)
    curves = [Line("whole kernel", whole, color=palette.INK)]
    curves += [
        Line(short(layer), run.series(PROBE, "alignment", layer), color=palette.SERIES[place])
        for place, layer in enumerate(shown)
    ]
    left = len(layers) - len(shown)
    return [
        Figure(
            id="kernel-alignment",
            title="Alignment of the tangent kernel with the targets, by layer",
            caption="Centred alignment (CKA) of the kernel, and of the part that each layer makes of it, with the "
            "kernel of the targets. Parts that rise belong to layers whose features have come to serve the targets."
            + (f" {left} layers are left out." if left else ""),
            alt=f"Alignment over steps {whole.steps[0]} to {whole.steps[-1]}, from {whole.values[0]:.3g} to "
            f"{whole.values[-1]:.3g}.",
            draw=partial(_draw, curves),
            table=step_table(
                ("whole kernel", *layers), [whole, *(run.series(PROBE, "alignment", layer) for layer in layers)]
            ),
        )
    ]


def _shown(run: Run, layers: list[str]) -> list[str]:
    """The first, the last, and those between that end highest; in order."""
    if len(layers) <= MOST:
        return layers
    inner = layers[1:-1]
    ends = [run.series(PROBE, "alignment", layer).values for layer in inner]
    order = numpy.argsort([-float(values[-1]) if len(values) else 0.0 for values in ends], kind="stable")
    chosen = {layers[0], layers[-1], *(inner[place] for place in order[: MOST - 2])}
    return [layer for layer in layers if layer in chosen]


def _draw(curves: list[Line], canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    lines(axes, curves, "alignment")
    low, high = axes.get_ylim()
    # What hardly moves shall look so.
    wider = max(0.0, LEAST - (high - low)) / 2
    axes.set_ylim(low - wider, high + wider)
