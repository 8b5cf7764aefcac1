"""Slow twins of statistics of single examples' gradients: these are a matrix (N, P), and definitions are loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy

Matrix = numpy.ndarray


def cosines(gradients: Matrix) -> list[float]:
    """Of every pair once."""
    found = []
    for one, other in itertools.combinations(gradients, 2):
        found.append(float(one @ other) / math.sqrt(float(one @ one) * float(other @ other)))
    return found


def covariance(gradients: Matrix) -> Matrix:
    """Σ, unbiased (P, P)."""
    return numpy.atleast_2d(numpy.cov(gradients.T, ddof=1))


def smallest_batches(gradients: Matrix, theta: float, nu: float) -> tuple[float, float, float]:
    """Of the norm, inner-product and orthogonality tests, |G|² without the noise that is in ‖ḡ‖²."""
    mean, count = gradients.mean(0), len(gradients)
    trace = float(covariance(gradients).trace())
    signal = float(mean @ mean) - trace / count
    along = float(numpy.var([float(one @ mean) for one in gradients], ddof=1))
    return trace / (theta**2 * signal), along / (theta * signal) ** 2, (trace - along / signal) / (nu**2 * signal)


def jackknifed(statistic: Callable[[Matrix], float], gradients: Matrix) -> float:
    """A statistic with its bias taken out."""
    count = len(gradients)
    left = [statistic(numpy.delete(gradients, place, axis=0)) for place in range(count)]
    return count * statistic(gradients) - (count - 1) * float(numpy.mean(left))


def clipped_mean(gradients: Matrix, limit: float, batches: list[tuple[int, ...]]) -> tuple[Matrix, float]:
    """The mean over batches of their clipped gradients, and the share that is clipped."""
    found, hits = [], 0
    for batch in batches:
        mean = gradients[list(batch)].mean(0)
        size = math.sqrt(float(mean @ mean))
        hits += size > limit
        found.append(mean * min(1.0, limit / size))
    return numpy.mean(found, axis=0), hits / len(batches)
