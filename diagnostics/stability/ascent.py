"""How far the loss can rise nearby: the sharpness that sharpness-aware minimisation (SAM) lowers.

    max over ‖ε‖ ≤ ρ of L(θ + ε) − L(θ).

SAM goes one step of length ρ along the gradient, which is right to first order in ρ: ρ‖g‖, and ½ρ² gᵀHg/‖g‖² beyond.
Several steps, each projected back onto the ball, find more of the maximum where curvature turns the way. Both end at a
point inside the ball, so both are lower bounds of the maximum.

The adaptive form (ASAM) measures ε in units of each weight, ‖ε / |θ|‖ ≤ ρ: rescaling layers against each other leaves
it as it is. The plain form changes then, so values of ρ and of the result are not comparable between the two.

Source: Foret et al., arXiv 2010.01412 (SAM); Kwon et al., arXiv 2102.11600 (ASAM).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from diagnostics.arguments import real_number, require_objective, whole_number
from diagnostics.estimate import Estimate
from diagnostics.objective import Objective
from diagnostics.stability.directional import moved


@dataclass(frozen=True, repr=False)
class AscentSharpness:
    """The rise of the loss found within ρ.

    Attributes:
        value: L(θ + ε) − L(θ) at the worst ε visited, a lower bound of the maximum; the error is rounding alone.
        first_order: ρ‖g‖ (adaptive: ρ‖ |θ|∘g ‖), the rise that a plane would have.
        loss: L(θ).
        rho: ρ.
        gradients: gradients taken.
    """

    value: Estimate
    first_order: Estimate
    loss: float
    rho: float
    gradients: int

    def __str__(self) -> str:
        if not self.value.determined:
            return f"ascent sharpness undetermined: {self.value.how}"
        return f"the loss {self.loss:.4g} rises by at least {self.value} within ρ = {self.rho:g}"

    def __repr__(self) -> str:
        return f"AscentSharpness({self})"


def ascent_sharpness(
    objective: Objective, rho: float = 0.05, *, steps: int = 1, adaptive: bool = False
) -> AscentSharpness:
    """The largest rise of the loss found within a ball around the parameters.

    Args:
        objective: the loss.
        rho: radius of the ball, in units of the parameters; adaptive: in parts of each weight.
        steps: 1 for SAM's own step along the gradient; more for projected ascent, one gradient each.
        adaptive: ASAM's element-wise scaling by |θ|: weights at zero stay there.

    Raises:
        DiagnosticsError: rho or steps out of range.

    Source: arXiv 2010.01412, 2102.11600.

    Example:
        >>> model, data = torch.nn.Linear(1, 1, bias=False), (torch.ones(4, 1), torch.zeros(4, 1))
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> objective = Objective(model, torch.nn.MSELoss(), data)  # w² at w = 1
        >>> round(float(ascent_sharpness(objective, rho=0.1).value), 5)  # 1.1² − 1
        0.21
    """
    require_objective(objective)
    rho = real_number("rho is not positive", rho, "a radius such as 0.05", lambda value: 0 < value < math.inf)
    steps = whole_number("steps is out of range", steps, "a whole number from 1", 1)
    space = objective.space
    theta = space.flatten(space.values()).double()
    scale = theta.abs() if adaptive else torch.ones_like(theta)
    start = objective.loss_at(space.values())
    # In units of the scale: the ball is round there, and the gradient is scaled once more.
    shift, rise, slope, taken = torch.zeros_like(theta), -math.inf, math.nan, 0
    for _ in range(steps):
        loss, gradient = objective.loss_and_gradient(moved(objective, theta, scale * shift))
        taken += 1
        rise = max(rise, loss - start) if taken > 1 else rise
        uphill = scale * gradient.double()
        length = float(torch.linalg.vector_norm(uphill))
        slope = length if taken == 1 else slope
        if not (math.isfinite(loss) and math.isfinite(length)):
            return _nothing(
                objective, f"the loss or its gradient is not finite after {taken - 1} steps", start, rho, taken
            )
        if length == 0.0:
            break
        shift = shift + rho * uphill / length
        shift = shift * min(1.0, rho / float(torch.linalg.vector_norm(shift)))
    if slope == 0.0:
        where = " in every weight that is not zero" if adaptive else ""
        return _nothing(objective, f"the gradient is zero{where}: there is no way up to first order", start, rho, taken)
    end = objective.loss_at(moved(objective, theta, scale * shift))
    if not math.isfinite(end):
        return _nothing(objective, f"the loss is {end} at distance ρ", start, rho, taken)
    rise = max(rise, end - start)
    rounding = 8 * torch.finfo(space.dtype).eps
    way = "one step along the gradient" if steps == 1 else f"projected ascent, {taken} steps, the worst point"
    how = f"{way}, {'adaptive, ' if adaptive else ''}a lower bound of the maximum; {objective.description}"
    return AscentSharpness(
        value=Estimate(rise, rounding * (abs(start) + abs(start + rise)), "residual", how),
        first_order=Estimate(rho * slope, rounding * rho * slope, "residual", f"one gradient; {objective.description}"),
        loss=start,
        rho=rho,
        gradients=taken,
    )


def _nothing(objective: Objective, reason: str, start: float, rho: float, taken: int) -> AscentSharpness:
    undetermined = Estimate(math.nan, math.nan, "residual", f"{reason}; {objective.description}")
    return AscentSharpness(undetermined, undetermined, start, rho, taken)
