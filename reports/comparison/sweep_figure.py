"""The sensitivity figure: loss and stability ratio over the learning rate, a curve for each size of model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from reports import palette
from reports.charts import stacked
from reports.comparison.figures import WIDE
from reports.comparison.sweep import Sweep
from reports.document import Figure, Table, curve_id
from reports.words import counted

MOST = len(palette.SERIES)


def sweep_figure(sweeps: Sequence[Sweep]) -> list[Figure]:
    """One figure for all sweeps; none without any."""
    if not sweeps:
        return []
    shown = sweeps[:MOST]
    rows = [
        (one.size or None, point.rate, *_cells(point.final), point.lowest, *_cells(point.ratio), ", ".join(point.runs))
        for one in sweeps
        for point in one.points
    ]
    columns = ("parameters", "learning rate", "late loss", "±", "lowest loss", "stability ratio", "±", "runs")
    ratio = any(point.ratio is not None for one in shown for point in one.points)
    return [
        Figure(
            id="sweep",
            title="Sensitivity to the learning rate",
            caption=f"Late loss ({shown[0].steps}, at their middle), and the lowest of all (dotted), over the rate."
            + (" Below: the stability ratio then; at 1 (dashed) is the edge." if ratio else "")
            + " Rates at which the loss ran away have no point.",
            alt=f"Loss over learning rates from {rows[0][1]:.3g} on, for {counted(len(shown), 'size')} of model.",
            draw=partial(_draw, shown, ratio),
            table=Table(columns, tuple(rows)),
            size=(7.2, 4.6 if ratio else 3.2),
        )
    ]


def _cells(value: object) -> tuple[float | None, float | None]:
    return (getattr(value, "value", None), getattr(value, "error", None))


def _draw(sweeps: Sequence[Sweep], ratio: bool, canvas: Canvas) -> None:
    panels = stacked(canvas, (3, 2) if ratio else (1,))
    for place, one in enumerate(sweeps):
        color, name = palette.SERIES[place], _name(one, len(sweeps))
        finals = [(point.rate, *_cells(point.final)) for point in one.points if point.final is not None]
        _dots(panels[0], finals, name, color)
        lowest = [(point.rate, point.lowest) for point in one.points if point.lowest is not None]
        dotted = f"lowest, {name}" if len(sweeps) > 1 else "lowest loss"
        panels[0].plot(*zip(*lowest, strict=True), color=color, linestyle=":", label=dotted)
        if ratio:
            there = [(point.rate, *_cells(point.ratio)) for point in one.points if point.ratio is not None]
            _dots(panels[1], there, name if len(sweeps) > 1 else "stability ratio", color)
    losses = [float(point.final) for one in sweeps for point in one.points if point.final is not None]
    if min(losses) > 0 and max(losses) > WIDE * min(losses):
        panels[0].set_yscale("log")
    panels[0].set_ylabel("loss")
    panels[0].set_xscale("log")
    panels[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
    if ratio:
        panels[1].axhline(1.0, color=palette.EDGE, linewidth=1.2, linestyle=(0, (5, 2)))
        panels[1].set_ylabel("stability ratio")
    panels[-1].set_xlabel("learning rate")


def _dots(axes: Axes, points: Sequence[tuple[float, float | None, float | None]], name: str, color: str) -> None:
    if not points:
        return
    x, y, errors = (numpy.array(side, dtype=float) for side in zip(*points, strict=True))
    axes.plot(x, y, color=color, marker="o", markersize=4, label=name)
    bars = axes.vlines(x, y - errors, y + errors, color=color, linewidth=1.0)
    bars.set_gid(curve_id(name))


def _name(sweep: Sweep, number: int) -> str:
    return counted(sweep.size, "parameter") if number > 1 and sweep.size else "late loss"
