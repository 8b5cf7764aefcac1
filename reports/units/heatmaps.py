"""Heat maps of units: the share of a layer's units that each kind has taken, over steps."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from probes.run import Run
from reports.charts import heatmap
from reports.document import Figure, Table
from reports.units.kinds import KINDS, NOTABLE


def figures(run: Run, layers: list[str]) -> list[Figure]:
    """One for each kind of which there is enough to see."""
    figures = []
    for kind in KINDS:
        steps = sorted({int(step) for layer in layers for step in run.series("units", kind.name, layer).steps})
        shares = numpy.full((len(layers), len(steps)), numpy.nan)
        for row, layer in enumerate(layers):
            counts, totals = run.series("units", kind.name, layer), run.series("units", "units", layer)
            if len(counts) == len(totals):
                with numpy.errstate(all="ignore"):
                    shares[row, numpy.searchsorted(steps, counts.steps)] = counts.values / totals.values
        if len(steps) < 2 or not (shares >= NOTABLE / 5).any():
            continue
        figures.append(
            Figure(
                id=f"units-{kind.name}",
                title=f"Share of {kind.word} units",
                caption=f"By non-linearity, first layer on top: units that {kind.condition}.",
                alt=f"Share of {kind.word} units by layer and step; the highest is {numpy.nanmax(shares):.0%}.",
                draw=partial(_draw, layers, steps, shares, f"{kind.word} share"),
                table=_table(layers, steps, shares),
                size=(7.2, min(9.0, 1.6 + 0.24 * len(layers))),
            )
        )
    return figures


def _table(layers: list[str], steps: list[int], shares: numpy.ndarray) -> Table:
    """Where each layer began, stood highest, and ended."""
    rows = []
    for layer, row in zip(layers, shares, strict=True):
        measured = numpy.flatnonzero(numpy.isfinite(row))
        if len(measured):
            highest = int(measured[numpy.argmax(row[measured])])
            rows.append((layer, row[measured[0]], row[highest], steps[highest], row[measured[-1]]))
    return Table(("layer", "first", "highest", "at step", "last"), tuple(rows))


def _draw(layers: list[str], steps: list[int], shares: numpy.ndarray, label: str, canvas: Canvas) -> None:
    heatmap(canvas, layers, steps, shares, label)
