"""What Gauss rules say of a spectrum, and how surely: sums over eigenvalues, and shares below a threshold.

**Sums.** tr f(A) is P · mean Σ w f(θ). Its variance over probes on the sphere is a function of the spectrum, and so
another such sum. What m steps leave open is judged by the rule of half as many.

**Shares.** m Lanczos steps fix 2m moments of a probe's measure, and many measures share them. How much mass each of
them can have below x is known (Chebyshev, Markov, Stieltjes): make x itself a node of the rule, and every one of them
lies between the weights of the nodes below x, and those with the weight of x. That weight is about one node's weight
inside the bulk, and falls exponentially with m in a gap, where plain sums over nodes are exact too. We count half of
it: for a smooth density the rest is then far smaller than the half that the bracket allows for.

Source: Golub & Meurant, Matrices, Moments and Quadrature, ch. 6; Akhiezer, The Classical Moment Problem, ch. 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import SupportsFloat

import torch
from torch import Tensor

from diagnostics.curvature.quadrature import GaussRules
from diagnostics.errors import DiagnosticsError

LEAST_COUNT = 1e-3
"""Estimated multiplicity below which a node is no eigenvalue but a copy on its way: the true one averages 1."""

NEAREST = 1e-7
"""A threshold this near to a node, relative to its residual, is as good as on it, and dividing by less loses digits."""


@dataclass(frozen=True)
class Sums:
    """Sums over all eigenvalues, from function values at the nodes, with their standard errors.

    Attributes:
        rules: of all probes.
        dimension: P.
        rounding: relative error of a product.
    """

    rules: GaussRules
    dimension: int
    rounding: float

    def value(self, values: Tensor) -> float:
        """Σ f(λ), for the values (probes, steps) of f at the nodes."""
        return self.dimension * float((self.rules.weights * values).sum(dim=1).mean())

    def error(self, values: Tensor, f: Callable[[Tensor], Tensor] | None = None) -> float:
        """One standard error of that sum; ``f`` computes values at other nodes, None where the rules are exact."""
        if self.rules.nodes.shape[1] == 1 and bool(self._running.any()):
            return math.inf  # one step tells the mean of a measure, and nothing of its width
        sampling = math.sqrt(self._variance(values))
        rounding = self.rounding * self.value(values.abs())
        return math.hypot(sampling, rounding, 0.0 if f is None else self._left_open(f))

    def share_error(self, share: float) -> float:
        """The same for a share of the eigenvalues, whose values are 0 and 1."""
        if min(share, 1 - share) * self.dimension < LEAST_COUNT:
            return 0.0  # no eigenvalue at all, or every one
        one_probe = self._one_probe / self.dimension
        return math.sqrt(one_probe * share * (1 - share) + one_probe**2)

    @property
    def _running(self) -> Tensor:
        """Which chains would have had more to see, (probes,)."""
        return (self.rules.residuals > 0).any(dim=1)

    @property
    def _one_probe(self) -> float:
        """Variance of P · qᵀg(A)q per unit of Σ g², for g of trace zero, after averaging over the probes."""
        return 2 * self.dimension / (self.dimension + 2) / len(self.rules.nodes)

    def _variance(self, values: Tensor) -> float:
        """Over draws of the probes.

        The second term is the doubt about the first: with a few probes and one eigenvalue that outweighs all others,
        its weight may have come out small, and with it the variance. It is what the score interval adds to the plain
        one.
        """
        centred = values - self.value(values) / self.dimension
        square = self.value(centred**2)
        # Centring leaves rounding where the values are all alike.
        if square <= self.dimension * (1e-15 * float(values.abs().max())) ** 2:
            return 0.0
        return self._one_probe * square + self._one_probe**2 * self.value(centred**4) / square

    def _left_open(self, f: Callable[[Tensor], Tensor]) -> float:
        """How much the second half of the steps changed the sum; zero for chains that ended.

        The last step alone would do where convergence is fast, and say too little where it is slow.
        """
        running = self._running
        if not bool(running.any()):
            return 0.0
        nodes, weights = self.rules.nodes[running], self.rules.weights[running]
        fewer_nodes, fewer_weights = shortened(nodes, weights, nodes.shape[1] // 2)
        change = (weights * f(nodes)).sum(dim=1) - (fewer_weights * f(fewer_nodes)).sum(dim=1)
        return self.dimension * abs(float(change.sum())) / len(self.rules.nodes)


def share_below(rules: GaussRules, threshold: float) -> tuple[Tensor, Tensor]:
    """The share of each probe's mass below a threshold, and half the width of its bracket: (probes,) each.

    The rule with a node at x has the eigenvalues of the tridiagonal matrix bordered by one more row. In the
    eigenbasis of T that is an arrow: the nodes on the diagonal, residuals on the border, and in the corner what
    makes x an eigenvalue.
    """
    nodes, weights, residuals = rules.nodes, rules.weights, rules.residuals
    if math.isinf(threshold):
        share = torch.full_like(nodes[:, 0], float(threshold > 0))
        return share, torch.zeros_like(share)
    distances = nodes - threshold
    below = (distances < 0).sum(dim=1, keepdim=True)
    floor = NEAREST * residuals
    distances = torch.where(distances.abs() < floor, torch.where(distances < 0, -floor, floor), distances)
    ratios = torch.where(residuals > 0, residuals**2 / torch.where(residuals > 0, distances, 1.0), 0.0)
    arrow = torch.diag_embed(torch.cat([nodes, threshold + ratios.sum(dim=1, keepdim=True)], dim=1))
    # The last components of the eigenvectors of T alternate in sign where the first are positive.
    border = residuals * (1 - 2 * (torch.arange(nodes.shape[1], device="cpu") % 2))
    arrow[:, :-1, -1] = arrow[:, -1, :-1] = border
    vectors = torch.linalg.eigh(arrow).eigenvectors
    masses = torch.einsum("pi,pij->pj", weights.sqrt(), vectors[:, :-1]) ** 2
    # Interlacing: as many nodes of the new rule as of the old one lie below x, and the next one is x.
    half = masses.gather(1, below)[:, 0] / 2
    first = torch.arange(masses.shape[1], device="cpu") < below
    return torch.where(first, masses, 0.0).sum(dim=1) + half, half


def shortened(nodes: Tensor, weights: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights (probes, steps) of the rules that so many steps would have given.

    Lanczos on a rule itself, from the roots of its weights, is Lanczos on A as far as the rule is exact.
    """
    basis = weights.sqrt().unsqueeze(1)
    while basis.shape[1] < steps:
        image = (nodes * basis[:, -1]).unsqueeze(2)
        for _ in range(2):
            image = image - basis.mT @ (basis @ image)
        basis = torch.cat([basis, torch.nn.functional.normalize(image, dim=1).mT], dim=1)
    values, vectors = torch.linalg.eigh(basis * nodes.unsqueeze(1) @ basis.mT)
    return values, vectors[:, 0] ** 2


def real_number(name: str, given: SupportsFloat) -> float:
    """An argument as a float; what is no number is refused."""
    try:
        if isinstance(given, str):
            raise TypeError
        return float(given)
    except (TypeError, ValueError, RuntimeError):
        raise DiagnosticsError(f"{name} is not a number", given=repr(given), expected="a real number") from None


def check_interval(low: SupportsFloat, high: SupportsFloat) -> tuple[float, float]:
    """The two ends of ``mass(low, high)``."""
    ends = real_number("low", low), real_number("high", high)
    if not ends[0] <= ends[1]:
        raise DiagnosticsError("mass(low, high) is empty", given=f"{low} > {high}", expected="low <= high")
    return ends
