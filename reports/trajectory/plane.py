"""The loss on the plane of the path's two principal directions, with the path drawn over it."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from probes.run import Run
from reports import palette
from reports.charts import contours
from reports.document import Figure, Table


def plane_figure(run: Run) -> list[Figure]:
    """Contours of the loss under the path; nothing where it was not measured."""
    plane, path = (run.last("trajectory", name) for name in ("plane", "plane_path"))
    grid, points = (None if one is None else run.array(one) for one in (plane, path))
    if plane is None or grid is None or points is None or grid.ndim != 2 or points.ndim != 2:
        return []
    losses = grid[1:, 1:]
    if min(losses.shape, default=0) < 2 or not numpy.isfinite(losses).any():
        return []
    rows = tuple(
        (float(grid[i, 0]), float(grid[0, j]), float(grid[i, j]) if numpy.isfinite(grid[i, j]) else None)
        for i in range(1, len(grid))
        for j in range(1, grid.shape[1])
    )
    return [
        Figure(
            id="trajectory-plane",
            title="Loss on the plane of the path",
            caption=f"Contours of the loss on the plane of the two principal directions; {plane.value:.1%} of the "
            "variance of the path lies in it. The dots are the checkpoints' shadows on it, the large one the last. "
            "A shadow's loss is not its checkpoint's, and each axis has a scale of its own.",
            alt=f"Contours of the loss from {numpy.nanmin(losses):.3g} to {numpy.nanmax(losses):.3g}, under a path of "
            f"{points.shape[1]} checkpoints.",
            draw=partial(_draw, grid, points),
            table=Table(("first direction", "second direction", "loss"), rows),
            size=(7.2, 4.6),
        )
    ]


def _draw(grid: numpy.ndarray, points: numpy.ndarray, canvas: Canvas) -> None:
    axes = canvas.subplots()
    contours(axes, grid.T, palette.MUTED)
    axes.plot(points[0], points[1], color=palette.SERIES[0], marker="o", markersize=4)
    axes.plot(points[0, -1:], points[1, -1:], color=palette.SERIES[1], marker="o", markersize=8, linestyle="none")
    axes.set(xlabel="first direction, in units of weights", ylabel="second direction")
