"""Second moments of a noisy quadratic under the heavy ball, and when its expected loss comes down to a target.

With momentum β and preconditioning p a step is

    m ← β m + h^{−p} g,    θ ← θ − η m,

so each direction has the curvature k = h^{1−p} and the noise q = c h^{−2p}/B. Its second moments
M = E[(θ, m)(θ, m)ᵀ] follow M ← A M Aᵀ + q (−η, 1)(−η, 1)ᵀ with A = [[1 − ηk, −ηβ], [k, β]], and after t steps are

    M_t = A^t (M_0 − M_∞) (A^t)ᵀ + M_∞,    E m²_∞ = 2q/((1 − β)(2(1 + β) − ηk)),
    E θm_∞ = −η/2 E m²_∞,    E θ²_∞ = η(1 + β)/(2k) E m²_∞.

M_∞ is where the recursion stands still, also where η is too large for it to be reached.

Source: Zhang et al., arXiv 1907.04164; M_∞ is derived from θ' − θ = −ηm'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy

from diagnostics.averages import Draws

LOOKS = 16
"""Times per doubling at which the loss is looked at: momentum makes it swing."""

MOST = 10**8
"""Steps after which a target counts as out of reach."""

SINGULAR = 1e-10
"""Relative distance kept from ηk = 2(1 + β), where second moments grow linearly and M_∞ does not exist."""


@dataclass(frozen=True)
class Descent:
    """One optimizer on one quadratic, for many learning rates at once.

    Attributes:
        curvature: k (n,), above zero.
        noise: q (n,).
        weights: of E θ² in the loss (n,), ½ h times the number of directions.
        start: E θ² at step 0 (n,); m starts at zero.
        beta: momentum.

    Example:
        >>> one = numpy.ones(1)
        >>> Descent(one, one, 0.5 * one, one, 0.0).losses(numpy.array([0.5, 1.0]), 1)  # ½ ((1 − η)² + η²)
        array([0.25, 0.5 ])
    """

    curvature: Draws
    noise: Draws
    weights: Draws
    start: Draws
    beta: float

    @property
    def largest_rate(self) -> float:
        """Below which the loss stays finite."""
        return 2 * (1 + self.beta) / float(self.curvature.max())

    def losses(self, rates: Draws, steps: int) -> Draws:
        """Expected loss (rates,) after so many steps."""
        return self._loss(rates, _power(self._matrix(rates), steps))

    def bracket(self, rates: Draws, target: float) -> tuple[int, int | None]:
        """The last look before the target is reached at any rate, and the first look after."""
        before, steps, stride = 0, 0, 1
        jump = self._matrix(rates)
        now = _power(jump, 0)
        while not bool((self._loss(rates, now) <= target).any()):
            if steps >= MOST:
                return steps, None
            if steps == 2 * LOOKS * stride:
                jump, stride = _product(jump, jump), 2 * stride
            before, steps, now = steps, steps + stride, _product(jump, now)
        return before, steps

    def _matrix(self, rates: Draws) -> Draws:
        """A, (2, 2, rates, eigenvalues)."""
        eta, k = self._grid(rates)
        return numpy.array([[1 - eta * k, -eta * self.beta], [k, numpy.full_like(k, self.beta)]])

    def _grid(self, rates: Draws) -> tuple[Draws, Draws]:
        """η and k, (rates, eigenvalues) each."""
        eta, k = numpy.broadcast_arrays(rates[:, None], self.curvature)
        edge = 2 * (1 + self.beta)
        return eta, numpy.where(numpy.abs(eta * k - edge) < SINGULAR * edge, k * (1 - 2 * SINGULAR), k)

    def _loss(self, rates: Draws, power: Draws) -> Draws:
        """For A^t."""
        (eta, k), beta = self._grid(rates), self.beta
        velocity = 2 * self.noise / ((1 - beta) * (2 * (1 + beta) - eta * k))
        cross, place = -eta / 2 * velocity, eta * (1 + beta) / (2 * k) * velocity
        with numpy.errstate(all="ignore"):
            first, second = power[0]
            square = first**2 * (self.start - place) - 2 * first * second * cross - second**2 * velocity + place
            losses = (square * self.weights).sum(1)
        # Beyond the largest number, ∞ − ∞ is no loss.
        return numpy.where(numpy.isfinite(losses), losses, math.inf)


def _product(left: Draws, right: Draws) -> Draws:
    with numpy.errstate(all="ignore"):
        product: Draws = numpy.einsum("ij...,jk...->ik...", left, right)
        return product


def _power(matrix: Draws, exponent: int) -> Draws:
    """By repeated squaring, entry by entry of what comes after the first two dimensions."""
    found = numpy.zeros_like(matrix)
    found[0, 0] = found[1, 1] = 1.0
    while exponent:
        if exponent % 2:
            found = _product(found, matrix)
        matrix, exponent = _product(matrix, matrix), exponent // 2
    return found
