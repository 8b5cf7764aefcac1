"""What a page's script reads off a drawing: where its panels are, how their axes run, and the values of their curves.

Only curves with a name are read; the script is told nothing that the drawing does not show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from reports.render.canvas import POINTS
from reports.render.tables import printable

SPANS = 100
"""A curve is thinned to the lowest and the highest value of each of so many spans, so that its spikes stay."""

MOST_CURVES = 12
"""More in one panel cannot be told apart."""

APART = 10.0
"""Highest over lowest from which another scale shows something else."""


def panels(canvas: Canvas) -> list[dict[str, Any]]:
    """The panels of a canvas that was drawn, those that have curves.

    Each has its ``box`` (left, top, right, bottom in points from the upper left), its axes ``x`` and ``y`` (``log``,
    ``from``, ``to``, ``label``) and its ``curves`` (``name``, ``x``, ``y``; None for what is not a number).
    """
    return [_panel(canvas, axes) for axes in canvas.get_axes() if _curves(axes)]


def switchable(canvas: Canvas) -> list[Axes]:
    """Panels whose values may be shown on a logarithmic axis as well as on a linear one."""
    return [axes for axes in canvas.get_axes() if _curves(axes) and _spread(axes)]


def switch(axes: Axes) -> None:
    """A linear axis of values turned logarithmic, and the other way round; limits are found anew."""
    axes.set_yscale("linear" if axes.get_yscale() == "log" else "log")
    axes.autoscale(axis="y")


def thinned(x: numpy.ndarray, y: numpy.ndarray, spans: int = SPANS) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The first and the last point, and the lowest and the highest of each span between.

    Example:
        >>> x = numpy.arange(1000)
        >>> y = numpy.where(x == 617, 50.0, 0.0)
        >>> len(thinned(x, y)[0]), float(thinned(x, y)[1].max())
        (102, 50.0)
    """
    if len(x) <= 2 * spans:
        return x, y
    kept = {0, len(x) - 1}
    for span in numpy.array_split(numpy.arange(len(x)), spans):
        finite = span[numpy.isfinite(y[span])]
        if len(finite):
            kept |= {int(finite[y[finite].argmin()]), int(finite[y[finite].argmax()])}
    places = sorted(kept)
    return x[places], y[places]


def _curves(axes: Axes) -> list[Line2D]:
    # An index on a categorical axis is no value.
    named = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_") and line.get_visible()]
    return [line for line in named if len(numpy.atleast_1d(line.get_xdata())) > 1][:MOST_CURVES]


def _spread(axes: Axes) -> bool:
    if axes.get_yscale() not in ("linear", "log") or axes.get_images() or axes.yaxis_inverted():
        return False
    values = numpy.concatenate([numpy.asarray(line.get_ydata(), dtype=float) for line in _curves(axes)])
    finite = values[numpy.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() > APART * finite.min())


def _panel(canvas: Canvas, axes: Axes) -> dict[str, Any]:
    height = canvas.get_figheight() * POINTS
    box = axes.get_window_extent()
    beneath = [other for other in canvas.get_axes() if axes.get_shared_x_axes().joined(axes, other)]
    label = next((name for other in (axes, *beneath) if (name := other.get_xlabel())), "")
    return {
        "box": [round(float(edge), 1) for edge in (box.x0, height - box.y1, box.x1, height - box.y0)],
        "x": {**_axis(axes.xaxis, axes.get_xlim()), "label": printable(label)},
        "y": {**_axis(axes.yaxis, axes.get_ylim()), "label": printable(axes.get_ylabel())},
        "curves": [_curve(line) for line in _curves(axes)],
    }


def _axis(axis: Axis, limits: Sequence[float]) -> dict[str, Any]:
    return {"scale": axis.get_scale(), "from": float(limits[0]), "to": float(limits[1])}


def _curve(line: Line2D) -> dict[str, Any]:
    x, y = (numpy.asarray(side, dtype=float) for side in (line.get_xdata(), line.get_ydata()))
    x, y = thinned(x, y)
    return {"name": printable(str(line.get_label())), "x": _plain(x), "y": _plain(y)}


def _plain(values: numpy.ndarray) -> list[float | int | None]:
    """Five digits of each; whole numbers whole."""
    return [_number(float(value)) for value in values]


def _number(value: float) -> float | int | None:
    if not numpy.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.5g}")
