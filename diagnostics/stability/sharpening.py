"""How fast the sharpness rises under the gradient flow, and how strongly oscillation pushes it back.

    α = −∇L · ∇S,    β = ‖∇S⊥‖²,    S = λmax(∇²L).

α is progressive sharpening: what the downhill flow adds to S per unit of time. Once S passes the threshold the
iterates oscillate along the sharpest direction u with a growing amplitude x, and the cubic term of the loss moves them
along −∇S, by ηx²/2 a step: S falls again by (ηx²/2) β per step (⊥: without the part along u). That is how gradient
descent stabilises itself at the edge, where x² settles at about 2α/β.

For a simple eigenvalue ∇S = ∇³L[u, u, ·]: the derivative of H(θ) u along u. It is taken by central differences of
Hessian-vector products, since third derivatives by autograd are silently wrong through normalisation layers. Several
step sizes are tried, and the two neighbours that agree best tell the value and its error.

Source: Damian, Nichani & Lee, arXiv 2209.15594.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.optim import Optimizer

from diagnostics.curvature.eigen.eigenpairs import Eigenpairs, top_eigenpairs
from diagnostics.curvature.operators import Hessian
from diagnostics.curvature.symmetric import rounding_of
from diagnostics.estimate import Estimate
from diagnostics.objective import Objective
from diagnostics.stability.directional import finite_gradient, moved
from diagnostics.stability.gradient_flow import HessianAt
from diagnostics.stability.threshold import threshold

STEPS = 5
"""Step sizes tried, each a quarter of the one before."""

TILTED = 0.1
"""With the eigenvector off by a larger angle than this, its eigenvalue is not told from the next."""


@dataclass(frozen=True, repr=False)
class SharpeningRate:
    """The rates of self-stabilisation at one point.

    Attributes:
        sharpness: S = λmax.
        alpha: −∇L·∇S: dS/dt under gradient flow, per unit of learning rate × steps. Positive: sharpening.
        beta: ‖∇S⊥‖².
        gradient: ∇S, shape (P,), float64; None where it is undetermined.
        steps_to_edge: optimizer steps until S reaches the threshold at this rate; None without an optimizer.
        products: Hessian-vector products taken.
    """

    sharpness: Estimate
    alpha: Estimate
    beta: Estimate
    gradient: Tensor | None
    steps_to_edge: Estimate | None
    products: int

    def __str__(self) -> str:
        if not self.alpha.determined:
            return f"sharpness {self.sharpness}; sharpening rate undetermined: {self.alpha.how}"
        text = f"sharpness {self.sharpness}, sharpening rate α {self.alpha}, self-stabilisation β {self.beta}"
        if self.steps_to_edge is not None and self.steps_to_edge.determined:
            text += f", at the edge in {self.steps_to_edge} steps at this rate"
        return text

    def __repr__(self) -> str:
        return f"SharpeningRate({self})"


def sharpening_rate(
    objective: Objective, optimizer: Optimizer | None = None, *, tol: float | None = None, seed: int = 0
) -> SharpeningRate:
    """α and β at the present parameters, and with an optimizer the steps left to its edge.

    Args:
        objective: the loss.
        optimizer: SGD, with or without momentum, for ``steps_to_edge``.
        tol: relative residual of the eigenvalue; by default what the dtype allows: the eigenvector matters here.
        seed: of the random start.

    Returns:
        Undetermined, with the reason, where the largest eigenvalue is not told from the next: then S has a corner, and
        no gradient.

    Raises:
        DiagnosticsError: a loss, gradient or product that is not finite; an optimizer without a rule.

    Source: arXiv 2209.15594.

    Example:
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(1, 1, bias=False) for _ in range(2))).double()
        >>> for layer, weight in zip(model, (2.0, 0.5)):
        ...     _ = torch.nn.init.constant_(layer.weight, weight)
        >>> ones = torch.ones(1, 1).double()
        >>> objective = Objective(model, lambda output, target: 0.5 * (output - target).square().mean(), (ones, ones))
        >>> rate = sharpening_rate(objective)  # S = u² + v² along the minima uv = 1: ∇S⊥ is that of u² + v²
        >>> round(float(rate.beta), 4), round((2 * (2.0**2 - 0.5**2)) ** 2 / (2.0**2 + 0.5**2), 4)
        (13.2353, 13.2353)
    """
    operator = Hessian(objective)
    size = objective.num_parameters
    gradient, doubt = finite_gradient(objective)
    if tol is None:
        tol = 1e-8 if objective.space.dtype == torch.float64 else 1e-5
    pairs = top_eigenpairs(operator, min(2, size), tol=tol, seed=seed)
    top = pairs.estimate()
    sharpness = Estimate(top.value, top.error, "residual", f"{top.how}; {objective.description}")
    tilt = _tilt(pairs)
    if not tilt < TILTED:
        second = float(pairs.values[1])
        reason = (
            f"the largest eigenvalue is not simple within its error: {top}, the next {second:.6g} "
            f"± {float(pairs.residuals[1]):.1g}; S has no gradient where two eigenvalues meet"
        )
        nothing = Estimate(math.nan, math.nan, "residual", reason)
        return SharpeningRate(
            sharpness, nothing, nothing, None, None if optimizer is None else nothing, operator.matvecs
        )
    u = pairs.vectors[:, 0].double()
    u = u / torch.linalg.vector_norm(u)
    slope = _Slope(objective, u, (operator @ u.to(operator.dtype)).double() - top.value * u, rounding_of(operator))
    ascent, off = slope.measure(tilt)
    along = float(ascent @ u)
    across = ascent - along * u
    length, doubted = float(torch.linalg.vector_norm(across)), float(torch.linalg.vector_norm(doubt))
    unsure = off * float(torch.linalg.vector_norm(gradient)) + doubted * float(torch.linalg.vector_norm(ascent))
    how = (
        f"central differences of Hessian-vector products along the top eigenvector, step {slope.step:.2g}, "
        f"∇S to {off:.1g}; {objective.description}"
    )
    alpha = Estimate(-float(gradient @ ascent), unsure, "residual", how)
    beta = Estimate(length**2, 2 * length * off + off**2, "residual", how)
    left = None if optimizer is None else _steps(objective, optimizer, sharpness, ascent, unsure, gradient)
    products = operator.matvecs + slope.products
    return SharpeningRate(sharpness, alpha, beta, ascent, left, products)


def _tilt(pairs: Eigenpairs) -> float:
    """The sine of the angle by which the top eigenvector may be off: its residual over the gap."""
    if len(pairs.values) == 1:
        return 0.0
    gap = float(pairs.values[0] - pairs.values[1] - pairs.residuals[1])
    return float(pairs.residuals[0]) / gap if gap > 0 else math.inf


class _Slope:
    """∇³L[u, u, ·] by central differences along u, at several step sizes."""

    def __init__(self, objective: Objective, u: Tensor, residual: Tensor, rounding: float) -> None:
        self._objective = objective
        self._u = u
        length = torch.linalg.vector_norm(residual)
        # Where the vector is off, it is off in the directions of its residual: the same derivative of that tells.
        self._block = torch.stack([u, residual / length if float(length) > 0 else torch.zeros_like(u)], dim=1)
        with torch.inference_mode(False):
            self._theta = objective.space.flatten(objective.space.values()).double()
        self._rounding = rounding
        self.step = rounding ** (1 / 3) * (1.0 + float(torch.linalg.vector_norm(self._theta)))
        self.products = 0

    def measure(self, tilt: float) -> tuple[Tensor, float]:
        """∇S, and the norm by which it may be off: from two step sizes, and from the eigenvector."""
        steps = [self.step / 4**index for index in range(STEPS)]
        taken = [self._difference(step) for step in steps]
        apart = [float(torch.linalg.vector_norm(one[:, 0] - other[:, 0])) for one, other in pairwise(taken)]
        best = min(range(len(apart)), key=lambda index: apart[index])
        self.step, chosen = steps[best + 1], taken[best + 1]
        # The least of several differences is small by chance as well.
        chance, rounding = 2 * apart[best], self._rounding * float(torch.linalg.vector_norm(chosen[:, 0]))
        return chosen[:, 0], chance + rounding + 2 * tilt * float(torch.linalg.vector_norm(chosen[:, 1]))

    def _difference(self, step: float) -> Tensor:
        """The derivative along u of H(θ) times u and times the residual's direction, (P, 2)."""
        sides = []
        for sign in (1.0, -1.0):
            there = HessianAt(self._objective, moved(self._objective, self._theta, sign * step * self._u))
            sides.append((there @ self._block.to(there.dtype)).double())
            self.products += self._block.shape[1]
        return (sides[0] - sides[1]) / (2 * step)


def _steps(
    objective: Objective, optimizer: Optimizer, sharpness: Estimate, ascent: Tensor, unsure: float, gradient: Tensor
) -> Estimate:
    """Steps until S is at the threshold, at the rate at which the optimizer moves along a slow flow."""

    def undetermined(reason: str) -> Estimate:
        return Estimate(math.nan, math.nan, "residual", reason)

    edges = threshold(optimizer).by_group
    settings = {
        (edge.value, edge.lr, *(group.get(name, 0.0) for name in ("momentum", "dampening", "weight_decay")))
        for edge, group in zip(edges, optimizer.param_groups, strict=True)
    }
    if len(settings) > 1:
        return undetermined("the parameter groups differ")
    edge, lr, momentum, dampening, decay = settings.pop()
    if not edges[0].rule.startswith("sgd"):
        return undetermined(f"only for SGD, whose edge is one of the plain sharpness; here {edges[0].rule}")
    if lr == 0.0:
        return undetermined("the learning rate is zero")
    left = edge - sharpness.value
    if left <= sharpness.error:
        return undetermined(f"the sharpness is at or beyond the threshold of {edge:.6g} already")
    theta = objective.space.flatten(objective.space.values()).double()
    # A constant gradient is passed by momentum with the factor F(1) = (1 − τ) / (1 − β).
    speed = lr * (1.0 - (dampening if momentum else 0.0)) / (1.0 - momentum)
    way = gradient + decay * theta
    share = float(torch.linalg.vector_norm(way) / torch.linalg.vector_norm(gradient)) if decay else 1.0
    rate = -speed * float(way @ ascent)
    error = speed * unsure * max(share, 1.0)
    if rate <= error:
        return undetermined(f"the sharpness does not rise: {rate:.3g} ± {error:.1g} per step")
    how = f"({edge:.6g} − S) over {rate:.3g} per step, as if the rate stayed what it is"
    return Estimate(left / rate, sharpness.error / rate + left / rate * error / rate, "residual", how)
