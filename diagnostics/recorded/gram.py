"""Inner products between the gradients of examples of many batches, of one parameter, in bounded memory.

Over tokens or by the gradients themselves, whichever costs less; in either case of some examples at a time, so that
gradients, windows and products between tokens never take more than ``MADE_BYTES``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diagnostics.recorded.contractions import between_own, is_cheaper_by_tokens
from diagnostics.recorded.contributions import Contribution, Convolved, Lookup, Outer, count_of, materialised

MADE_BYTES = 2**30
"""Gradients or windows that are made at once, half of it for each side of the products."""

DOUBLE_BYTES = 2**27
"""Columns of gradients that are turned to float64 at once."""

MOST_EXAMPLES = 2048
"""On a side of the products that are made at once."""

Batch = tuple[Tensor, list[Contribution]]
"""The places of a batch's examples among all, and what one parameter's uses add to their gradients."""


def add_products(matrix: Tensor, rows: Sequence[Batch], columns: Sequence[Batch], size: int) -> None:
    """Add ⟨g_i, g_j⟩ between examples of two sets of batches, and ⟨g_j, g_i⟩, to a matrix (N, N) in float64.

    Args:
        matrix: is written into.
        rows: with the contributions of one parameter; batches that it does not reach are left out.
        columns: the same object for products within one set; batches that are not in it otherwise.
        size: of the parameter.
    """
    every = [found for _, found in (*rows, *columns)]
    if not rows or not columns:
        return
    count = sum(len(places) for places, _ in columns)
    by_tokens = all(is_cheaper_by_tokens(found, size, count) for found in every)
    each = max(_tokens_bytes(found) if by_tokens else size * _itemsize(found) for found in every)
    most = min(MOST_EXAMPLES, max(1, MADE_BYTES // max(1, 2 * each)))
    left = list(_units(rows, most))
    right = left if rows is columns else list(_units(columns, most))
    for place, one in enumerate(left):
        mine = one.made(by_tokens, size)
        for other in right[place:] if rows is columns else right:
            theirs = mine if other is one else other.made(by_tokens, size)
            block = _product(mine, theirs)
            matrix[one.places[:, None], other.places[None, :]] += block
            if other is not one:
                matrix[other.places[:, None], one.places[None, :]] += block.T


Made = Tensor | list[list[Contribution]]
"""Gradients, (n, P), or what products over tokens are taken of, for each batch."""


@dataclass(frozen=True)
class _Unit:
    """Examples of one batch or several that are dealt with at once."""

    places: Tensor
    parts: list[list[Contribution]]

    def made(self, by_tokens: bool, size: int) -> Made:
        if by_tokens:
            return [[one.outer() if isinstance(one, Convolved) else one for one in part] for part in self.parts]
        return torch.cat([materialised(part, size) for part in self.parts])


def _units(batches: Sequence[Batch], most: int) -> Iterator[_Unit]:
    """Batches in pieces of at most so many examples, and small ones together."""
    pieces = [
        (places[at : at + most], [one.part(slice(at, at + most)) for one in found])
        for places, found in batches
        for at in range(0, len(places), most)
    ]
    some: list[Batch] = []
    for piece in pieces:
        if some and sum(len(places) for places, _ in some) + len(piece[0]) > most:
            yield _unit(some)
            some = []
        some.append(piece)
    yield _unit(some)


def _unit(some: list[Batch]) -> _Unit:
    return _Unit(torch.cat([places for places, _ in some]), [found for _, found in some])


def _product(one: Made, other: Made) -> Tensor:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        total = torch.zeros(len(one), len(other), dtype=torch.float64, device=one.device)
        step = max(1, DOUBLE_BYTES // (8 * (len(one) + len(other))))
        for mine, theirs in zip(one.split(step, dim=1), other.split(step, dim=1), strict=True):
            mine = mine.double()
            total += mine @ (mine if one is other else theirs.double()).T
        return total
    return torch.cat(
        [
            torch.cat([torch.stack([_between(a, b) for a in mine for b in theirs]).sum(0) for theirs in other], dim=1)
            for mine in one
        ]
    )


def _between(one: Contribution, other: Contribution) -> Tensor:
    """⟨a_i, b_j⟩, (N, M); one example of the first at a time, for memory."""
    if isinstance(one, Outer) and isinstance(other, Outer) and one.left.shape[2] == other.left.shape[2] == 1:
        sides = [
            torch.einsum("ngd,mgd->gnm", a.squeeze(2).double(), b.squeeze(2).double())
            for a, b in ((one.left, other.left), (one.right, other.right))
        ]
        return (sides[0] * sides[1]).sum(0)
    length = count_of([other])
    return torch.stack(
        [between_own(_repeated(one.part(slice(at, at + 1)), length), other) for at in range(count_of([one]))]
    )


def _repeated(one: Contribution, count: int) -> Contribution:
    if isinstance(one, Outer):
        return Outer(one.left.expand(count, -1, -1, -1), one.right.expand(count, -1, -1, -1))
    assert isinstance(one, Lookup)
    return replace(one, ids=one.ids.expand(count, -1), values=one.values.expand(count, -1, -1))


def _tokens_bytes(found: Sequence[Contribution]) -> int:
    """What one example takes while products over tokens are made: its windows, and three numbers for each pair."""
    tokens = sides = 0
    for one in found:
        if isinstance(one, Lookup):
            tokens, sides = tokens + one.ids.shape[1], sides + one.values[0].numel()
        elif isinstance(one, Outer | Convolved):
            groups, length, height, width = one.extent()
            tokens, sides = tokens + groups * length, sides + groups * length * (height + width)
    return _itemsize(found) * (3 * tokens**2 + sides)


def _itemsize(found: Sequence[Contribution]) -> int:
    return max(tensor.element_size() for one in found for tensor in vars(one).values() if isinstance(tensor, Tensor))
