"""The path in two directions, its steps, and what moved how far."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import step_table
from reports.charts import Line, heatmap, lines, stacked
from reports.document import Figure, Table

MOST_ROWS = 40
NAMED = 7
"""Points of the path with a number on them."""
NEAR = 0.05
"""Of the path's extent; numbers on nearer points would lie on each other."""


def figures(run: Run) -> list[Figure]:
    """Path, steps, displacement by tensor and drift of singular values."""
    return [
        *_path(run),
        *_steps(run),
        *_by_layer(
            run, "relative_displacement", "trajectory-layers", "Displacement by tensor", "‖W − W₀‖/‖W₀‖ since the first"
        ),
        *_by_layer(
            run, "spectral_drift", "trajectory-spectra", "Drift of singular values", "‖σ − σ₀‖/‖σ₀‖ since the first"
        ),
    ]


def _axis(run: Run) -> str:
    return str(run.header.get("axis", "optimizer step"))


def _path(run: Run) -> list[Figure]:
    first, second = (run.series("trajectory", f"{name}_direction") for name in ("first", "second"))
    shares = [run.last("trajectory", f"explained_{name}") for name in ("first", "second")]
    known = [record.value for record in shares if record is not None and record.value is not None]
    if len(first) < 3 or len(first) != len(second) or len(known) < 2:
        return []
    told = f"{known[0]:.1%} and {known[1]:.1%} of the variance of the path lie in them"
    return [
        Figure(
            id="trajectory-path",
            title="The path in its two principal directions",
            caption=f"One point for each checkpoint, in units of weights; {told}, and what is missing to 100% is not "
            f"seen here. Numbers: {_axis(run)}.",
            alt=f"Path of {len(first)} checkpoints in a plane; {told}.",
            draw=partial(_draw_path, first, second, known),
            table=step_table(("first direction", "second direction"), (first, second)),
            size=(7.2, 4.2),
        )
    ]


def _draw_path(first: Series, second: Series, shares: list[float], canvas: Canvas) -> None:
    axes = canvas.subplots()
    axes.plot(first.values, second.values, color=palette.SERIES[0], marker="o", markersize=4)
    axes.plot(
        first.values[-1:], second.values[-1:], color=palette.SERIES[1], marker="o", markersize=8, linestyle="none"
    )
    points = numpy.stack([first.values, second.values], axis=1)
    for place in _apart(points):
        right, up = _beside(points, place)
        axes.annotate(
            f"{first.steps[place]}",
            points[place],
            xytext=(11.0 * right, 11.0 * up),
            textcoords="offset points",
            ha="center",
            va="center",
            color=palette.INK,
            fontsize=8.5,
        )
    # One unit is as long in both directions, so that a turn looks like what it is.
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.08)
    axes.set_xlabel(f"first direction, {shares[0]:.1%} of the variance")
    axes.set_ylabel(f"second direction, {shares[1]:.1%}")


def _beside(points: numpy.ndarray, place: int) -> tuple[float, float]:
    """A direction from a point of the path in which the path does not run: to its outer side, or on from its end."""
    before, after = points[max(0, place - 1)], points[min(len(points) - 1, place + 1)]
    away = 2 * points[place] - before - after
    along = after - before
    side = away if place in (0, len(points) - 1) else numpy.array([-along[1], along[0]])
    length = float(numpy.hypot(*side))
    if not length:
        return 0.0, 1.0
    turned = -1.0 if float(side @ away) < 0 else 1.0
    return float(turned * side[0] / length), float(turned * side[1] / length)


def _apart(points: numpy.ndarray) -> list[int]:
    """The last point, the first, and others between that are not too near to one chosen before."""
    between = numpy.linspace(0, len(points) - 1, min(NAMED, len(points))).round().astype(int)
    span = float(numpy.ptp(points, axis=0).max())
    chosen: list[int] = []
    for place in dict.fromkeys([len(points) - 1, 0, *between.tolist()]):
        if all(numpy.hypot(*(points[place] - points[other])) > NEAR * span for other in chosen):
            chosen.append(place)
    return chosen


def _steps(run: Run) -> list[Figure]:
    displacement, lengths, cosines = (
        run.series("trajectory", name) for name in ("displacement", "step_length", "cosine")
    )
    return [
        Figure(
            id="trajectory-steps",
            title="Displacement and turns",
            caption="Above: distance from the first checkpoint, and length of each step. Below: cosine of each step "
            "with the one before; 1 is straight on, 0 a right angle, −1 straight back."
            if len(cosines)
            else "Distance from the first checkpoint, and length of each step.",
            alt=f"Curves: displacement up to {displacement.values.max():.4g} over {len(displacement)} checkpoints.",
            draw=partial(_draw_steps, displacement, lengths, cosines, _axis(run)),
            table=step_table(("displacement", "step length", "cosine"), (displacement, lengths, cosines)),
            size=(7.2, 4.0 if len(cosines) else 2.6),
        )
    ]


def _draw_steps(displacement: Series, lengths: Series, cosines: Series, axis: str, canvas: Canvas) -> None:
    panels = stacked(canvas, [3, 2] if len(cosines) else [1], axis)
    both = [Line("displacement", displacement), Line("step length", lengths, color=palette.SERIES[1])]
    lines(panels[0], both, "distance")
    if len(cosines):
        lines(panels[1], [Line("cosine", cosines, color=palette.SERIES[2])], "cosine of\nsuccessive steps")
        panels[1].set_ylim(-1.1, 1.1)
        panels[1].axhline(0.0, color=palette.MUTED, linewidth=0.8)


def _by_layer(run: Run, name: str, id: str, title: str, label: str) -> list[Figure]:
    series = {layer: run.series("trajectory", name, layer) for layer in run.layers("trajectory", name)}
    series = {layer: one for layer, one in series.items() if len(one) > 1}
    steps = sorted({int(step) for one in series.values() for step in one.steps})
    if not series:
        return []
    table = Table(
        ("tensor", *(str(step) for step in (steps[1:] if len(steps) <= MOST_ROWS else steps[-1:]))),
        tuple(
            (layer, *(one.values[1:].tolist() if len(steps) <= MOST_ROWS else one.values[-1:].tolist()))
            for layer, one in series.items()
            if len(one) == len(steps)
        ),
    )
    most = sorted(series, key=lambda layer: -float(series[layer].values.max()))[:MOST_ROWS]
    shown = [layer for layer in series if layer in most]
    values = numpy.full((len(shown), len(steps)), numpy.nan)
    for row, layer in enumerate(shown):
        values[row, numpy.searchsorted(steps, series[layer].steps)] = series[layer].values
    highest = float(numpy.nanmax(values))
    left_out = f" The {MOST_ROWS} that moved most of {len(series)}." if len(series) > MOST_ROWS else ""
    return [
        Figure(
            id=id,
            title=title,
            caption=f"{label} checkpoint, first tensor on top; the scale begins at no change.{left_out}",
            alt=f"{title} by step for {len(shown)} tensors; the largest is {highest:.3g}.",
            draw=partial(_draw_layers, shown, steps, values, label, highest, _axis(run)),
            table=table,
            size=(7.2, min(9.0, 1.6 + 0.24 * len(shown))),
        )
    ]


def _draw_layers(
    names: list[str], steps: list[int], values: numpy.ndarray, label: str, highest: float, axis: str, canvas: Canvas
) -> None:
    heatmap(canvas, names, steps, values, label, highest=highest or 1.0, axis=axis)
