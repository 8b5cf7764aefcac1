"""Whether a ``run.json`` says what a header says: readers rely on the types of its parts, not on their presence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MAPPING, _LIST, _TEXT, _COUNT, _NUMBER = (Mapping,), (list,), (str,), (int,), (int, float)
_NOTHING = (type(None),)

_KINDS: dict[tuple[str, ...], tuple[type, ...]] = {
    ("id",): _TEXT,
    ("created",): _TEXT,
    ("device",): _TEXT,
    ("argv",): _LIST,
    ("argv", "*"): _TEXT,
    ("notes",): _LIST,
    ("versions",): _MAPPING,
    ("versions", "*"): _TEXT,
    ("settings",): _MAPPING,
    ("settings", "budget"): _NUMBER + _NOTHING,
    ("probes",): _LIST,
    ("probes", "*"): _MAPPING,
    ("probes", "*", "name"): _TEXT,
    ("model",): _MAPPING + _NOTHING,
    ("model", "class"): _TEXT + _NOTHING,
    ("model", "parameters"): _COUNT,
    ("model", "shapes"): _MAPPING,
    ("model", "shapes", "*"): _LIST,
    ("model", "shapes", "*", "*"): _COUNT,
    ("model", "not_in_optimizer"): _LIST,
    ("model", "not_in_optimizer", "*"): _TEXT,
    ("optimizer",): _MAPPING + _NOTHING,
    ("optimizer", "class"): _TEXT + _NOTHING,
    ("optimizer", "groups"): _LIST,
    ("optimizer", "groups", "*"): _MAPPING,
    ("optimizer", "wrappers"): _LIST,
    ("optimizer", "wrappers", "*"): _MAPPING,
    ("optimizer", "wrappers", "*", "class"): _TEXT,
    ("objective",): _MAPPING + _NOTHING,
    ("objective", "loss_terms"): _NUMBER,
    ("objective", "batches"): _COUNT,
    ("objective", "mode"): _TEXT,
    ("objective", "parameters"): _COUNT,
    ("objective", "batch_norm"): _COUNT,
}
"""What may stand at each place; ``*`` is every entry of a list or mapping."""

_NEEDED = ("loss_terms", "batches", "mode", "parameters")
_LARGEST = 2**63


def wrong_in(header: Mapping[str, Any]) -> str | None:
    """The first thing in a header that is of another kind than it should be; None when all is well.

    Example:
        >>> wrong_in({"device": "CPU", "model": {"parameters": 3}}), wrong_in({"optimizer": {"groups": {}}})
        (None, 'optimizer.groups is a dict')
    """
    for place, kinds in _KINDS.items():
        for name, value in _at(header, place):
            if not isinstance(value, kinds) or isinstance(value, bool):
                return f"{name} is a {type(value).__name__}"
            if isinstance(value, int | float) and not abs(value) < _LARGEST:
                return f"{name} is no number that it could be"
    objective = header.get("objective") or {}
    missing = [name for name in _NEEDED if objective and name not in objective]
    return f"objective has no {missing[0]}" if missing else None


def _at(value: Any, place: tuple[str, ...], name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything that stands at a place, with the name of where it is."""
    if not place:
        yield name, value
        return
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        entries = list(value.items()) if place[0] == "*" else [(place[0], value[place[0]])] if place[0] in value else []
    elif isinstance(value, list) and place[0] == "*":
        entries = list(enumerate(value))
    for key, entry in entries:
        yield from _at(entry, place[1:], f"{name}.{key}".lstrip("."))
