"""How far a run had come when it saved: the optimizer's state, the step and the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_STEP = ("step", "global_step", "iteration", "iter", "iter_num", "num_updates", "steps", "it")
_EPOCH = ("epoch", "current_epoch", "epochs")

DEEPEST = 6
"""An optimizer is looked for so many levels down."""

_HOLDERS = (torch.optim.Optimizer, Mapping, list, tuple)


def find_optimizer(raw: Mapping[Any, Any]) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
    """Find the optimizer's state dict, by its `state` and `param_groups` and not by what the script called it.

    Args:
        raw: what the checkpoint holds.

    Returns:
        the first optimizer's state dict, or None, and a note that names the others.

    >>> optimizer, _ = find_optimizer({"optimizer_states": [{"state": {}, "param_groups": []}]})
    >>> optimizer
    {'state': {}, 'param_groups': []}
    """
    found = list(_optimizers(raw))
    if not found:
        return None, ()
    others = tuple(place for place, _ in found[1:])
    note = (f"the optimizer is {found[0][0]!r}; also there: {', '.join(map(repr, others))}",) if others else ()
    return found[0][1], note


def is_optimizer(value: object) -> bool:
    """Say whether `value` is an optimizer's state dict."""
    if not isinstance(value, Mapping) or not isinstance(value.get("state"), Mapping):
        return False
    groups = value.get("param_groups")
    return isinstance(groups, list | tuple) and all(isinstance(group, Mapping) for group in groups)


def _optimizers(raw: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # A pickle can hold a dict that contains itself; each is looked into once.
    waiting: list[tuple[str, Any, int]] = [("", raw, 0)]
    seen = set()
    while waiting:
        place, value, depth = waiting.pop()
        if isinstance(value, torch.optim.Optimizer):
            yield place, value.state_dict()
        elif is_optimizer(value):
            yield place, value
        elif depth < DEEPEST and id(value) not in seen:
            seen.add(id(value))
            named = isinstance(value, Mapping)
            parts = value.items() if named else enumerate(value)
            inside = [(key, part) for key, part in parts if isinstance(part, _HOLDERS)]
            # The last is looked into first.
            for key, part in reversed(inside):
                waiting.append((f"{place}.{key}".lstrip(".") if named else f"{place}[{key}]", part, depth + 1))


def find_step(raw: Mapping[Any, Any], optimizer: Mapping[str, Any] | None) -> tuple[int | None, tuple[str, ...]]:
    """Find the number of optimizer steps taken, from the script's own count or else from the optimizer's.

    Args:
        raw: what the checkpoint holds.
        optimizer: what `find_optimizer` found in it.

    Returns:
        the step, or None, and a note when it is the optimizer's.

    >>> find_step({"global_step": 30}, None)
    (30, ())
    """
    own = _first_count(raw, _STEP)
    if own is not None or optimizer is None:
        return own, ()
    entries = (entry for entry in optimizer["state"].values() if isinstance(entry, Mapping))
    counts = [count for entry in entries if (count := _count(entry.get("step"))) is not None]
    return (max(counts), ("the step is the largest in the optimizer's state",)) if counts else (None, ())


def find_epoch(raw: Mapping[Any, Any]) -> int | None:
    """Find the epoch the run was in, as its script counted.

    Args:
        raw: what the checkpoint holds.

    >>> find_epoch({"epoch": 3})
    3
    """
    return _first_count(raw, _EPOCH)


def _first_count(raw: Mapping[Any, Any], keys: tuple[str, ...]) -> int | None:
    return next((count for key in keys if (count := _count(raw.get(key))) is not None), None)


def _count(value: object) -> int | None:
    # Adam keeps its step as a float tensor of no dimension.
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 and not value.is_meta else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # A count that fits no integer of 64 bits is damage.
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None
