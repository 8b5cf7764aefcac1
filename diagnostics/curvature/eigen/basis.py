"""Orthonormal rows in bounded memory: the vectors that a solver has gathered so far.

The rows lie in blocks. A new block is added when the others are full, so growing copies nothing; the first block holds
exactly the rows that will be the result, so handing them over copies nothing either. Combining rows (a restart) goes
through narrow slices of all of them at a time, in place. What is needed beside the rows is then a few vectors, however
many rows there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy
import torch
from torch import Tensor

PIECE = 2**22
"""Entries worked on at once where a whole vector in double precision, or a second basis, would cost too much."""

SHORT = 2**11
"""Entries a CPU sums in single precision before the sum goes on in double. Its matrix products add up entry after
entry: over five million of them, vectors came out orthogonal to 2e-4 only. A GPU sums in a tree."""

MOST = 0.5
"""A vector that keeps more than this of its length needs no second pass. Over 300 steps orthogonality then stays at
1e-6 in single precision, as with two passes, for every spectrum we tried; with .3 it was lost on two of four."""


def precise(device: torch.device) -> torch.dtype:
    """The widest real type of a device, for sums and small matrices."""
    return torch.float32 if device.type == "mps" else torch.float64


def waiting_is_free(device: torch.device) -> bool:
    """Whether a number may be fetched within a step: on a GPU that would wait for all that is under way."""
    return device.type == "cpu"


def dot(first: Tensor, second: Tensor) -> Tensor:
    """The inner product of two vectors (P,), at least as exact as the entries, on their device."""
    wide = precise(first.device)
    if first.dtype == wide:
        return torch.dot(first, second)
    if first.device.type == "cpu" and len(first) > SHORT:
        pairs = zip(first.split(SHORT), second.split(SHORT), strict=True)
        return torch.stack([torch.dot(left, right) for left, right in pairs]).sum(dtype=wide)
    pairs = zip(first.split(PIECE), second.split(PIECE), strict=True)
    return torch.stack([torch.dot(left.to(wide), right.to(wide)) for left, right in pairs]).sum()


def inner_products(rows: Tensor, vector: Tensor) -> Tensor:
    """Of each row (n, P) with a vector (P,), at least as exact as the entries."""
    wide = precise(vector.device)
    if vector.device.type != "cpu" or vector.dtype == wide or len(vector) <= SHORT:
        return (rows @ vector).to(wide)
    if len(rows) == 1:
        return dot(rows[0], vector)[None]
    whole = len(vector) // SHORT * SHORT
    pieces = rows[:, :whole].unflatten(1, (-1, SHORT)).transpose(0, 1)
    sums = torch.bmm(pieces, vector[:whole].view(-1, SHORT, 1))[:, :, 0].sum(dim=0, dtype=wide)
    return sums.add_(rows[:, whole:] @ vector[whole:])


def random_vector(size: int, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A Gaussian vector (P,), drawn on the CPU in double precision so that every device sees the same numbers."""
    vector = torch.empty(size, dtype=dtype, device=device)
    for piece in vector.split(PIECE):
        piece.copy_(torch.randn(len(piece), generator=generator, dtype=torch.float64, device="cpu").to(dtype))
    return vector


class Basis:
    """Orthonormal rows of length P.

    Args:
        size: P.
        result: how many rows ``columns`` will hand over in the end.
        limit: the most rows there will ever be.
        dtype: of the rows.
        device: where they live.
    """

    def __init__(self, size: int, result: int, limit: int, dtype: torch.dtype, device: torch.device) -> None:
        self._limit = limit
        self._blocks = [torch.empty(result, size, dtype=dtype, device=device)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        """One row (P,), not a copy."""
        (row,) = self._parts(index, index + 1)
        return row[0]

    def append(self, row: Tensor) -> None:
        """Copy a row in; it has to be orthonormal to the others already."""
        room = sum(len(block) for block in self._blocks)
        if self._count == room:
            grown = min(max(8, room // 2), self._limit - room)
            self._blocks.append(self._blocks[0].new_empty(grown, self._blocks[0].shape[1]))
        self._count += 1
        self[self._count - 1].copy_(row)

    def truncate(self, count: int) -> None:
        """Forget all rows but the first ``count``."""
        self._count = count

    def outside(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The inner products with all rows (n,), and what is left of the vector (P,) outside them.

        Classical Gram-Schmidt, twice at most: two matrix products each, and as good as rounding allows ("twice is
        enough"). Where more than ``MOST`` of the vector is left, once is.
        """
        parts = list(self._parts(0, self._count))
        vector = vector.contiguous()
        products = [inner_products(part, vector) for part in parts]
        rest = vector.clone()
        self._subtract(rest, parts, products)
        if not (waiting_is_free(rest.device) and products and self._is_most(rest, products)):
            self._subtract(rest, parts, [inner_products(part, rest) for part in parts])
        return torch.cat(products) if products else vector.new_empty(0), rest

    def _subtract(self, rest: Tensor, parts: Sequence[Tensor], products: Sequence[Tensor]) -> None:
        for part, product in zip(parts, products, strict=True):
            rest.addmv_(part.T, product.to(rest.dtype), alpha=-1)

    def _is_most(self, rest: Tensor, products: Sequence[Tensor]) -> bool:
        """Whether enough is left. A GPU is not asked, for it would have to be waited for."""
        left = float(dot(rest, rest))
        return left > MOST**2 * (left + sum(float(product.square().sum()) for product in products))

    def combine(self, weights: numpy.ndarray) -> Tensor:
        """One weighted sum of all rows: weights (n,) to a vector (P,)."""
        combined = torch.zeros_like(self._blocks[0][0])
        begin = 0
        for part in self._parts(0, self._count):
            combined.addmv_(part.T, self._small(weights[begin : begin + len(part)], part.dtype))
            begin += len(part)
        return combined

    def turn(self, begin: int, weights: numpy.ndarray) -> None:
        """Replace the rows from ``begin`` on by m combinations of them: weights (n − begin, m), in place."""
        # In double precision: single-precision matrix products are taken with ten bits where TF32 is allowed.
        wide = precise(self._blocks[0].device)
        turned = self._small(weights.T, wide)
        parts = list(self._parts(begin, self._count))
        self._count = begin + len(turned)
        for low in range(0, self._blocks[0].shape[1], width := max(1, PIECE // max(1, weights.shape[0]))):
            slices = [part[:, low : low + width] for part in parts]
            combined = turned @ torch.cat(slices).to(wide)
            written = 0
            for part in self._parts(begin, self._count):
                part[:, low : low + width] = combined[written : written + len(part)]
                written += len(part)

    def columns(self) -> Tensor:
        """The first rows as columns (P, result), not a copy; all else is let go."""
        del self._blocks[1:]
        return self._blocks[0].T

    def _parts(self, begin: int, end: int) -> Iterator[Tensor]:
        """Views of the rows from ``begin`` up to ``end``, block by block."""
        first = 0
        for block in self._blocks:
            low, high = max(begin - first, 0), min(end - first, len(block))
            if low < high:
                yield block[low:high]
            first += len(block)

    def _small(self, weights: numpy.ndarray, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(numpy.ascontiguousarray(weights)).to(dtype).to(self._blocks[0].device)
