"""Rows of a weight that do nothing of their own: those that are zero, and those that repeat another one.

Two rows are alike where |cos| ≥ 0.9999, so up to their length and their sign: the units behind them put out the same
but for scale. Rows of fewer than eight numbers are alike by chance, and are not compared.

Where WWᵀ is at hand it tells. Otherwise rows of length 1 whose |cos| is that high are at most 0.0141 apart, and so are
their projections on any direction: few pairs are so near on all of 64 random ones, and those are compared in full. No
pair is missed; where too many are left, nothing is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from diagnostics.weights.blocks import BLOCK, Done, as_matrix, nothing, row_blocks
from diagnostics.weights.row_pairs import near_pairs

ALIKE = 0.9999
SHORTEST = 8
DIRECTIONS = 64
MOST_ROWS = 1 << 17
MOST_PAIRS = 1 << 18
LONGEST = 1 << 17

TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Rows:
    """Rows that do nothing of their own.

    Attributes:
        zero: rows that are zero throughout.
        repeated: rows beyond the first of each set of alike ones, zero rows aside; None where it was not taken.
        note: why not.
    """

    zero: int
    repeated: int | None
    note: str = ""


def read_rows(weight: Tensor, row_gram: Tensor | None = None, done: Done = nothing) -> Rows:
    """Count zero and repeated rows of a finite weight.

    Args:
        weight: rows first, any number of axes.
        row_gram: WWᵀ, (rows, rows) in float64, up to a factor, if it is known.
        done: told after each block that was read.

    Example:
        >>> weight = torch.randn(6, 20)
        >>> weight[1], weight[4] = 0.0, -3 * weight[2]
        >>> read_rows(weight)
        Rows(zero=1, repeated=1, note='')
    """
    matrix = as_matrix(weight)
    rows, columns = matrix.shape
    norms = torch.empty(rows, dtype=torch.float64)
    for start, block in row_blocks(matrix, done):
        norms[start : start + len(block)] = _lengths(block)
    zero = int((norms == 0).sum())
    if columns < SHORTEST:
        return Rows(zero, None, f"rows of fewer than {SHORTEST} numbers are alike by chance")
    if row_gram is not None:
        return Rows(zero, _repeated(rows, _alike_by_gram(row_gram)))
    if rows > MOST_ROWS or columns > LONGEST:
        return Rows(zero, None, f"more than {MOST_ROWS:,} rows, or rows of more than {LONGEST:,} numbers")
    candidates = _candidates(matrix, norms, done)
    if candidates is None:
        return Rows(zero, None, "too many rows are nearly alike to compare all of them")
    return Rows(zero, _repeated(rows, _confirmed(matrix, norms, candidates, done)))


def _lengths(block: Tensor) -> Tensor:
    # Scaled, so that neither 1e200 nor 1e-200 makes a row infinite or zero.
    peaks = block.abs().amax(1)
    lengths: Tensor = torch.linalg.vector_norm(block / peaks.clamp_min(TINY)[:, None], dim=1) * peaks
    return lengths


def _alike_by_gram(gram: Tensor) -> numpy.ndarray:
    lengths = gram.diagonal().sqrt()
    pairs = []
    for start in range(0, len(gram), 256):
        part = gram[start : start + 256].abs()
        alike = part >= ALIKE * lengths[start : start + 256, None] * lengths
        alike &= (lengths > 0) & (lengths[start : start + 256, None] > 0)
        found = alike.triu(start + 1).nonzero()
        pairs.append((found + torch.tensor([start, 0])).numpy())
    return numpy.concatenate(pairs)


def _candidates(matrix: Tensor, norms: Tensor, done: Done) -> numpy.ndarray | None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(matrix.shape[1], DIRECTIONS, generator=generator, dtype=torch.float64)
    directions /= torch.linalg.vector_norm(directions, dim=0)
    # Into one array: small pieces between large ones would keep the memory of the large ones from being used again.
    shadows = torch.empty(len(norms), DIRECTIONS)
    for start, block in row_blocks(matrix, done):
        torch.div(block @ directions, norms[start : start + len(block), None], out=shadows[start : start + len(block)])
    # A row and its negative are alike: all are turned to one side, and those near the border stand on both.
    shadows *= torch.where(shadows[:, :1] < 0, -1.0, 1.0)
    reach = math.sqrt(2 * (1 - ALIKE)) + 1e-6
    there = (norms > 0).nonzero()[:, 0]
    border = there[shadows[there, 0] <= reach]
    points = torch.cat([shadows[there], -shadows[border]])
    return near_pairs(points.numpy(), torch.cat([there, border]).numpy(), reach, MOST_PAIRS)


def _confirmed(matrix: Tensor, norms: Tensor, pairs: numpy.ndarray, done: Done) -> numpy.ndarray:
    kept = []
    for part in numpy.array_split(pairs, max(1, len(pairs) * matrix.shape[1] // BLOCK)):
        left, right = (matrix[part[:, side]].double() / norms[part[:, side], None] for side in (0, 1))
        kept.append(part[((left * right).sum(1).abs() >= ALIKE).numpy()])
        done()
    return numpy.concatenate(kept)


def _repeated(rows: int, pairs: numpy.ndarray) -> int:
    graph = coo_array((numpy.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(rows, rows))
    sets, _ = connected_components(graph, directed=False)
    return int(rows - sets)
