"""Figures of Hessian spectra: the density over time, its two ends, the layers, and the sharpest directions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from probes.run import Record, Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import step_table
from reports.charts import Line, lines, short, stacked
from reports.document import Figure, Table
from reports.spectrum.charts import MOST_RIDGES, Ridge, waterfall
from reports.words import counted

MOST_LAYERS = 30
"""More rows than this do not fit on a page; the table has them all."""

_TABLE = ("smallest", "largest", "edge", "outliers", "flat_mass", "downward_mass", "effective_rank", "trace")


def figures(run: Run) -> list[Figure]:
    """What can be drawn of what was measured."""
    return [*_density(run), *_ends(run), *_layers(run), *_directions(run)]


# --- density over time ---


def ridges(run: Run) -> list[Ridge]:
    """One for each check whose raw density is there; where a step was measured twice, the later one counts."""
    thresholds = _thresholds(run)
    found: dict[int, Ridge] = {}
    for record in _records(run, "density"):
        raw = run.array(record, axes=3)
        if raw is None or len(raw) != 3 or not numpy.isfinite(raw).all() or not record.value:
            continue
        apart = [one for one in _records(run, "outliers") if one.step == record.step]
        outliers = run.array(apart[-1], axes=2) if apart else None
        ends = [_value_at(run.series("spectrum", name), record.step) for name in ("smallest", "largest")]
        found[record.step] = Ridge(
            record.step,
            raw[0],
            raw[1],
            raw[2],
            int(record.value),
            numpy.empty(0) if outliers is None else outliers[0],
            (ends[0], ends[1]),
            _value_at(thresholds, record.step) if thresholds is not None else float("nan"),
        )
    return [found[step] for step in sorted(found)]


def _density(run: Run) -> list[Figure]:
    every = ridges(run)
    if not every:
        return []
    places = numpy.unique(numpy.linspace(0, len(every) - 1, min(len(every), MOST_RIDGES)).round().astype(int))
    shown = [every[place] for place in places]
    first, last = shown[0], shown[-1]
    marks = ["Dots: smallest and largest eigenvalue"]
    if any(len(ridge.outliers) for ridge in shown):
        marks.append("strokes: eigenvalues apart from the bulk")
    if any(ridge.threshold > 0 for ridge in shown):
        marks.append("dashed: the curvature at which steps stop contracting")
    left_out = f" {len(every) - len(shown)} checks between are left out." if len(shown) < len(every) else ""
    over_time = "one ridge for each check, the first on top" if len(shown) > 1 else f"at step {first.step}"
    return [
        Figure(
            id="spectrum-density",
            title="The Hessian's spectrum over training" if len(shown) > 1 else "The Hessian's spectrum",
            caption=f"How many of {last.dimension:,} eigenvalues lie where, {over_time}; heights are logarithmic. Blue "
            f"curves up, orange down. {', '.join(marks)}.{left_out}",
            alt=f"Density of eigenvalues at {counted(len(shown), 'check')}, steps {first.step} to {last.step}: a tall "
            f"bulk around zero; at the last check it reaches from {last.nodes.min():.3g} to {last.nodes.max():.3g}, "
            f"with {counted(len(last.outliers), 'eigenvalue')} apart from it.",
            draw=partial(_draw_density, shown),
            table=step_table(
                tuple(name.replace("_", " ") for name in _TABLE), [run.series("spectrum", name) for name in _TABLE]
            ),
            size=(7.2, min(8.6, 1.7 + 0.42 * len(shown) + 0.35 * min(len(shown), 4)) if len(shown) > 1 else 2.6),
        )
    ]


def _draw_density(shown: Sequence[Ridge], canvas: Canvas) -> None:
    axes = canvas.subplots()
    waterfall(axes, shown)
    if len(shown) == 1:
        axes.set_yticks([])
        axes.set_ylabel("eigenvalues (log scale)")


def _thresholds(run: Run) -> Series | None:
    """The optimizer's threshold, where it is one on the Hessian's own eigenvalues and not on preconditioned ones."""
    curvature, sharpness = run.series("sharpness", "curvature"), run.series("sharpness", "sharpness")
    same = len(curvature) > 0 and numpy.array_equal(curvature.values, sharpness.values, equal_nan=True)
    return run.series("sharpness", "threshold") if same else None


# --- both ends ---


def _ends(run: Run) -> list[Figure]:
    largest, smallest = run.series("spectrum", "largest"), run.series("spectrum", "smallest")
    if max(_finite(largest), _finite(smallest)) < 2:
        return []
    return [
        Figure(
            id="spectrum-ends",
            title="Largest and smallest eigenvalue",
            caption="Above the sharpest curvature, below the most negative, each with its residual as a band. Negative "
            "curvature close to zero, beside the scale above, means that few steps lead steeply down.",
            alt=f"Two curves over steps. Largest eigenvalue {_from_to(largest)}; smallest {_from_to(smallest)}.",
            draw=partial(_draw_ends, largest, smallest),
            table=step_table(
                ("largest", "its residual", "smallest", "its residual "),
                (largest, _errors(largest), smallest, _errors(smallest)),
            ),
            size=(7.2, 4.0),
        )
    ]


def _draw_ends(largest: Series, smallest: Series, canvas: Canvas) -> None:
    top, bottom = stacked(canvas, (3, 2))
    finite = largest.values[numpy.isfinite(largest.values)]
    wide = len(finite) > 0 and finite.min() > 0 and finite.max() > 20 * finite.min()
    lines(top, [Line("largest", largest, band=True)], "λmax", log=wide)
    if not wide:
        top.set_ylim(bottom=min(0.0, *top.get_ylim()))
    lines(bottom, [Line("smallest", smallest, band=True, color=palette.SERIES[1])], "λmin")
    depths = numpy.abs(smallest.values[numpy.isfinite(smallest.values)])
    if len(depths) and depths.max() > 20 * numpy.median(depths) > 0:
        bottom.set_yscale("symlog", linthresh=depths.max() / 1000)
    bottom.axhline(0.0, color=palette.MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    bottom.set_ylim(top=max(0.0, *bottom.get_ylim()))


# --- layers ---


def _layers(run: Run) -> list[Figure]:
    names = run.layers("spectrum", "top")
    latest = {name: run.last("spectrum", "top", name) for name in names}
    step = max((record.step for record in latest.values() if record is not None), default=-1)
    rows = []
    for name in names:
        cells: list[float | None] = []
        for quantity in ("share", "trace", "top"):
            record = run.last("spectrum", quantity, name)
            there = record is not None and record.step == step
            cells += [record.value, record.error] if there and record is not None else [None, None]
        if cells[-2] is not None:
            rows.append((name, *cells))
    if len(rows) < 2:
        return []
    shown = rows
    if len(rows) > MOST_LAYERS:
        kept = sorted(rows, key=lambda row: -float(row[5] or 0.0))[:MOST_LAYERS]
        shown = [row for row in rows if row in kept]
    sharpest = max(rows, key=lambda row: float(row[5] or 0.0))
    some = f" The {len(shown)} sharpest of {len(rows)} layers." if len(shown) < len(rows) else ""
    return [
        Figure(
            id="spectrum-layers",
            title="Curvature by layer",
            caption=f"Each layer's own block of the Hessian at step {step}, first layer on top: its share of the trace "
            f"of all blocks, and its largest eigenvalue, with their errors.{some}",
            alt=f"{len(rows)} layers; the sharpest is {sharpest[0]} with a largest eigenvalue of {sharpest[5]:.3g}.",
            draw=partial(_draw_layers, shown),
            table=Table(("layer", "share of trace", "±", "trace", "± ", "largest eigenvalue", "±  "), tuple(rows)),
            size=(7.2, 1.5 + 0.24 * len(shown)),
        )
    ]


def _draw_layers(rows: Sequence[tuple[str | float | None, ...]], canvas: Canvas) -> None:
    left, right = canvas.subplots(1, 2, sharey=True)
    for axes, column, label in ((left, 1, "share of the trace"), (right, 5, "largest eigenvalue")):
        values = numpy.array([_nan(row[column]) for row in rows])
        errors = numpy.array([_nan(row[column + 1]) for row in rows])
        axes.errorbar(
            values,
            range(len(rows)),
            xerr=numpy.nan_to_num(errors),
            fmt="o",
            markersize=5,
            color=palette.SERIES[0],
            elinewidth=1.2,
        )
        axes.set_xlabel(label)
        axes.axvline(0.0, color=palette.MUTED, linewidth=0.7)
    if all(_nan(row[5]) > 0 for row in rows) and max(_nan(row[5]) for row in rows) > 50 * min(
        _nan(row[5]) for row in rows
    ):
        right.set_xscale("log")
    left.set_yticks(range(len(rows)), [short(str(row[0])) for row in rows])
    left.set_ylim(len(rows) - 0.4, -0.6)


# --- the sharpest directions ---


def _directions(run: Run) -> list[Figure]:
    named = (
        ("gradient share", "gradient_share"),
        ("curvature kept", "kept_curvature"),
        ("overlap", "overlap"),
    )
    curves = [
        Line(label, series, color=palette.SERIES[place])
        for place, (label, name) in enumerate(named)
        if _finite(series := run.series("spectrum", name))
    ]
    if max((_finite(curve.series) for curve in curves), default=0) < 2:
        return []
    parts = [f"{curve.label} {_from_to(curve.series)}" for curve in curves]
    return [
        Figure(
            id="spectrum-directions",
            title="The sharpest directions",
            caption="Gradient share: how much of the gradient's square lies in them. Curvature kept: how much of the "
            "curvature of the sharpest directions now those of the check before still carry. Overlap: 1 where the two "
            "spaces are the same.",
            alt=f"Curves between 0 and 1 over steps: {'; '.join(parts)}.",
            draw=partial(_draw_directions, curves),
            table=step_table(tuple(curve.label for curve in curves), [curve.series for curve in curves]),
            size=(7.2, 3.0),
        )
    ]


def _draw_directions(curves: Sequence[Line], canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    lines(axes, curves, "share")
    for curve in curves:
        errors = numpy.nan_to_num(curve.series.errors)
        low, high = numpy.clip(curve.series.values - errors, 0, 1), numpy.clip(curve.series.values + errors, 0, 1)
        axes.vlines(curve.series.steps, low, high, color=curve.color, linewidth=1.0)
    axes.set_ylim(-0.02, 1.04)


# --- small things ---


def _records(run: Run, name: str) -> list[Record]:
    return [one for one in run.of("spectrum", name) if one.status == "ok"]


def _value_at(series: Series, step: int) -> float:
    found = series.values[series.steps == step]
    return float(found[-1]) if len(found) else float("nan")


def _finite(series: Series) -> int:
    return int(numpy.isfinite(series.values).sum())


def _errors(series: Series) -> Series:
    return Series(series.steps, series.errors, series.errors)


def _from_to(series: Series) -> str:
    finite = series.values[numpy.isfinite(series.values)]
    return f"from {finite[0]:.3g} to {finite[-1]:.3g}" if len(finite) else "not measured"


def _nan(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
