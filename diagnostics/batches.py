"""Drawing batches once and keeping them, without moving anything that training will draw from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from diagnostics.errors import DiagnosticsError
from diagnostics.quiet import quiet


def is_pair_of_tensors(batches: Any) -> bool:
    """Whether what was given as batches is one (inputs, targets) pair."""
    return isinstance(batches, tuple | list) and len(batches) == 2 and all(isinstance(part, Tensor) for part in batches)


def draw(batches: Any, limit: int | None) -> list[Any]:
    """Take the batches; a DataLoader's iterator consumes global randomness, so states are set aside."""
    if isinstance(limit, bool) or not (limit is None or hasattr(limit, "__index__")):
        raise DiagnosticsError(
            "limit is not a number of batches", given=repr(limit), expected="at least 1, or None for all batches"
        )
    if limit is not None and limit < 1:
        raise DiagnosticsError("limit is too small", given=str(limit), expected="at least 1, or None for all batches")
    if isinstance(batches, Tensor | str | Mapping) or not isinstance(batches, Iterable):
        raise DiagnosticsError(
            "batches is not an iterable of batches",
            given=describe(batches),
            expected="a list of batches, a DataLoader, or one (inputs, targets) pair",
        )
    drawn: list[Any] = []
    with quiet(nn.Module()), _own_generators_kept(batches):
        for batch in batches:
            # Hugging Face hands out mappings of its own kind, which tree_map would take for a leaf.
            drawn.append(dict(batch) if isinstance(batch, Mapping) else batch)
            if len(drawn) == limit:
                break
    if not drawn:
        raise DiagnosticsError("batches is empty", expected="at least one batch", attempt="a DataLoader that yields")
    return drawn


@contextmanager
def _own_generators_kept(loader: Any) -> Iterator[None]:
    """A DataLoader may shuffle by a generator of its own: the order of the training to come must not move."""
    holders = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    generators = [getattr(holder, "generator", None) for holder in holders]
    before = [(own, own.get_state()) for own in generators if isinstance(own, torch.Generator)]
    try:
        yield
    finally:
        for own, state in before:
            own.set_state(state)


def keep(batch: Any, device: torch.device) -> Any:
    """A copy of a batch on a device, whatever its structure."""

    def copy(leaf: Any) -> Any:
        return leaf.detach().to(device, copy=True) if isinstance(leaf, Tensor) else leaf

    with torch.inference_mode(False):
        return tree_map(copy, batch)


def describe(thing: Any) -> str:
    """What something is, in words for an error message."""
    if isinstance(thing, Tensor):
        return f"a tensor of shape {tuple(thing.shape)}"
    if isinstance(thing, Mapping):
        return "a mapping with keys " + ", ".join(map(str, list(thing)[:6]))
    if isinstance(thing, tuple | list):
        kinds = ", ".join(type(leaf).__name__ for leaf in tree_leaves(thing)[:4])
        return f"a {type(thing).__name__} of {len(thing)} ({kinds})"
    return type(thing).__name__
