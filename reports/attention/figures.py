"""Figures of attention: how concentrated each head is, the largest logits, and log Z, over steps."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from probes.run import Run
from reports import palette
from reports.attention.logits import CAPPED, PROBE
from reports.chapter import step_table
from reports.charts import Edge, Line, heatmap, lines, short, stacked
from reports.document import Figure, Table

MOST_ROWS = 48
"""Heads that a heat map can show; with more of them, each row is the most concentrated head of an attention."""

MOST_CURVES = 6


def figures(run: Run) -> list[Figure]:
    """What changed over steps; one measurement alone makes no figure."""
    return [*_concentration(run), *_logits(run), *_log_z(run)]


def _concentration(run: Run) -> list[Figure]:
    names, steps, shares = by_head(run, "relative_entropy")
    if len(steps) < 2:
        return []
    shares = 1.0 - shares
    what = "head" if len(names) != len(run.layers(PROBE, "heads")) else "attention, its most concentrated head"
    return [
        Figure(
            id="attention-concentration",
            title="How concentrated attention is",
            caption=f"By {what}, first layer on top: 0 is even attention to all allowed keys, 1 is one key for each "
            "query (one minus the entropy over its maximum, mean over queries).",
            alt=f"Concentration of {len(names)} rows by step; the highest is {numpy.nanmax(shares):.2f}.",
            draw=partial(_draw_heads, names, steps, shares),
            table=_first_and_last(names, steps, shares),
            size=(7.2, min(9.0, 1.6 + 0.2 * len(names))),
        )
    ]


def by_head(run: Run, name: str) -> tuple[list[str], list[int], numpy.ndarray]:
    """Names of rows, steps, and one number for each, NaN where there is none."""
    records = [one for one in run.of(PROBE, name) if one.status == "ok" and one.layer]
    steps = sorted({record.step for record in records})
    columns: dict[str, numpy.ndarray] = {}
    known = {(str(record.layer), record.step): run.array(record, axes=1) for record in records}
    heads = {layer: len(values) for (layer, _), values in known.items() if values is not None}
    whole = sum(heads.values()) > MOST_ROWS
    for (layer, step), values in known.items():
        if values is None:
            continue
        # Heads with little entropy are the ones to be seen.
        shown = {layer: numpy.nanmin(values)} if whole else {f"{layer} {n}": value for n, value in enumerate(values)}
        for row, value in shown.items():
            columns.setdefault(row, numpy.full(len(steps), numpy.nan))[steps.index(step)] = value
    return list(columns), steps, numpy.array(list(columns.values())).reshape(len(columns), len(steps))


def _first_and_last(names: list[str], steps: list[int], values: numpy.ndarray) -> Table:
    rows = []
    for name, row in zip(names, values, strict=True):
        measured = numpy.flatnonzero(numpy.isfinite(row))
        if len(measured):
            highest = int(measured[numpy.argmax(row[measured])])
            rows.append((name, row[measured[0]], row[highest], steps[highest], row[measured[-1]]))
    return Table(("head", "first", "highest", "at step", "last"), tuple(rows))


def _logits(run: Run) -> list[Figure]:
    series = {layer: run.series(PROBE, "max_logit", layer) for layer in run.layers(PROBE, "max_logit")}
    series = {layer: one for layer, one in series.items() if len(one) > 1}
    if not series:
        return []
    ranked = sorted(series, key=lambda layer: -float(series[layer].values[-1]))[:MOST_CURVES]
    shown = [layer for layer in series if layer in ranked]
    curves = [
        Line(short(layer), series[layer], color=palette.SERIES[place % len(palette.SERIES)])
        for place, layer in enumerate(shown)
    ]
    highest = max(float(numpy.nanmax(one.values)) for one in series.values())
    return [
        Figure(
            id="attention-logits",
            title="Largest attention logits",
            caption=f"Of each attention, over its heads{_some(len(shown), len(series))}.",
            alt=f"Largest logit of {len(shown)} attentions over steps; the highest is {highest:.3g}.",
            draw=partial(_draw_lines, curves, "largest logit", highest > CAPPED / 3),
            table=step_table(tuple(shown), [series[layer] for layer in shown]),
        )
    ]


def _some(shown: int, total: int) -> str:
    return "" if shown == total else f"; the {shown} with the largest at the end, of {total}"


def _log_z(run: Run) -> list[Figure]:
    mean = run.series(PROBE, "log_z")
    if len(mean) < 2:
        return []
    ends = [run.series(PROBE, f"log_z_{name}") for name in ("highest", "lowest")]
    curves = [
        Line("mean", mean),
        Line("highest", ends[0], color=palette.SERIES[1]),
        Line("lowest", ends[1], color=palette.SERIES[2]),
    ]
    return [
        Figure(
            id="attention-log-z",
            title="log Z of the output softmax",
            caption="Over all labels: mean, largest and smallest.",
            alt=f"log Z over steps {mean.steps[0]} to {mean.steps[-1]}, mean from {mean.values[0]:.3g} to "
            f"{mean.values[-1]:.3g}.",
            draw=partial(_draw_lines, curves, "log Z", False),
            table=step_table(tuple(curve.label for curve in curves), [curve.series for curve in curves]),
        )
    ]


def _draw_heads(names: list[str], steps: list[int], values: numpy.ndarray, canvas: Canvas) -> None:
    heatmap(canvas, names, steps, values, "concentration")


def _draw_lines(curves: list[Line], label: str, with_cap: bool, canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    lines(axes, curves, label, edge=Edge(CAPPED, f"{CAPPED:g}") if with_cap else None, log=with_cap)
