"""Numbers of single tensors, and the few of them that a figure can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy

from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.charts import Line, short

MOST_CURVES = 6


def matrices(run: Run, name: str) -> list[str]:
    """Tensors with at least two axes: biases and gains start near zero, where a relative change says nothing."""
    shapes = (run.header.get("model") or {}).get("shapes", {})
    names = run.layers("learning_rate", name)
    return [tensor for tensor in names if len(shapes.get(tensor, (0, 0))) >= 2] or names


def measured(run: Run, name: str, tensors: Sequence[str]) -> dict[str, Series]:
    """The finite, positive values of a quantity by tensor; tensors without any are left out."""
    series = {tensor: run.series("learning_rate", name, tensor) for tensor in tensors}
    return {tensor: one for tensor, whole in series.items() if len(one := _positive(whole))}


def at(series: Mapping[str, Series], step: int) -> dict[str, float]:
    """Each tensor's value at a step, or the latest before it."""
    found = {tensor: numpy.flatnonzero(one.steps <= step) for tensor, one in series.items()}
    return {tensor: float(series[tensor].values[places[-1]]) for tensor, places in found.items() if len(places)}


def steps_of(series: Mapping[str, Series]) -> set[int]:
    """Every step at which one of them was measured."""
    return {int(step) for one in series.values() for step in one.steps}


def spread_over_depth(names: Sequence[str]) -> tuple[list[str], str]:
    """A few that span the layers from first to last, when there are too many to tell apart; and that they are few."""
    if len(names) <= MOST_CURVES:
        return list(names), ""
    places = numpy.unique(numpy.linspace(0, len(names) - 1, MOST_CURVES).round().astype(int))
    return [names[place] for place in places], f" {len(places)} of {len(names)} tensors, spread over the depth."


def curves(series: Mapping[str, Series]) -> list[Line]:
    """One line each, in the order of the palette."""
    return [
        Line(short(name), one, color=palette.SERIES[index % len(palette.SERIES)])
        for index, (name, one) in enumerate(series.items())
    ]


def named(names: Sequence[str], most: int = 3) -> str:
    """A few names, and how many more."""
    shown = ", ".join(short(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _positive(one: Series) -> Series:
    kept = numpy.isfinite(one.values) & (one.values > 0)
    return Series(one.steps[kept], one.values[kept], one.errors[kept])
