"""All singular values of a weight, exact for small ones, from the smaller Gram matrix for the others.

A small weight is decomposed in float64. For a larger one the eigenvalues of WᵀW or WWᵀ, whichever is smaller, are
taken, summed up in float64 from blocks: the same values sooner, and without a second copy of the weight. Squares lose
half the digits, so of a side of r what lies below √(r ε), some 10⁻⁷, of the largest is rounding. Of weights whose
smaller side is above a limit only the largest singular value is taken, by Lanczos; its products are in float32 where
the weight holds no more digits than that, which is three times as fast, and their rounding counts in its error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.curvature.eigen.eigenpairs import top_eigenpairs
from diagnostics.estimate import Estimate, exact
from diagnostics.weights.blocks import Done, column_blocks, nothing, row_blocks

SMALL = 1 << 18
"""Up to so many numbers a weight is decomposed itself."""

EPSILON = torch.finfo(torch.float64).eps

FEW_ROWS = 1024
"""Up to so many rows WWᵀ of a small weight is made in any case."""

TOL = 1e-3
"""Relative residual of σ_max² where it is found by Lanczos."""

FAR = 1e12
"""Beyond it, or its inverse, squares of entries leave the range of float32."""


@dataclass(frozen=True)
class SingularValues:
    """What is known of a matrix's singular values.

    Attributes:
        largest: σ₁.
        values: (r,) float64, largest first, r the smaller side; None where that is above the limit.
        resolution: below this a value is rounding.
        squared: whether the values are roots of eigenvalues, known up to the square of the resolution.
        row_gram: WWᵀ, (rows, rows), where it was made on the way.
    """

    largest: Estimate
    values: Tensor | None
    resolution: float
    squared: bool
    row_gram: Tensor | None


def singular_values(matrix: Tensor, scale: float, *, max_side: int, done: Done = nothing) -> SingularValues:
    """The singular values of a finite matrix that is not zero.

    Args:
        matrix: (rows, columns), of any dtype that can be turned into float64.
        scale: its largest magnitude, by which it is divided first, so that squares stay within range.
        max_side: the longest smaller side whose eigenvalues are taken.
        done: told after each block that was read.
    """
    rows, columns = matrix.shape
    side = min(rows, columns)
    if side > max_side:
        return SingularValues(_largest(matrix, scale, done), None, math.nan, False, None)
    if matrix.numel() <= SMALL:
        whole = torch.cat([block for _, block in row_blocks(matrix, done)]) / scale
        values = torch.linalg.svdvals(whole) * scale
        gram = whole @ whole.mT if rows <= max(columns, FEW_ROWS) else None
        precision = max(rows, columns) * EPSILON
        how = "singular value decomposition in float64"
    else:
        squares = _gram(matrix, scale, done)
        values = torch.linalg.eigvalsh(squares).flip(0).clamp_min(0.0).sqrt() * scale
        gram = squares if rows <= columns else None
        precision = math.sqrt(side * EPSILON)
        how = "eigenvalues of the smaller Gram matrix in float64"
    top = float(values[0])
    return SingularValues(exact(top, how), values, top * precision, matrix.numel() > SMALL, gram)


def _gram(matrix: Tensor, scale: float, done: Done) -> Tensor:
    rows, columns = matrix.shape
    gram = torch.zeros(min(rows, columns), min(rows, columns), dtype=torch.float64)
    blocks = column_blocks(matrix, done) if rows <= columns else row_blocks(matrix, done)
    for _, block in blocks:
        part = block / scale if rows <= columns else block.mT / scale
        gram.addmm_(part, part.mT)
    return gram


def _largest(matrix: Tensor, scale: float, done: Done) -> Estimate:
    found = top_eigenpairs(_Gram(matrix, scale, done), tol=TOL).estimate()
    below, above = math.sqrt(max(found.value - found.error, 0.0)), math.sqrt(found.value + found.error)
    how = f"of WᵀW: {found.how}"
    return Estimate(scale * math.sqrt(found.value), scale * (above - below) / 2, "residual", how)


class _Gram:
    """WᵀW by its products, block by block."""

    def __init__(self, matrix: Tensor, scale: float, done: Done) -> None:
        self.matrix, self.scale, self.done = matrix, scale, done
        self.shape = (matrix.shape[1], matrix.shape[1])
        narrow = matrix.dtype.itemsize <= 4 and 1 / FAR <= scale <= FAR
        self.dtype = torch.float32 if narrow else torch.float64
        self.device = matrix.device

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        product = torch.zeros_like(vectors)
        for _, block in row_blocks(self.matrix, self.done, self.dtype):
            product += block.mT @ (block @ vectors)
        return product / self.scale**2
