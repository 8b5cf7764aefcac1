"""Tensors that are read when they are asked for, and forgotten afterwards.

The tensors of a distributed checkpoint lie in pieces in several files and cannot be mapped. In the dict they belong to
stand tensors without values (on the meta device) of the same shapes; `Streamed` is that dict as seen from outside,
where each of them is read anew whenever it is looked at, so that going through a checkpoint takes the memory of one
tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

Sources = Mapping[int, Callable[[], Tensor]]
"""How to read what a tensor without values stands for, by the identity of that tensor."""


class Streamed(Mapping[Any, Any]):
    """A dict in which each tensor that has a source is read when it is looked at.

    Args:
        content: the dict, with tensors that stand for others, and dicts of its kind inside.
        sources: how to read the others.

    >>> import torch
    >>> stand = torch.empty(2, device="meta")
    >>> Streamed({"weight": stand}, {id(stand): lambda: torch.ones(2)})["weight"]
    tensor([1., 1.])
    """

    def __init__(self, content: Mapping[Any, Any], sources: Sources) -> None:
        self._content, self._sources = content, sources

    def __getitem__(self, key: Any) -> Any:
        return _seen(self._content[key], self._sources)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


def whole(content: Mapping[str, Any]) -> dict[str, Any]:
    """A plain dict with everything in it read, for those who need it at once.

    >>> whole(Streamed({"step": 3}, {}))
    {'step': 3}
    """
    return {key: _plain(value) for key, value in content.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Streamed):
        return whole(value)
    return [_plain(part) for part in value] if type(value) is list else value


def _seen(value: Any, sources: Sources) -> Any:
    if id(value) in sources:
        return sources[id(value)]()
    if isinstance(value, Mapping):
        return Streamed(value, sources)
    return [_seen(part, sources) for part in value] if isinstance(value, list) else value
