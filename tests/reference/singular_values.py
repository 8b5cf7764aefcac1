"""Slow twin of the feature ranks: a full singular value decomposition, and loops over what it gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy


@dataclass(frozen=True)
class Ranks:
    """The five ranks of one matrix."""

    srank: int
    effective_rank: float
    stable_rank: float
    participation_ratio: float
    approximate_rank: int


def ranks_of(matrix: numpy.ndarray, *, centred: bool = False, delta: float = 0.01) -> Ranks:
    """The ranks of a matrix (samples, units)."""
    matrix = numpy.asarray(matrix, dtype=numpy.float64)
    if centred:
        matrix = matrix - matrix.mean(axis=0)
    sigma = sorted(numpy.linalg.svd(matrix, compute_uv=False).tolist(), reverse=True)
    entropy = -sum(s / sum(sigma) * math.log(s / sum(sigma)) for s in sigma if s > 0)
    squares = [s * s for s in sigma]
    return Ranks(
        srank=_reaching(sigma, delta),
        effective_rank=math.exp(entropy),
        stable_rank=sum(squares) / squares[0],
        participation_ratio=sum(squares) ** 2 / sum(square * square for square in squares),
        approximate_rank=_reaching(squares, delta),
    )


def _reaching(parts: list[float], delta: float) -> int:
    held = 0.0
    for count, part in enumerate(parts, start=1):
        held += part
        if held >= (1 - delta) * sum(parts) * (1 - 1e-9):
            return count
    return len(parts)
