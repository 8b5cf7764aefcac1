"""The main series of each chapter, overlaid: one curve per run, the same colour and name in every figure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from functools import partial

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from probes.run.reader import Series
from reports import palette
from reports.chapter import step_table
from reports.charts import Edge, Line, lines, stacked
from reports.comparison.contender import Contender
from reports.comparison.estimating import finite
from reports.comparison.matched_loss import smoothed
from reports.comparison.quantities import Compared
from reports.document import Figure, Table
from reports.words import counted

CAPTIONS = {
    "Loss": "Lower is better, where loss and examples are the same.",
    "Stability": "At 1 (dashed) steps stop contracting along the sharpest direction. Curvature itself compares only "
    "between runs of the same loss.",
    "Gradients": "Examples that a gradient needs before it is mostly signal, and whether examples agree.",
    "Steps": "How far a step moves the weights, the middle one of the layers.",
    "Units": "Of the units of all layers. Dead ones are silent on every example, dormant ones nearly so.",
    "Features": "What the activations of the layers span, the middle one of the layers.",
    "Logged by the loop": "As passed to monitor.log.",
}
EDGES = {
    "stability ratio": Edge(1.0, "edge of stability"),
    "batch sharpness ÷ threshold": Edge(1.0, "edge of stability"),
    "relative update": Edge(1e-3, "customary"),
}
WIDE = 20.0
"""Highest over lowest from which a logarithmic axis shows more."""

MOST_PANELS = 5
LABEL = 18
"""Letters of an axis label in one line."""


def overlaid(runs: Sequence[Contender], quantities: Sequence[Compared]) -> list[Figure]:
    """One figure for each theme, with a panel for each quantity in it."""
    figures = []
    for theme in dict.fromkeys(one.quantity.theme for one in quantities):
        drawn = [one for one in quantities if one.quantity.theme == theme and any(len(part) > 1 for part in one.series)]
        if drawn:
            figures.append(_figure(theme, runs, drawn))
    return figures


def figure_id(theme: str) -> str:
    """The id of a theme's figure.

    Example:
        >>> figure_id("Logged by the loop")
        'runs-logged-by-the-loop'
    """
    return "runs-" + re.sub(r"[^a-z]+", "-", theme.lower())


def _figure(theme: str, runs: Sequence[Contender], quantities: Sequence[Compared]) -> Figure:
    shown = quantities[:MOST_PANELS]
    columns = [
        (f"{one.quantity.name}, {run.name}", series)
        for one in quantities
        for run, series in zip(runs, one.series, strict=True)
        if len(series)
    ]
    left_out = f" {len(quantities) - len(shown)} more are in the table." if len(quantities) > len(shown) else ""
    named = ", ".join(one.quantity.name for one in shown)
    return Figure(
        id=figure_id(theme),
        title=theme,
        caption=CAPTIONS[theme] + left_out,
        alt=f"{counted(len(shown), 'panel')} over steps with a curve for each of {counted(len(runs), 'run')}: {named}.",
        draw=partial(_draw, runs, shown),
        table=step_table([name for name, _ in columns], [series for _, series in columns]),
        size=(7.2, 0.9 + 0.25 * _rows(runs) + 1.55 * len(shown)),
    )


def _draw(runs: Sequence[Contender], quantities: Sequence[Compared], canvas: Canvas) -> None:
    panels = stacked(canvas, [1] * len(quantities))
    for panel, one in zip(panels, quantities, strict=True):
        curves = [
            Line(run.name, series, color=run.color, dashed=run.dashed)
            for run, series in zip(runs, one.series, strict=True)
            if len(series)
        ]
        label = textwrap.fill(one.quantity.name, LABEL)
        name = one.quantity.name
        lines(panel, curves, label, edge=EDGES.get(name), log=one.quantity.log and _wide(one.series), legend=False)
    _legend(canvas, panels, runs)


def _wide(series: Sequence[Series]) -> bool:
    values = numpy.concatenate([one.values[numpy.isfinite(one.values)] for one in series])
    return bool(len(values) and values.min() > 0 and values.max() > WIDE * values.min())


def _columns(runs: Sequence[Contender]) -> int:
    return max(1, min(len(runs), 84 // (6 + max(len(run.name) for run in runs))))


def _rows(runs: Sequence[Contender]) -> int:
    return -(-len(runs) // _columns(runs))


def _legend(canvas: Canvas, panels: Sequence[Axes], runs: Sequence[Contender]) -> None:
    """The runs by name, once, above all panels."""
    handles = {str(line.get_label()): line for panel in panels for line in panel.get_lines()}
    shown = [run.name for run in runs if run.name in handles]
    canvas.legend([handles[name] for name in shown], shown, loc="outside upper left", ncols=_columns(runs))


AT_LOSS = ("stability ratio", "sharpness λmax", "noise scale", "relative update", "effective rank of features")
"""What is drawn against the loss, where it was measured."""


def against_loss(runs: Sequence[Contender], quantities: Sequence[Compared]) -> list[Figure]:
    """What the runs are like at each loss that they pass, whichever of them gets there first."""
    loss = next((one for one in quantities if one.quantity.theme == "Loss"), None)
    chosen = [one for one in quantities if one.quantity.name in AT_LOSS][:3]
    if loss is None or loss.quantity.better is None or not chosen:
        return []
    paths = [[_path(*pair) for pair in zip(loss.series, one.series, strict=True)] for one in chosen]
    if any(sum(len(path[0]) > 1 for path in panel) < 2 for panel in paths):
        return []
    rows = [
        (run.name, one.quantity.name, float(x), float(y))
        for one, panel in zip(chosen, paths, strict=True)
        for run, path in zip(runs, panel, strict=True)
        for x, y in zip(*path, strict=True)
    ]
    named = ", ".join(one.quantity.name for one in chosen)
    return [
        Figure(
            id="runs-at-the-same-loss",
            title="At the same loss",
            caption=f"{named[0].upper()}{named[1:]}, over the smoothed loss, which falls to the right. Where curves "
            "lie upon each other, what differs at equal steps is only how far the runs have come.",
            alt=f"{counted(len(chosen), 'panel')} over falling loss, a curve for each run: {named}.",
            draw=partial(_draw_against, runs, chosen, paths, loss.quantity.name),
            table=Table(("run", "quantity", "loss", "value"), tuple(rows)),
            size=(7.2, 0.9 + 0.25 * _rows(runs) + 1.6 * len(chosen)),
        )
    ]


def _path(loss: Series, series: Series) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Smoothed loss and value at the steps where both are known."""
    level, known = smoothed(loss), finite(series)
    if not len(level) or not len(known):
        return numpy.array([]), numpy.array([])
    inside = (known.steps >= level.steps[0]) & (known.steps <= level.steps[-1])
    return numpy.interp(known.steps[inside], level.steps, level.values), known.values[inside]


def _draw_against(
    runs: Sequence[Contender],
    quantities: Sequence[Compared],
    paths: Sequence[Sequence[tuple[numpy.ndarray, numpy.ndarray]]],
    name: str,
    canvas: Canvas,
) -> None:
    panels = stacked(canvas, [1] * len(quantities))
    for panel, one, curves in zip(panels, quantities, paths, strict=True):
        for run, (x, y) in zip(runs, curves, strict=True):
            if len(x) > 1:
                style = "--" if run.dashed else "-"
                panel.plot(x, y, color=run.color, linestyle=style, label=run.name, linewidth=1.2)
        panel.set_ylabel(textwrap.fill(one.quantity.name, LABEL))
        values = numpy.concatenate([y for _, y in curves])
        if one.quantity.log and values.min() > 0 and values.max() > WIDE * values.min():
            panel.set_yscale("log")
        if edge := EDGES.get(one.quantity.name):
            panel.axhline(edge.value, color=palette.EDGE, linewidth=1.2, linestyle=(0, (5, 2)))
    losses = numpy.concatenate([x for panel_paths in paths for x, _ in panel_paths])
    if losses.min() > 0:
        panels[-1].set_xscale("log")
    panels[-1].invert_xaxis()
    panels[-1].set_xlabel(name)
    _legend(canvas, panels, runs)
