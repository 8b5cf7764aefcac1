"""Curves that settle on their threshold: its name stands in the legend, for words on the line would be crossed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from matplotlib.axes import Axes

from reports import palette
from reports.charts import Edge, Line, lines

WIDE = 20.0
"""From this factor between largest and smallest value a linear axis hides the small ones."""


def lines_on_edge(
    axes: Axes,
    curves: Sequence[Line],
    ylabel: str,
    edge: Edge,
    *,
    low: Edge | None = None,
    log: bool = False,
    names: bool = True,
) -> None:
    """Curves and a dashed threshold, or two; without ``names`` the legend explains the first threshold alone."""
    lines(axes, curves, ylabel, log=log, legend=False)
    dashed = axes.axhline(edge.value, color=palette.EDGE, linewidth=1.2, linestyle=(0, (5, 2)), label=edge.label)
    if low is not None:
        axes.axhline(low.value, color=palette.EDGE, linewidth=1.2, linestyle=(0, (1, 2)), label=low.label)
    handles = None if names else [dashed]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


FAR = (0.2, 5.0)
"""With the highest ratio outside of these a linear axis shows a flat line, at its bottom or at the edge."""

LEAST = 1e-30
"""Ratios below this, or above its inverse, are no ratios of a run."""

SHOWN = 1e-3
"""A log axis of ratios ends at so much of the highest: below it is a schedule at its end."""


def far_from_edge(ratios: numpy.ndarray) -> bool:
    """Whether ratios to the edge need a log axis."""
    finite = ratios[numpy.isfinite(ratios)]
    if not len(finite) or finite.min() <= 0 or FAR[0] <= finite.max() <= FAR[1]:
        return False
    # Ticks of ratios that no run has, one to its square, would leave no room for the curve.
    return bool(LEAST < finite.max() < 1 / LEAST)


def end_of_log_axis(axes: Axes, ratios: numpy.ndarray) -> None:
    """Leave out what is far below the highest ratio."""
    finite = ratios[numpy.isfinite(ratios)]
    axes.set_ylim(bottom=max(0.7 * float(finite.min()), SHOWN * float(finite.max())))


def wide(curves: Sequence[Line]) -> bool:
    """Whether a log axis is needed: the curves span more than a linear one shows, and all are positive."""
    values = numpy.concatenate([curve.series.values for curve in curves]) if curves else numpy.empty(0)
    finite = values[numpy.isfinite(values)]
    return bool(len(finite) > 0 and finite.min() > 0 and finite.max() > WIDE * finite.min())
