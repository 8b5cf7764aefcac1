"""Slow twin of the Gaussian maps: integrals over a plane, point by point of a grid."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def expected_product(function: Function, covariance: Tensor, points: int = 1601) -> float:
    """E φ(u) φ(v) for (u, v) Gaussian with this covariance (2, 2)."""
    z = torch.linspace(-9.0, 9.0, points, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    root = torch.linalg.cholesky(covariance.double())
    u = root[0, 0] * z
    v = root[1, 0] * z[:, None] + root[1, 1] * z
    inner = (function(v) * weight).sum(1)
    return float((function(u) * weight * inner).sum())


def expected_square_slope(function: Function, variance: float, points: int = 20001) -> float:
    """E φ'(u)² with slopes by central differences."""
    z = torch.linspace(-9.0, 9.0, points, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    u, step = math.sqrt(variance) * z, 1e-6
    slope = (function(u + step) - function(u - step)) / (2 * step)
    return float((slope.square() * weight).sum())
