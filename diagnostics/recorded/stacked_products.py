"""Inner products between the gradients of outputs, of one parameter, without the gradients where that costs less.

With one token ⟨∂f_a(x), ∂f_b(x')⟩ = (x · x')(g_a · g'_b): two products of matrices and one of their entries. With more
it is Σ_ts (x_t · x'_s)(g_at · g'_bs), or the gradients are built, some rows of the parameter at a time. In an
embedding only rows of equal ids meet. Products are in the precision of the model, and their sums in float64.

Source: arXiv 2206.08720 (structured derivatives) for the choice between the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.recorded.stacked import Stacked, Wide, WideConvolved, WideDirect, WideLookup

CHUNK_BYTES = 2**23
"""Of gradients at once, for all cells."""

SMALL = 3
"""How many times longer a product over tokens takes than one between gradients, of larger matrices; seen on the CPU."""

PIECE = 192
"""Rows of a symmetric product at once: what lies above the diagonal is not computed, in pieces of this size."""


Made = Wide | WideLookup | WideDirect


@dataclass(frozen=True)
class Cell:
    """Some examples and some outputs, and what the uses of one parameter add to their gradients.

    Attributes:
        examples: which, among all.
        outputs: which, among all.
        found: nothing where they do not depend on the parameter.
    """

    examples: slice
    outputs: slice
    found: list[Stacked]


def add_kernel(
    matrix: Tensor, rows: Sequence[Cell], columns: Sequence[Cell], size: int, mirrored: bool, first: int = 0
) -> None:
    """Add the inner products between two sets of cells, of all pairs of outputs or of the same outputs.

    Args:
        matrix: is written into: (N, C, M, C) for all pairs, (C, N, M) for the same outputs; float64.
        rows: with the contributions of one parameter.
        columns: the same object for products within one set.
        size: of the parameter.
        mirrored: whether what is found between two cells is also written on the other side of the diagonal.
        first: of the outputs in the matrix.
    """
    within, whole = columns is rows, matrix.ndim == 4
    made = [_made(cell, first) for cell in rows if cell.found]
    others = made if within else [_made(cell, first) for cell in columns if cell.found]
    if not made or not others:
        return
    pairs = [(one, other) for place, one in enumerate(made) for other in (others[: place + 1] if within else others)]
    blocks: Iterable[Tensor] | None = _by_tokens(pairs, whole) or _by_ids(pairs, whole)
    if blocks is None:
        blocks = _by_rows(made, others, pairs, size, whole)
    for (one, other), block in zip(pairs, blocks, strict=True):
        _write(matrix, one, other, block, mirrored and other is not one)


@dataclass(frozen=True)
class _Made:
    """A cell with all windows made."""

    examples: slice
    outputs: slice
    found: list[Made]

    def count(self) -> tuple[int, int]:
        """Examples and outputs."""
        return self.examples.stop - self.examples.start, self.outputs.stop - self.outputs.start


def _made(cell: Cell, first: int) -> _Made:
    found = [one.made() if isinstance(one, WideConvolved) else one for one in cell.found]
    return _Made(cell.examples, slice(cell.outputs.start - first, cell.outputs.stop - first), found)


def _write(matrix: Tensor, one: _Made, other: _Made, block: Tensor, mirrored: bool) -> None:
    """Add a block (n, S, m, U), or (S, n, m), and its transpose."""
    if matrix.ndim == 4:
        matrix[one.examples, one.outputs, other.examples, other.outputs] += block
        if mirrored:
            matrix[other.examples, other.outputs, one.examples, one.outputs] += block.permute(2, 3, 0, 1)
        return
    matrix[one.outputs, one.examples, other.examples] += block
    if mirrored:
        matrix[one.outputs, other.examples, one.examples] += block.mT


Pairs = Sequence[tuple[_Made, _Made]]


def _by_tokens(pairs: Pairs, whole: bool) -> Iterator[Tensor] | None:
    """Blocks without gradients, if they can be had so for less."""
    chosen = []
    for one, other in pairs:
        a, b = one.found[0], other.found[0]
        if len(one.found) + len(other.found) > 2 or not (isinstance(a, Wide) and isinstance(b, Wide)):
            return None
        if a.turned is not b.turned or not _is_cheaper_by_tokens(a, b, whole):
            return None
        chosen.append((a, b))
    return (_token_products(a, b, whole) for a, b in chosen)


def _is_cheaper_by_tokens(one: Wide, other: Wide, whole: bool) -> bool:
    """Products for a pair of examples, against those for gradients and their inner products."""
    (_, _, tokens, outputs, width), (count, _, length, others, _) = one.own.shape, other.own.shape
    breadth = one.common.shape[3]
    pairs = outputs * others if whole else outputs
    if tokens == length == 1:
        return True
    by_tokens = tokens * length * (breadth + others * width) + pairs * tokens * width
    return SMALL * by_tokens <= pairs * width * breadth + outputs * tokens * width * breadth / count


def _token_products(one: Wide, other: Wide, whole: bool) -> Tensor:
    groups = range(one.own.shape[1])
    if one.own.shape[2] == other.own.shape[2] == 1:
        return torch.stack([_single(one, other, group, whole) for group in groups]).sum(0)
    (count, _, _, outputs, _), (others, _, _, columns, _) = one.own.shape, other.own.shape
    result = _zeros(one.own, (count, outputs), (others, columns), whole)
    own, common, theirs, met = map(_precise, (one.own, one.common, other.own, other.common))
    for place in range(count):
        # Of a symmetric block one half.
        first = place if other is one else 0
        for group in groups:
            products = common[place, group] @ met[first:, group].mT
            mixed = (products @ theirs[first:, group].flatten(2)).unflatten(2, (columns, -1))
            if whole:
                block = torch.einsum("tsa,mtua->smu", own[place, group], mixed)
                result[place, :, first:] += block
                if other is one:
                    result[place + 1 :, :, place] += block[:, 1:].permute(1, 2, 0)
            else:
                block = torch.einsum("tsa,mtsa->sm", own[place, group], mixed)
                result[:, place, first:] += block
                if other is one:
                    result[:, place + 1 :, place] += block[:, 1:]
    return result


def _single(one: Wide, other: Wide, group: int, whole: bool) -> Tensor:
    """One token: (x · x')(g · g')."""
    common, met = (_precise(side.common[:, group, 0]) for side in (one, other))
    own, theirs = (_precise(side.own[:, group, 0]) for side in (one, other))
    result = _zeros(own, (len(own), own.shape[1]), (len(theirs), theirs.shape[1]), whole)
    _add(result, own, own if other is one else theirs)
    if whole and other is one:
        _mirror(result.flatten(2).flatten(0, 1))
    products = common @ met.T
    return result.mul_(products[:, None, :, None] if whole else products)


def _by_ids(pairs: Pairs, whole: bool) -> Iterator[Tensor] | None:
    """Blocks of embeddings that are not used in other ways."""
    chosen = []
    for one, other in pairs:
        a, b = one.found[0], other.found[0]
        if len(one.found) + len(other.found) > 2 or not (isinstance(a, WideLookup) and isinstance(b, WideLookup)):
            return None
        chosen.append((a, b))
    return (_id_products(a, b, whole) for a, b in chosen)


def _id_products(one: WideLookup, other: WideLookup, whole: bool) -> Tensor:
    """Rows of one id at a time, of the examples in which it occurs."""
    mine = _occurrences(one)
    theirs = mine if other is one else _occurrences(other)
    (count, _, outputs, _), (others, _, columns, _) = one.values.shape, other.values.shape
    result = _zeros(one.values, (count, outputs), (others, columns), whole)
    for key in mine.keys() & theirs.keys():
        (left, a), (right, b) = mine[key], theirs[key]
        if whole:
            block = (a.flatten(0, 1) @ b.flatten(0, 1).T).view(*a.shape[:2], *b.shape[:2])
            # Indices with a slice between them come first: (n, m, S, U).
            result[left[:, None], :, right[None, :], :] += block.transpose(1, 2)
        else:
            result[:, left[:, None], right[None, :]] += torch.bmm(a.transpose(0, 1), b.permute(1, 2, 0))
    return result


def _occurrences(one: WideLookup) -> dict[int, tuple[Tensor, Tensor]]:
    """For each id the examples (k,) that hold it, and the sums of their values there, (k, S, d)."""
    count, _, outputs, width = one.values.shape
    keys = one.ids * count + torch.arange(count, device=one.ids.device)[:, None]
    found, places = torch.unique(keys.flatten(), return_inverse=True)
    values = _precise(one.values).flatten(2).flatten(0, 1)
    summed = values.new_zeros(len(found), outputs * width).index_add_(0, places, values)
    ids, lengths = torch.unique_consecutive(found // count, return_counts=True)
    parts = zip((found % count).split(lengths.tolist()), summed.split(lengths.tolist()), strict=True)
    return {
        key: (examples, values.view(-1, outputs, width))
        for key, (examples, values) in zip(ids.tolist(), parts, strict=True)
    }


def _by_rows(made: Sequence[_Made], others: Sequence[_Made], pairs: Pairs, size: int, whole: bool) -> Iterator[Tensor]:
    """Gradients, some rows of the parameter at a time."""
    cells = {id(cell): cell for cell in (*made, *others)}
    found = [one for cell in cells.values() for one in cell.found]
    height = min(one.height for one in found)
    grouped = any(isinstance(one, Wide) and one.own.shape[1] > 1 for one in found)
    width = size // height
    rows = sum(examples * outputs for examples, outputs in (cell.count() for cell in cells.values()))
    like = next(value for value in vars(found[0]).values() if isinstance(value, Tensor))
    step = height if grouped else max(1, CHUNK_BYTES // (4 * rows * width))
    totals = [_zeros(like, one.count(), other.count(), whole) for one, other in pairs]
    for at in range(0, height, step):
        some = slice(at, min(height, at + step))
        gradients = {key: _rows(cell, some, width) for key, cell in cells.items()}
        for total, (one, other) in zip(totals, pairs, strict=True):
            _add(total, gradients[id(one)], gradients[id(other)])
    for total, (one, other) in zip(totals, pairs, strict=True):
        if other is one and whole:
            _mirror(total.flatten(2).flatten(0, 1))
        yield total


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _zeros(like: Tensor, one: tuple[int, int], other: tuple[int, int], whole: bool) -> Tensor:
    (examples, outputs), (others, columns) = one, other
    shape = (examples, outputs, others, columns) if whole else (outputs, examples, others)
    return torch.zeros(shape, dtype=torch.float64, device=like.device)


def _rows(cell: _Made, some: slice, width: int) -> Tensor:
    """(N, S, w)."""
    entries = slice(some.start * width, some.stop * width)
    parts = [_precise(one.rows(entries if isinstance(one, WideDirect) else some)) for one in cell.found]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _add(total: Tensor, one: Tensor, other: Tensor) -> None:
    """Of a symmetric block of all pairs what is on and below the diagonal, and a little above it."""
    if total.ndim == 3:
        total += torch.bmm(one.transpose(0, 1), other.permute(1, 2, 0))
        return
    left, right, flat = one.flatten(0, 1), other.flatten(0, 1), total.flatten(2).flatten(0, 1)
    step = PIECE if one is other else len(left)
    for at in range(0, len(left), step):
        rows, columns = slice(at, at + step), slice(0, at + step if one is other else None)
        flat[rows, columns] += left[rows] @ right[columns].T


def _mirror(block: Tensor) -> None:
    """What is below the diagonal also above it."""
    for at in range(0, len(block), PIECE):
        rows = slice(at, at + PIECE)
        corner = block[rows, rows].tril()
        block[rows, rows] = corner + corner.tril(-1).T
        block[rows, at + PIECE :] = block[at + PIECE :, rows].T
