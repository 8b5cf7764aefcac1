"""What was set differently: read off the headers, and what is the same left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy

from probes.run import Run
from reports.comparison.contender import Contender
from reports.comparison.differences import MOST_COLUMNS
from reports.document import Table
from reports.facts import batch
from reports.learning_rate.rates import rates_in_force
from reports.words import counted

LEFT_OUT = ("schema_version", "id", "created", "notes", "file", "step")
"""Of the run itself, not of its settings."""

OFF = {None, "False", "None", "0", "{}"}
"""A switch that is off and one that is not there."""

COMMAND = "argv"

LONGEST = 60
"""Longer settings are cut; the run's header has them whole."""


def settings(runs: Sequence[Contender]) -> Table:
    """Every setting in which the runs differ, in the order of the headers; a dash where one has none.

    A column for each run while they are few, then a row for each value.
    """
    found = [dict(_settings(one.run)) for one in runs]
    rows: list[tuple[str | None, ...]] = []
    for name in _merged([list(one) for one in found]):
        values = [one.get(name) for one in found]
        if len(set(values)) > 1 and not set(values) <= OFF:
            rows += [(name, *values)] if len(runs) <= MOST_COLUMNS else _by_value(name, values, runs)
    columns = [one.name for one in runs] if len(runs) <= MOST_COLUMNS else ["value", "in the runs"]
    return Table(("setting", *columns), tuple(rows))


def recorded(run: Run) -> Iterator[tuple[str, str]]:
    """Names and values of all that was set, the command line left out."""
    return ((name, value) for name, value in _settings(run) if name != COMMAND)


def _by_value(name: str, values: Sequence[str | None], runs: Sequence[Contender]) -> list[tuple[str | None, ...]]:
    """A row for each value, with the runs that have it."""
    pairs = list(zip(values, runs, strict=True))
    return [
        (name, value, ", ".join(run.name for other, run in pairs if other == value)) for value in dict.fromkeys(values)
    ]


def _merged(orders: Sequence[Sequence[str]]) -> list[str]:
    """All names once; one that only a later run has stands where it stood there."""
    merged: list[str] = []
    for order in orders:
        place = 0
        for name in order:
            if name not in merged:
                merged.insert(place, name)
            place = merged.index(name) + 1
    return merged


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    header = run.header
    optimizer, model = header.get("optimizer") or {}, header.get("model") or {}
    if optimizer:
        yield "optimizer", str(optimizer.get("class"))
        yield from _groups(optimizer.get("groups") or [])
        for place, wrapper in enumerate(optimizer.get("wrappers") or []):
            yield from _flat(f"around it, {place + 1}", wrapper)
    if rates := _rates(run):
        yield "rate over the run", rates
    if (size := batch(run)) is not None:
        yield "batch", counted(size, "example")
    if model:
        yield "model", str(model.get("class"))
        yield "parameters", f"{model.get('parameters', 0):,}"
        yield "shapes (fingerprint)", str(model.get("hash"))
    objective = header.get("objective") or {}
    whole = objective.get("parameters") == model.get("parameters")
    yield from _flat("objective", {key: part for key, part in objective.items() if not (whole and key == "parameters")})
    yield "last step", str(run.steps)
    if header.get("device"):
        yield "device", str(header["device"])
    yield from _flat("version of", header.get("versions") or {})
    for probe in header.get("probes") or []:
        yield f"probe {probe['name']}", _cut(f"{probe.get('schedule')}, {_text(probe.get('settings') or {})}")
    yield from _flat("monitor", header.get("settings") or {})
    for name, value in header.items():
        known = ("optimizer", "model", "objective", "device", "versions", "probes", "settings", *LEFT_OUT)
        if name not in known:
            yield name, _cut(" ".join(map(str, value)) if isinstance(value, list) else _text(value))


def _groups(groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Hyperparameters; of several groups the values in the order of the groups."""
    if len(groups) > 1:
        yield "parameter groups", str(len(groups))
    for key in dict.fromkeys(key for group in groups for key in group):
        values = [_text(group[key]) for group in groups if key in group]
        yield key, _cut(values[0] if len(set(values)) == 1 else "; ".join(values))


def _flat(before: str, content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        yield f"{before} {str(key).replace('_', ' ')}", _cut(_text(value))


def _rates(run: Run) -> str:
    """Where a schedule took the rate: the header knows only the first."""
    rates = rates_in_force(run).values
    finite = rates[numpy.isfinite(rates)]
    if not len(finite) or not run.layers("learning_rate", "lr") or finite.max() - finite.min() <= 1e-6 * finite.max():
        return ""
    return f"{finite[0]:.4g} at first, {finite.max():.4g} at most, {finite[-1]:.4g} at last"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    return str(value)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
