"""Reading slices of the loss. Nothing is alleged: a slice shows one or two of all directions, and that is said."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import exact
from probes.run import Record, Run
from reports import palette
from reports.chapter import Chapter, method_of, reason_missing, unmeasured
from reports.charts import contours
from reports.document import Figure, Table
from reports.finding import Finding

ID = "landscape/slices"
CITATION = "Li et al., arXiv 1712.09913; Goodfellow et al., arXiv 1412.6544"
LINES = ("random", "sharpest", "second sharpest")


def read(run: Run) -> Chapter:
    """Finding and figures about the loss around the parameters."""
    found = {
        name: (record, values)
        for name in LINES
        if (record := run.last("landscape", "along", name)) is not None and (values := _line(run, record)) is not None
    }
    plane = run.last("landscape", "plane")
    grid = None if plane is None else run.array(plane)
    if not found:
        reason = reason_missing(run, "landscape")
        return Chapter() if reason is None else Chapter((unmeasured(ID, "Loss slices", reason, (), CITATION),))
    figures = [_lines(run, found)]
    if plane is not None and grid is not None and grid.ndim == 2 and min(grid.shape) > 3:
        figures.append(_plane(grid))
    record, values = found.get("random") or next(iter(found.values()))
    where = "a random filter-normalised direction" if "random" in found else "the sharpest direction"
    low, high = _ends(values)
    finding = Finding(
        id=ID,
        level="ok",
        claim=f"Along {where} the loss is {low:.4g} and {high:.4g} at the ends, {record.value:.4g} at the parameters.",
        value=exact(record.value or 0.0, method_of(record)),
        threshold="",
        meaning="A slice shows the loss in one or two of all directions, and far from the parameters: how wide a "
        "valley looks is mostly how far the line goes. The lines along the sharpest directions show how far the loss "
        "follows its curvature; the eigenvalues say how steep it is here.",
        advice=(),
        evidence=tuple(figure.id for figure in figures),
        method=method_of(record),
        citation=CITATION,
    )
    return Chapter((finding,), tuple(figures))


def _line(run: Run, record: Record) -> numpy.ndarray | None:
    values = run.array(record)
    if values is None or values.ndim != 2 or len(values) != 2 or values.shape[1] < 3:
        return None
    return values if numpy.isfinite(values[1]).any() else None


def _ends(values: numpy.ndarray) -> tuple[float, float]:
    finite = values[1][numpy.isfinite(values[1])]
    return (float(finite[0]), float(finite[-1])) if len(finite) else (float("nan"), float("nan"))


def _lines(run: Run, found: dict[str, tuple[Record, numpy.ndarray]]) -> Figure:
    curves = {}
    for name, (_, values) in found.items():
        far = run.last("landscape", "distance", name)
        curves[name if far is None else f"{name}, to {far.value:.3g}"] = values
    rows = [
        (name, float(alpha), float(loss) if numpy.isfinite(loss) else None)
        for name, values in curves.items()
        for alpha, loss in values.T
    ]
    return Figure(
        id="landscape-lines",
        title="Loss along lines through the parameters",
        caption="At 0 the parameters themselves. At 1 the random direction is as long as the weights, filter by "
        "filter; along the sharpest ones a parabola of their curvature has risen to five times the loss. The legend "
        "has the distances.",
        alt=f"Loss along {len(curves)} lines: {'; '.join(curves)}.",
        draw=partial(_draw_lines, curves),
        table=Table(("direction", "distance", "loss"), tuple(rows)),
    )


def _draw_lines(found: dict[str, numpy.ndarray], canvas: Canvas) -> None:
    axes = canvas.subplots()
    for place, (name, values) in enumerate(found.items()):
        axes.plot(values[0], values[1], color=palette.SERIES[place], label=name)
    axes.axvline(0.0, color=palette.MUTED, linewidth=0.8)
    axes.set(xlabel="distance along the line", ylabel="loss")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


def _plane(grid: numpy.ndarray) -> Figure:
    rows = tuple(
        (float(grid[i, 0]), float(grid[0, j]), float(grid[i, j]) if numpy.isfinite(grid[i, j]) else None)
        for i in range(1, len(grid))
        for j in range(1, grid.shape[1])
    )
    return Figure(
        id="landscape-plane",
        title="Loss on a plane through the parameters",
        caption="Two random filter-normalised directions; the cross marks the parameters. Contours are evenly spaced "
        "in the logarithm where the loss is positive.",
        alt=f"Contours of the loss on a plane, from {numpy.nanmin(grid[1:, 1:]):.3g} to "
        f"{numpy.nanmax(grid[1:, 1:]):.3g}.",
        draw=partial(_draw_plane, grid),
        table=Table(("first direction", "second direction", "loss"), rows),
        size=(7.2, 5.0),
    )


def _draw_plane(grid: numpy.ndarray, canvas: Canvas) -> None:
    axes = canvas.subplots()
    contours(axes, grid, palette.SERIES[0])
    axes.plot(0.0, 0.0, marker="+", markersize=10, color=palette.EDGE, linestyle="none")
    axes.set(xlabel="second direction", ylabel="first direction", aspect="equal")
