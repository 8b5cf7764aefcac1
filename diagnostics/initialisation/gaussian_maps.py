"""What an element-wise function makes of Gaussian inputs: the step from one layer's kernel to the next.

With (u, v) jointly Gaussian of mean zero, E φ(u)φ(v) is a power series in their correlation,

    E φ(s z) φ(t z') = Σ_k a_k(s) a_k(t) ρᵏ,   a_k(s) = E φ(s z) h_k(z),

h_k the Hermite polynomials that are orthonormal under the normal law: one integral for each input serves all pairs. The
integrals are taken by the trapezoidal rule, which converges faster than any power for smooth functions that fall off
like a Gaussian, and does not mind large s as Gauss-Hermite nodes do. What the series leaves out is bounded by the
tails of Σ a_k² = E φ². Functions made of two straight lines (ReLU, leaky ReLU, the identity) have closed forms.

Source: Poole et al., arXiv 1606.05340 (the maps); Daniely et al., arXiv 1602.05897 (the series).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from diagnostics.units.nonlinearities import slopes

TERMS = 160
REACH, NODES, FINE = 13.0, 4001, 32001
"""Beyond 13 standard deviations the normal law is below the rounding of what lies within."""

_PROBES = (0.01, 0.3, 1.0, 7.3)

Function = Callable[[Tensor], Tensor]


def kernel_map(function: Function, covariance: Tensor) -> tuple[Tensor, float]:
    """E φ(u_a) φ(u_b) for Gaussian u with this covariance, and a bound of its error.

    Args:
        function: φ, element by element.
        covariance: (n, n), of the inputs of one unit under n examples.

    Example:
        >>> kernel_map(torch.relu, torch.eye(2, dtype=torch.float64))[0][0].tolist()  # 1/2, and 1/(2π)
        [0.5, 0.15915494309189535]
    """
    covariance = covariance.double()
    deviations = covariance.diagonal().clamp_min(0.0).sqrt()
    scales = deviations[:, None] * deviations
    correlations = (covariance / scales.where(scales > 0, 1.0)).clamp(-1.0, 1.0)
    correlations.fill_diagonal_(1.0)
    if (lines := two_lines(function)) is not None:
        mean, half = (lines[1] + lines[0]) / 2, (lines[1] - lines[0]) / 2
        both = (1 - correlations.square()).sqrt() + correlations * correlations.asin()
        return scales * (mean**2 * correlations + half**2 * 2 / math.pi * both), 0.0
    nodes, density = _normal(NODES)
    values = function(deviations[:, None] * nodes)
    weighed = values * density.sqrt()
    coefficients = weighed @ _hermite().mT * (nodes[1] - nodes[0])
    squares = (values.square() * density).sum(1) * (nodes[1] - nodes[0])
    missing = (squares - coefficients.square().sum(1)).clamp_min(0.0).sqrt()
    powers = correlations[..., None] ** torch.arange(TERMS, dtype=torch.float64)
    kernel = torch.einsum("ak,bk,abk->ab", coefficients, coefficients, powers)
    tails = missing[:, None] * missing * correlations.abs() ** TERMS
    off = ~torch.eye(len(kernel), dtype=torch.bool)
    kernel = kernel.where(off, torch.diag(squares))
    return kernel, float((tails * off).max())


def mean_square_slope(function: Function, variances: Tensor) -> Tensor:
    """E φ'(u)² for Gaussian u with each of these variances (n,).

    Example:
        >>> mean_square_slope(torch.relu, torch.tensor([1.0, 9.0])).tolist()
        [0.5, 0.5]
    """
    if (lines := two_lines(function)) is not None:
        return torch.full_like(variances, (lines[0] ** 2 + lines[1] ** 2) / 2, dtype=torch.float64)
    # Where a function has a kink its slope jumps, and the rule is only as good as its nodes are close.
    nodes, density = _normal(FINE)
    at = variances.double().sqrt()[:, None] * nodes
    return (slopes(function, at).square() * density).sum(1) * (nodes[1] - nodes[0])


def two_lines(function: Function) -> tuple[float, float] | None:
    """The slopes of φ left and right of zero, where it is two straight lines through it; None otherwise."""
    points = torch.tensor(_PROBES, dtype=torch.float64)
    left, right = (sign * function(sign * points) / points for sign in (-1, 1))
    straight = all(torch.allclose(side, side[0].expand_as(side), rtol=1e-9, atol=1e-12) for side in (left, right))
    return (float(left[0]), float(right[0])) if straight else None


@cache
def _normal(count: int) -> tuple[Tensor, Tensor]:
    # Kept for later: under inference mode they would be of no use outside it.
    with torch.inference_mode(False):
        nodes = torch.linspace(-REACH, REACH, count, dtype=torch.float64)
        return nodes, torch.exp(-nodes.square() / 2) / math.sqrt(2 * math.pi)


@cache
def _hermite() -> Tensor:
    """h_k √density at the nodes, (terms, nodes): with the root of the density in it, the recurrence stays in range."""
    nodes, density = _normal(NODES)
    with torch.inference_mode(False):
        rows = [density.sqrt(), nodes * density.sqrt()]
        for k in range(1, TERMS - 1):
            rows.append((nodes * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
        return torch.stack(rows)
