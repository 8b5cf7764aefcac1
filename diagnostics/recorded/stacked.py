"""Contributions to the gradients of several outputs, from one forward pass: the inputs of a layer are common to all.

Σ_t g_sct x_ctᵀ for S outputs is what a layer with S times as many outputs would have: the common side is held once, and
windows of a convolution are made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from diagnostics.recorded.contributions import Contribution, Convolved, Direct, Lookup, Outer, materialised


@dataclass(frozen=True)
class Wide:
    """Σ_t of outer products of which one side is common to all outputs.

    Attributes:
        own: (N, G, T, S, a), of each output.
        common: (N, G, T, b).
        turned: whether the common side runs along the rows of the parameter.
    """

    own: Tensor
    common: Tensor
    turned: bool

    @property
    def height(self) -> int:
        """Rows of the parameter."""
        return self.own.shape[1] * (self.common.shape[3] if self.turned else self.own.shape[4])

    def rows(self, some: slice) -> Tensor:
        """Some rows of the gradients, (N, S, w); all of them where there are groups."""
        count, groups, _, outputs, _ = self.own.shape
        own, common = self.own, self.common
        if groups == 1:
            own, common = (own, common[..., some]) if self.turned else (own[..., some], common)
        width, breadth = own.shape[4], common.shape[3]
        own, common = own.flatten(3).flatten(0, 1), common.flatten(0, 1)
        if self.turned:
            made = _products(common, own).view(count, groups, breadth, outputs, width)
            return made.permute(0, 3, 1, 2, 4).reshape(count, outputs, -1)
        made = _products(own, common).view(count, groups, outputs, width * breadth)
        return made.transpose(1, 2).reshape(count, outputs, -1)


@dataclass(frozen=True)
class WideConvolved:
    """A convolution with S times as many channels on the side of the outputs, whose windows are still to be made."""

    one: Convolved
    outputs: int
    turned: bool

    def made(self) -> Wide:
        """With all windows."""
        outer = self.one.outer()
        own, common = (outer.right, outer.left) if self.turned else (outer.left, outer.right)
        return Wide(own.unflatten(3, (self.outputs, -1)), common, self.turned)


@dataclass(frozen=True)
class WideLookup:
    """Σ_t e_{id_t} h_stᵀ: ids (N, T), values (N, T, S, d), in a table of V rows."""

    ids: Tensor
    values: Tensor
    table: int

    @property
    def height(self) -> int:
        """Rows of the parameter."""
        return self.table

    def rows(self, some: slice) -> Tensor:
        """Some rows of the gradients, (N, S, w)."""
        count, _, outputs, width = self.values.shape
        first, last, _ = some.indices(self.table)
        inside = (self.ids >= first) & (self.ids < last)
        which = inside.nonzero()[:, 0]
        made = self.values.new_zeros(count * (last - first), outputs * width)
        made.index_add_(0, which * (last - first) + self.ids[inside] - first, self.values[inside].flatten(1))
        return made.view(count, last - first, outputs, width).transpose(1, 2).reshape(count, outputs, -1)


@dataclass(frozen=True)
class WideDirect:
    """The gradients themselves, (N, S, P)."""

    gradients: Tensor

    @property
    def height(self) -> int:
        """Entries of the parameter."""
        return self.gradients.shape[2]

    def rows(self, some: slice) -> Tensor:
        """Some entries of the gradients, (N, S, w)."""
        return self.gradients[..., some]


Stacked = Wide | WideConvolved | WideLookup | WideDirect


class Stack:
    """What one parameter's uses in one batch add, taken output by output.

    It is held as it came or as gradients, whichever takes less memory, and what is common to all outputs once.
    """

    def __init__(self, size: int, count: int) -> None:
        self.size, self.count = size, count
        self._first: list[Contribution] = []
        self._held: list[list[Contribution]] = []

    def add(self, found: list[Contribution]) -> None:
        """Take what there is of one more output."""
        if not self._held:
            self._first = found
        elif found and _alike(found, self._first):
            found = [_sharing(one, first) for one, first in zip(found, self._first, strict=True)]
            if self._own_bytes(found) > self.count * self.size * _itemsize(found):
                # Which side is common can only be told now.
                self._held = [_built(held, self.size) for held in self._held]
                found = _built(found, self.size)
        self._held.append(found)

    def bytes(self) -> int:
        """Held for outputs, but not what is common to them."""
        return sum(self._own_bytes(held) for held in self._held[1:])

    def common_bytes(self) -> int:
        """Held once for all outputs, or not at all."""
        last = {id(tensor) for one in self._held[-1] for tensor in _tensors(one)}
        return sum(tensor.nbytes for one in self._first for tensor in _tensors(one) if id(tensor) in last)

    def done(self) -> list[Stacked]:
        """All of it; nothing where no output depends on the parameter."""
        held, self._held, self._first = self._held, [], []
        if not any(held):
            return []
        every = {id(tensor): tensor.nbytes for some in held for one in some for tensor in _tensors(one)}
        if sum(every.values()) > len(held) * self.count * self.size * _itemsize(next(some for some in held if some)):
            held = [_built(some, self.size) for some in held]
        if all(_alike(one, held[0]) for one in held):
            stacked = [_stacked(some) for some in zip(*held, strict=True)]
            if all(one is not None for one in stacked):
                return [one for one in stacked if one is not None]
        like = next(some for some in held if some)
        zeros = materialised(like, self.size).new_zeros(self.count, self.size)
        return [WideDirect(torch.stack([materialised(some, self.size) if some else zeros for some in held], dim=1))]

    def _own_bytes(self, found: Sequence[Contribution]) -> int:
        shared = {id(tensor) for one in self._first for tensor in _tensors(one)}
        return sum(tensor.nbytes for one in found for tensor in _tensors(one) if id(tensor) not in shared)


def _tensors(one: Contribution) -> list[Tensor]:
    return [value for value in vars(one).values() if isinstance(value, Tensor)]


def _itemsize(found: Sequence[Contribution]) -> int:
    return max(tensor.element_size() for one in found for tensor in _tensors(one) if tensor.is_floating_point())


def _built(found: list[Contribution], size: int) -> list[Contribution]:
    return [Direct(materialised(found, size))] if found else found


def _alike(found: Sequence[Contribution], other: Sequence[Contribution]) -> bool:
    """Whether two outputs use the parameter in the same ways."""
    return len(found) == len(other) and all(
        type(a) is type(b) and [x.shape for x in _tensors(a)] == [x.shape for x in _tensors(b)]
        for a, b in zip(found, other, strict=True)
    )


def _sharing(one: Contribution, first: Contribution) -> Contribution:
    """The same with the other's tensors where they are equal."""
    same = {
        field.name: getattr(first, field.name)
        for field in fields(one)
        if isinstance(mine := getattr(one, field.name), Tensor) and torch.equal(mine, getattr(first, field.name))
    }
    return replace(one, **same)


def _stacked(some: Sequence[Contribution]) -> Stacked | None:
    """What several outputs add by one use; None if they have no side in common."""
    first = some[0]

    def common(name: str) -> bool:
        return all(getattr(one, name) is getattr(first, name) for one in some)

    def own(name: str, dim: int) -> Tensor:
        return torch.stack([getattr(one, name) for one in some], dim=dim)

    if isinstance(first, Direct):
        return WideDirect(own("gradients", 1))
    if isinstance(first, Lookup):
        return WideLookup(first.ids, own("values", 2), first.table) if common("ids") else None
    if isinstance(first, Outer):
        if common("right"):
            return Wide(own("left", 3), first.right, turned=False)
        return Wide(own("right", 3), first.left, turned=True) if common("left") else None

    def channels(name: str) -> Tensor:
        """Of all outputs, within each group."""
        return torch.stack([getattr(one, name).unflatten(2, (first.groups, -1)) for one in some], 3).flatten(2, 4)

    if common("images"):
        return WideConvolved(replace(first, sides=channels("sides")), len(some), turned=False)
    if common("sides"):
        return WideConvolved(replace(first, images=channels("images")), len(some), turned=True)
    return None


def _products(left: Tensor, right: Tensor) -> Tensor:
    """(B, T, a) and (B, T, b) to (B, a, b)."""
    if left.shape[1] == 1:
        return left.mT * right
    return torch.bmm(left.mT, right)
