"""The Takeuchi information criterion: gradient noise in units of curvature, tr(H⁻¹Σ).

At a minimum of a model that fits, Σ = H and the criterion is the number of parameters; away from that it is an
estimate of how far the loss on new data is above that on these, times N. H is singular in every network, so what is
inverted is the Gauss-Newton matrix plus a damping λ: tr((G + λI)⁻¹Σ). The numerator Δ of random halves of the examples
has E ΔΔᵀ = Σ/N, and N Δᵀ(G + λI)⁻¹Δ by conjugate gradients needs no diagonal approximation. Its error is of the halves
alone. The ratio of traces tr Σ/tr H needs no inverse, and stands beside it.

Source: Thomas et al., arXiv 1906.07774; Takeuchi 1976.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy
import torch
from scipy.sparse.linalg import LinearOperator, cg

from diagnostics.arguments import real_number, require_finite_loss, require_objective, whole_number
from diagnostics.averages import mean
from diagnostics.curvature.operators import GaussNewton, Hessian
from diagnostics.curvature.trace import trace
from diagnostics.estimate import Estimate, listing
from diagnostics.noise.curvature_weighted import halves
from diagnostics.noise.noise_scale import noise_scale
from diagnostics.objective import Objective
from diagnostics.recorded.examples import lengths

PRODUCTS = 500
"""At most, for one solution."""

RTOL = 1e-4
"""Of a solution: far below the error of the draws."""


@dataclass(frozen=True, repr=False)
class TakeuchiInformation:
    """Noise in units of curvature.

    Attributes:
        criterion: tr((G + λI)⁻¹Σ), of the Gauss-Newton matrix; ``nan`` with the reason where it did not converge.
        trace_ratio: tr Σ/tr H; ``nan`` with the reason where tr H is not positive beyond its error.
        damping: λ.
    """

    criterion: Estimate
    trace_ratio: Estimate
    damping: float

    def __str__(self) -> str:
        return f"{listing(self)}\ndamping    {self.damping:.3g}"

    __repr__ = __str__


def takeuchi_information(
    objective: Objective, *, damping: float, draws: int = 16, matvecs: int = 64, seed: int = 0
) -> TakeuchiInformation:
    """tr((G + λI)⁻¹Σ) and tr Σ/tr H.

    Args:
        objective: the loss, of a form whose outputs are seen; near a minimum, on some hundreds of examples.
        damping: λ, above zero, in units of curvature: directions flatter than this count for little. Weight decay is
            one such; the result depends on it, so there is no default.
        draws: random halves of the examples, at a gradient and some dozens of products each.
        matvecs: products for tr H.
        seed: of both.

    Raises:
        DiagnosticsError: a damping that is not positive, fewer than two draws; or as ``noise_scale`` and
            ``GaussNewton``.

    Source: arXiv 1906.07774.

    Example:
        >>> x, noise = torch.randn(400, 3), torch.randn(400, 1)  # least squares: Σ = 4 x xᵀ ε², G = 2 x xᵀ, 2 · 3 = 6
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> found = takeuchi_information(Objective(model, torch.nn.MSELoss(), (x, noise)), damping=1e-3)
        >>> 3 < float(found.criterion) < 10
        True
    """
    require_objective(objective)
    weight = real_number("damping is not positive", damping, "as the weight decay", lambda value: 0 < value < math.inf)
    draws = whole_number("draws is not a number of halves", draws, "at least 2", 2)
    require_finite_loss(objective)
    noise = noise_scale(objective, draws=0).trace_covariance
    return TakeuchiInformation(
        criterion=_criterion(objective, weight, draws, seed),
        trace_ratio=_ratio(noise, trace(Hessian(objective), matvecs=matvecs, seed=seed)),
        damping=weight,
    )


def _criterion(objective: Objective, damping: float, draws: int, seed: int) -> Estimate:
    matrix = GaussNewton(objective)
    size, count = objective.num_parameters, sum(lengths(objective))

    def damped(vector: numpy.ndarray) -> numpy.ndarray:
        given = torch.as_tensor(vector.ravel(), dtype=objective.space.dtype, device=objective.space.device)
        found: numpy.ndarray = (matrix @ given).double().cpu().numpy() + damping * vector.ravel()
        return found

    operator = LinearOperator((size, size), matvec=damped, dtype=numpy.float64)
    factor = count * (count // 2) / (count - count // 2)
    found, missed = [], 0
    for away in halves(objective, objective.gradient(), draws, seed):
        side = away.double().cpu().numpy()
        solution, left = cg(operator, side, rtol=RTOL, maxiter=PRODUCTS)
        missed += left != 0
        found.append(factor * float(side @ solution))
    how = f"{draws} random halves of {count} examples, conjugate gradients; the error is of the halves; {matrix.route}"
    if missed:
        reason = f"{missed} of {draws} solutions were not found in {PRODUCTS} products: damping is too small; {how}"
        return Estimate(math.nan, math.nan, "standard error", reason)
    return mean(found, how)


def _ratio(noise: Estimate, curvature: Estimate) -> Estimate:
    if not curvature.interval()[0] > 0.0:
        return Estimate(math.nan, math.nan, "standard error", f"tr H is not positive beyond its error; {curvature.how}")
    value = noise.value / curvature.value
    relative = math.hypot(noise.error / noise.value if noise.value else 0.0, curvature.error / curvature.value)
    return replace(noise, value=value, error=abs(value) * relative, how=f"{noise.how}; tr H: {curvature.how}")
