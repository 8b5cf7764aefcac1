"""A weight as a matrix, read in blocks: rows are outputs, and everything else is their input.

The first axis is the rows, all others together the columns, so a convolution (c_o, c_i, k, k) counts as its action on
patches, (c_o, c_i k²). A block is half a megabyte of float64 where rows allow it, so that a weight larger than
memory can be read from a mapped file; whoever holds the file is told after each block that this much has been read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BLOCK = 1 << 16
"""Numbers turned into float64 at a time. Of larger blocks the memory is given back and asked for again each time."""

Done = Callable[[], None]


def nothing() -> None:
    """For those who need not be told."""


def as_matrix(weight: Tensor) -> Tensor:
    """(rows, columns), without a copy where the layout allows it; fewer than two axes are one row.

    Example:
        >>> as_matrix(torch.zeros(8, 3, 5, 5)).shape
        torch.Size([8, 75])
    """
    return weight.detach().reshape(1, -1) if weight.ndim < 2 else weight.detach().flatten(1)


def row_blocks(
    matrix: Tensor, done: Done = nothing, dtype: torch.dtype = torch.float64
) -> Iterator[tuple[int, Tensor]]:
    """Whole rows at a time: the first row's number, and the block, which is a view where it has the dtype already."""
    yield from _blocks(matrix, 0, done, dtype)


def column_blocks(matrix: Tensor, done: Done = nothing) -> Iterator[tuple[int, Tensor]]:
    """Whole columns at a time, in float64: the first column's number, and the block."""
    yield from _blocks(matrix, 1, done, torch.float64)


def pieces(matrix: Tensor, done: Done = nothing) -> Iterator[Tensor]:
    """All numbers, some at a time, in no particular order; each piece is flat and of the matrix's own dtype."""
    height = max(1, BLOCK // max(1, matrix.shape[1]))
    for part in matrix.split(height):
        for piece in part.split(BLOCK, dim=1):
            yield piece.reshape(-1)
            done()


def _blocks(matrix: Tensor, axis: int, done: Done, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    length = max(1, BLOCK // max(1, matrix.shape[1 - axis]))
    for start in range(0, matrix.shape[axis], length):
        yield start, matrix.narrow(axis, start, min(length, matrix.shape[axis] - start)).to(dtype)
        done()
