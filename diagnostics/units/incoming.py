"""Which weights a pre-activation came from: followed from the operation that used them, through norms and biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

_MATRICES: dict[Callable[..., Any], tuple[int, int]] = {
    F.linear: (1, 0),
    torch.addmm: (2, 1),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm), (1, 1)),
}
_CONVOLUTIONS: dict[Callable[..., Any], tuple[int, int]] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d), (1, 0)),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), (1, 1)),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), (1, 1)),
}
_WEIGHTED = {**_MATRICES, **_CONVOLUTIONS}
"""Which argument holds the weights, and which of its axes the units."""


@dataclass(frozen=True, eq=False)
class Incoming:
    """The weights of one operation, and which axis of theirs holds the units."""

    weight: Tensor
    axis: int


class Trail:
    """Follows results of weighted operations; tensors are held weakly."""

    def __init__(self) -> None:
        self._made_by: Any = WeakIdKeyDictionary()

    def follow(self, func: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any], result: Any) -> None:
        """Note what a call did."""
        if not isinstance(result, Tensor):
            return
        known = _WEIGHTED.get(func)
        if known is None:
            # Norms, biases, reshapes and sums of branches keep the units, and so the number of values.
            tensors = [arg for arg in args[:3] if isinstance(arg, Tensor) and arg.numel() == result.numel()]
            found = tuple(source for tensor in tensors for source in self.of(tensor))
        else:
            place, axis = known
            weight = args[place] if len(args) > place else named.get("weight")
            found = ()
            if isinstance(weight, Tensor) and (func in _CONVOLUTIONS or weight.ndim == 2):
                found = (Incoming(weight, axis),)
        if found:
            self._made_by[result] = found

    def of(self, tensor: Tensor) -> tuple[Incoming, ...]:
        """Where a tensor came from; empty when that is not known."""
        found: tuple[Incoming, ...] = self._made_by.get(tensor, ())
        return found
