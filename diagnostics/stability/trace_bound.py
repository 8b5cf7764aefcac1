"""The trace of the Hessian in units of the optimizer: the stability bound of SGD, where λmax is that of descent.

A minimum is linearly stable for gradient descent when λmax(H) ≤ 2/η. SGD asks for more: at a minimum that fits every
example, with a squared error on one output and one example i at a time, H = E[h_i h_iᵀ] and a step is
Δ ↦ (I − η h_i h_iᵀ) Δ. For second moments not to grow, η E‖h_i‖⁴ ≤ 2 E‖h_i‖² is needed (take Σ = I in
Σ ↦ E[(I − η h hᵀ) Σ (I − η h hᵀ)], which is symmetric), and so, as E‖h‖⁴ ≥ (E‖h‖²)²,

    tr(H) ≤ 2/η,

which is enough too when all ‖h_i‖ are the same. The trace is the sum of all curvatures: it can be far beyond the bound
where λmax is far below it.

The number is tr D^½ (H + Λ) D^½, with D the per-coordinate step sizes of the optimizer in which 1 is its own edge (see
``preconditioner``): for plain SGD, η tr(H) / 2. 1 is the bound at batch 1; at larger batches the noise is smaller, and
so are its demands. With momentum or a preconditioner it is the same sum in the optimizer's own units, and no theorem.

Source: Wu & Su, arXiv 2305.17490.
"""

from __future__ import annotations

from dataclasses import replace

from torch.optim import Optimizer

from diagnostics.arguments import hessian_of, require_finite_loss, require_objective
from diagnostics.curvature.operator import Preconditioned
from diagnostics.curvature.operators import Hessian
from diagnostics.curvature.trace import trace
from diagnostics.estimate import Estimate
from diagnostics.objective import Objective
from diagnostics.stability.preconditioner import scaling


def trace_ratio(
    objective: Objective,
    optimizer: Optimizer,
    *,
    hessian: Hessian | None = None,
    matvecs: int = 64,
    seed: int = 0,
) -> Estimate:
    """The trace of the curvature over the optimizer's threshold; at least the stability ratio where H is positive.

    Args:
        objective: the loss whose curvature counts: the trainer's own, reduction included.
        optimizer: the live torch optimizer, with its state where it preconditions.
        hessian: one already made for this objective, to share its graph.
        matvecs: products to take, at least 4; from P on, the result is exact.
        seed: of the random vectors.

    Returns:
        As ``trace`` has it: unbiased, with one standard error.

    Raises:
        DiagnosticsError: an optimizer without a rule, without state where one is needed, or for another model; a
            sharpness-aware one, whose step has no bound of this kind; a loss that is not finite.

    Source: arXiv 2305.17490.

    Example:
        >>> import torch
        >>> model, data = torch.nn.Linear(2, 1, bias=False), (torch.eye(2), torch.zeros(2, 1))
        >>> objective = Objective(model, torch.nn.MSELoss(), data)  # ½(w₁² + w₂²), of trace 2
        >>> round(float(trace_ratio(objective, torch.optim.SGD(model.parameters(), lr=0.5))), 6)
        0.5
    """
    require_objective(objective)
    scaled = scaling(optimizer, objective.space)
    operator = hessian_of(objective, hessian)
    require_finite_loss(objective)
    measured = trace(Preconditioned(operator, scaled.root, scaled.shift), matvecs=matvecs, seed=seed)
    parts = (measured.how, objective.description, scaled.note)
    return replace(measured, how="; ".join(part for part in parts if part))
