"""The few kinds of drawing that every figure is made of.

Each draws on an empty canvas with colours from ``reports.palette`` only. Lines are labelled at their ends where that
can be read, so that nobody has to match colours against a legend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from probes.run.reader import Series
from reports import palette
from reports.document import curve_id

MOST_COLUMNS = 120
"""More columns than this cannot be told apart in print."""

CONTOURS = 14
"""Of a loss on a plane."""

LONGEST_NAME = 28
"""Longer layer names are cut."""

OTHER_BAND = 0.2
"""Opacity of an error band around another series than the first, in the colour of its line."""


@dataclass(frozen=True)
class Line:
    """One curve: its name, its values, whether to draw its errors as a band, its colour, and whether it is dashed."""

    label: str
    series: Series
    band: bool = False
    color: str = palette.SERIES[0]
    dashed: bool = False


@dataclass(frozen=True)
class Edge:
    """A threshold: a horizontal line with words on it."""

    value: float
    label: str


def lines(
    axes: Axes, curves: Sequence[Line], ylabel: str, *, edge: Edge | None = None, log: bool = False, legend: bool = True
) -> None:
    """Curves over steps, with error bands and a threshold."""
    for curve in curves:
        steps, values = curve.series.steps, curve.series.values
        marker = "o" if len(steps) < 40 else ""
        style = "--" if curve.dashed else "-"
        axes.plot(steps, values, color=curve.color, linestyle=style, marker=marker, markersize=3, label=curve.label)
        errors = curve.series.errors
        if curve.band and numpy.isfinite(errors).any():
            first = curve.color == palette.SERIES[0]
            shade, alpha = (palette.BAND, 1.0) if first else (curve.color, OTHER_BAND)
            band = axes.fill_between(steps, values - errors, values + errors, color=shade, alpha=alpha, linewidth=0)
            band.set(zorder=1, gid=curve_id(curve.label))
    positive = all((curve.series.values[numpy.isfinite(curve.series.values)] > 0).all() for curve in curves)
    if log and positive:
        axes.set_yscale("log")
    if edge is not None:
        _threshold(axes, edge, [curve.series for curve in curves])
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    if legend and len(curves) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


def _threshold(axes: Axes, edge: Edge, series: Sequence[Series]) -> None:
    """A dashed line whose words stand on the side that the curves leave free at its right end."""
    axes.axhline(edge.value, color=palette.EDGE, linewidth=1.2, linestyle=(0, (5, 2)))
    ends = numpy.concatenate([one.values[-max(1, len(one) // 3) :] for one in series])
    above = bool(numpy.nanmedian(ends) < edge.value) if numpy.isfinite(ends).any() else True
    height = float(axes.transAxes.inverted().transform(axes.transData.transform((0.0, edge.value)))[1])
    if not 0.12 < height < 0.88:
        above = height < 0.5
    axes.annotate(
        edge.label,
        xy=(0.995, edge.value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3 if above else -4),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        color=palette.EDGE,
        fontsize=8.5,
    )


def stacked(canvas: Canvas, heights: Sequence[float], axis: str = "optimizer step") -> list[Axes]:
    """Panels above each other that share the steps; only the last is labelled."""
    grid = canvas.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": list(heights)})
    panels = list(grid[:, 0])
    panels[-1].set_xlabel(axis)
    return panels


def heatmap(
    canvas: Canvas,
    names: Sequence[str],
    steps: Sequence[int],
    shares: numpy.ndarray,
    label: str,
    *,
    highest: float = 1.0,
    axis: str = "optimizer step",
) -> None:
    """Shares between 0 and 1, or what lies between 0 and ``highest``, by layer and step; the first layer on top.

    Where there are many steps, neighbours are merged by their maximum.
    """
    axes = canvas.subplots()
    shades = LinearSegmentedColormap.from_list("shares", ["#eef1f6", palette.SERIES[1], palette.LEVEL["fail"]])
    starts = numpy.unique(numpy.linspace(0, len(steps) - 1, min(len(steps), MOST_COLUMNS)).round().astype(int))
    merged = numpy.fmax.reduceat(shares, starts, axis=1)
    steps = [steps[start] for start in starts]
    mesh = axes.imshow(merged, cmap=shades, vmin=0.0, vmax=highest, aspect="auto", interpolation="nearest")
    axes.grid(False)
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    ticks = numpy.unique(numpy.linspace(0, len(steps) - 1, min(7, len(steps))).round().astype(int))
    axes.set_xticks(ticks, [str(steps[tick]) for tick in ticks])
    axes.set_xlabel(axis)
    bar = canvas.colorbar(mesh, ax=axes, pad=0.02, shrink=0.9)
    bar.set_label(label)
    bar.outline.set_visible(False)


def contours(axes: Axes, grid: numpy.ndarray, color: str) -> None:
    """Contours of a loss on a plane, evenly spaced in the logarithm where it is positive.

    Args:
        axes: drawn on.
        grid: (1 + m, 1 + n): the losses, with the places along x in the first row, those along y in the first column.
        color: of the lines.
    """
    losses = numpy.ma.masked_invalid(grid[1:, 1:])
    low, high = float(losses.min()), float(losses.max())
    spaced = numpy.geomspace(low, high, CONTOURS) if low > 0 else numpy.linspace(low, high, CONTOURS)
    axes.grid(False)
    if high > low:
        drawn = axes.contour(grid[0, 1:], grid[1:, 0], losses, levels=spaced, colors=color, linewidths=1.0)
        axes.clabel(drawn, fontsize=7.5, fmt=lambda level: f"{level:.3g}", colors=palette.INK)


def dots(canvas: Canvas, names: Sequence[str], values: Sequence[float], xlabel: str) -> None:
    """One dot per name on a log axis, first on top. Bars would need a zero, and a log axis has none."""
    axes = canvas.subplots()
    axes.plot(values, range(len(names)), marker="o", markersize=5, linestyle="none", color=palette.SERIES[0])
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xscale("log")
    # Sizes that hardly differ should look it.
    if values and max(values) < 2.0 * min(values):
        middle = math.sqrt(min(values) * max(values))
        axes.set_xlim(middle / 2.0, middle * 2.0)
    axes.set_xlabel(xlabel)


def short(name: str) -> str:
    """A name that fits beside a plot. Its end is kept: layers differ there, and begin alike.

    Example:
        >>> short("model.layers.11.self_attn.q_proj.weight")
        '….11.self_attn.q_proj.weight'
    """
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
