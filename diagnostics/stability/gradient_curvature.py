"""Where the gradient points: along how much curvature, and how much of it lies in the few sharpest directions.

After a few epochs most of the gradient of a classifier lies in the space of the k sharpest Hessian eigenvectors, with
k the number of classes, and that space hardly moves: gradient descent happens in a tiny subspace. At the edge of
stability the gradient turns towards the sharpest direction alone.

The share is that of the squared norm, ‖P_k g‖² / ‖g‖². Computed eigenvectors are out of their true space by at most
residual over gap each (Davis & Kahan 1970), and the error follows from that; it is large where the gradient uses a
direction whose eigenvalue is hardly above the (k+1)-th, and then the space itself is not well defined.

Source: Gur-Ari, Roberts & Dyer, arXiv 1812.04754.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.arguments import hessian_of, require_objective, whole_number
from diagnostics.curvature.eigen.eigenpairs import Eigenpairs, top_eigenpairs
from diagnostics.curvature.operators import Hessian
from diagnostics.curvature.symmetric import rounding_of, route_of
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate
from diagnostics.objective import Objective
from diagnostics.stability.directional import finite_gradient


@dataclass(frozen=True, repr=False)
class GradientCurvature:
    """Where the gradient g points.

    Attributes:
        norm: ‖g‖.
        curvature: gᵀHg / ‖g‖².
        alignment: cos(g, Hg): 1 where g is an eigenvector of positive curvature.
        subspace_share: ‖P_k g‖² / ‖g‖² for the k sharpest directions; None without k.
        sharpest_share: |⟨g, u₁⟩| / ‖g‖ for the sharpest one, a cosine and not squared; None without k.
        k: how many directions.
    """

    norm: Estimate
    curvature: Estimate
    alignment: Estimate
    subspace_share: Estimate | None
    sharpest_share: Estimate | None
    k: int

    def __str__(self) -> str:
        text = f"gradient of norm {self.norm:.4g}: curvature {self.curvature} along it, cos(g, Hg) {self.alignment}"
        if self.subspace_share is not None:
            text += f", share of the {self.k} sharpest directions {self.subspace_share}"
        return text

    def __repr__(self) -> str:
        return f"GradientCurvature({self})"


def gradient_curvature(
    objective: Objective, k: int = 0, *, hessian: Hessian | None = None, tol: float = 1e-2, seed: int = 0
) -> GradientCurvature:
    """The curvature along the gradient, and with k the share of the gradient in the k sharpest directions.

    Args:
        objective: the loss.
        k: how many sharpest directions (the number of classes is customary); 0 leaves them out.
        hessian: one already made for this objective, to share its graph.
        tol: relative residual of the eigenvalues; a smaller one narrows the error of the shares.
        seed: of the random start.

    Returns:
        Directions are undetermined, with the reason, where the gradient is zero.

    Raises:
        DiagnosticsError: k out of range; a loss, gradient or product that is not finite.

    Source: arXiv 1812.04754.

    Example:
        >>> model, data = torch.nn.Linear(2, 1, bias=False), (torch.diag(torch.tensor([2.0, 1.0])), torch.zeros(2, 1))
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> measured = gradient_curvature(Objective(model, torch.nn.MSELoss(), data), k=1)  # 2w₁² + ½w₂²
        >>> round(float(measured.curvature), 4), round(float(measured.subspace_share), 4)
        (3.8235, 0.9412)
    """
    require_objective(objective)
    size = objective.num_parameters
    k = whole_number("k is out of range", k, f"a whole number from 0 to P = {size}", 0)
    if k > size:
        raise DiagnosticsError("k is out of range", given=repr(k), expected=f"a whole number from 0 to P = {size}")
    gradient, doubt = finite_gradient(objective)
    operator = hessian_of(objective, hessian)
    length, doubted = float(torch.linalg.vector_norm(gradient)), float(torch.linalg.vector_norm(doubt))
    rounding = 8 * torch.finfo(objective.space.dtype).eps
    norm = Estimate(length, rounding * length + doubted, "residual", f"two gradients; {objective.description}")
    if length == 0.0:
        nothing = Estimate(math.nan, math.nan, "residual", "the gradient is zero: it has no direction")
        chosen = nothing if k else None
        return GradientCurvature(norm, nothing, nothing, chosen, chosen, k)
    unit, turn = gradient / length, doubted / length
    # The second product tells what curvature the rounding of the gradient lies along: often the sharpest there is.
    off = doubt / doubted if doubted > 0.0 else torch.zeros_like(unit)
    products = (operator @ torch.stack([unit, off], dim=1).to(operator.dtype)).double()
    product, astray = products[:, 0], products[:, 1]
    how = f"two products, two gradients, {route_of(operator)}; {objective.description}"
    image, rounded = float(torch.linalg.vector_norm(product)), rounding_of(operator)
    along = float(unit @ product)
    across = float(torch.linalg.vector_norm(product - along * unit))
    error = rounded * image + 2 * turn * across + turn**2 * abs(float(off @ astray) - along)
    curvature = Estimate(along, error, "residual", how)
    if image > 0.0:
        stretched = rounded + turn * float(torch.linalg.vector_norm(astray)) / image
        cosine = min(max(along / image, -1.0), 1.0)
        alignment = Estimate(cosine, min(error / image + stretched, 1.0 + abs(cosine)), "residual", how)
    else:
        alignment = Estimate(math.nan, math.nan, "residual", "Hg is zero: it has no direction")
    if k == 0:
        return GradientCurvature(norm, curvature, alignment, None, None, 0)
    # One more than asked for: the gap behind the last is what tells the space from the rest.
    pairs = top_eigenpairs(operator, min(k + 1, size), tol=tol, seed=seed)
    cosines = pairs.vectors[:, :k].double().T @ unit
    source = f"k = {k}, {pairs.how}; {objective.description}"
    low, inside, high = _within(cosines, _tilts(pairs, k) + rounding, turn)
    share = Estimate(inside**2, max(high**2 - inside**2, inside**2 - low**2), "residual", source)
    low, first, high = _within(cosines[:1], _tilts(pairs, 1) + rounding, turn)
    sharpest = Estimate(first, max(high - first, first - low), "residual", source)
    return GradientCurvature(norm, curvature, alignment, share, sharpest, k)


def _tilts(pairs: Eigenpairs, k: int) -> Tensor:
    """How far each of the first k computed vectors may be out of the true space of as many: sines, (k,).

    For a true eigenvector w with λ below the k-th, wᵀr_i = (λ − θ_i) wᵀv_i: no v_i holds more of the rest than
    ‖r_i‖ / (θ_i − λ).
    """
    if len(pairs.values) == k:
        return torch.zeros(k, dtype=torch.float64)
    if not pairs.converged:
        return torch.ones(k, dtype=torch.float64)
    distances = pairs.values[:k] - (pairs.values + pairs.residuals)[k]
    tilts: Tensor = torch.where(distances > 0, pairs.residuals[:k] / distances, 1.0)
    return tilts.clamp(max=1.0)


def _within(cosines: Tensor, tilts: Tensor, turn: float) -> tuple[float, float, float]:
    """The length of a unit vector's projection on the true space: at least, as computed, and at most.

    What it has in the computed space may be out of the true one by each vector's own tilt, so a vector that is known
    poorly does no harm where it is hardly used; what it has outside may be in the true one by the tilt of the whole.
    The vector itself may be turned by ``turn``.
    """
    inside = min(1.0, float(torch.linalg.vector_norm(cosines)))
    lost = float((cosines.abs().cpu() * tilts).sum())
    gained = math.sqrt(1.0 - inside**2) * min(1.0, float(torch.linalg.vector_norm(tilts)))
    low = math.sqrt(max(0.0, inside**2 - lost**2)) - gained - turn
    return max(0.0, low), inside, min(1.0, inside + gained + turn)
