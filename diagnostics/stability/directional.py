"""Curvature along a step: what the quadratic model says of an update that was taken, or is about to be.

    L(θ + Δ) − L(θ) ≈ g·Δ + ½ ΔᵀHΔ.

For a descent direction the first term gains and the second loses, and the ratio ΔᵀHΔ / (−2 g·Δ) is 1 where the two
cancel: the step no longer lowers the loss. For a step Δ = −η P⁻¹ g without momentum and decay it is a weighted mean of
the eigenvalues of (η/2) P^-½ H P^-½, with the weights that P^-½ g gives them. So it is never above the largest, which
is the stability ratio: a lower bound of it, from one product.

Source: Mishkin et al. 2024, arXiv 2403.04081.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.arguments import hessian_of, require_objective
from diagnostics.curvature.draws import random_stream
from diagnostics.curvature.eigen.basis import random_vector
from diagnostics.curvature.operators import Hessian
from diagnostics.curvature.symmetric import rounding_of, route_of
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate
from diagnostics.objective import Objective

CAUTION = 3.0
"""So many times the rounding that one sample of it showed along the update is taken for the error."""


@dataclass(frozen=True, repr=False)
class DirectionalSharpness:
    """The quadratic model of the loss along one update Δ.

    Attributes:
        curvature: ΔᵀHΔ / ‖Δ‖².
        ratio: ΔᵀHΔ / (−2 g·Δ); 1 where the step no longer lowers the loss. Undetermined where Δ does not descend.
        predicted_change: g·Δ + ½ ΔᵀHΔ, in units of the loss.
        slope: g·Δ, in units of the loss.
        length: ‖Δ‖.
    """

    curvature: Estimate
    ratio: Estimate
    predicted_change: Estimate
    slope: Estimate
    length: float

    def __str__(self) -> str:
        ratio = f"{self.ratio}" if self.ratio.determined else f"undetermined ({self.ratio.how})"
        return (
            f"step ratio {ratio} (1: the step no longer lowers the loss): "
            f"curvature {self.curvature} along it, predicted change of the loss {self.predicted_change}"
        )

    def __repr__(self) -> str:
        return f"DirectionalSharpness({self})"


def directional_sharpness(
    objective: Objective, update: Tensor, *, hessian: Hessian | None = None
) -> DirectionalSharpness:
    """What the quadratic model at the present parameters says of an update.

    Args:
        objective: the loss.
        update: Δ, shape (P,), in the order of ``objective.space``: θ' − θ, learning rate and all.
        hessian: one already made for this objective, to share its graph.

    Raises:
        DiagnosticsError: an update of another shape, not finite, or zero; a gradient or product that is not finite.

    Source: arXiv 2403.04081.

    Example:
        >>> model, data = torch.nn.Linear(1, 1, bias=False), (torch.ones(4, 1), torch.zeros(4, 1))
        >>> objective = Objective(model, torch.nn.MSELoss(), data)  # w², of curvature 2
        >>> step = directional_sharpness(objective, -0.5 * objective.gradient())
        >>> round(float(step.ratio), 5), round(float(step.curvature), 5)
        (0.5, 2.0)
    """
    delta = checked_direction(objective, update, "update")
    length = float(torch.linalg.vector_norm(delta))
    operator = hessian_of(objective, hessian)
    if not objective.verified_routes:
        # The first product is held against differences of gradients. Along a step of signs these meet so many kinks of
        # a ReLU network at once that they say nothing; along a random vector they do.
        operator @ random_vector(len(delta), random_stream(0), operator.dtype, operator.device)
    # A unit vector: neither tiny steps nor huge ones leave the range of single precision.
    unit = delta / length
    product = (operator @ unit.to(operator.dtype)).double()
    gradient, doubt = finite_gradient(objective)
    rounding = rounding_of(operator)
    how = f"one product, two gradients, {route_of(operator)}; {objective.description}"

    def estimate(value: float, error: float) -> Estimate:
        return Estimate(value, error, "residual", how)

    curvature = float(unit @ product)
    curvature_error = rounding * float(torch.linalg.vector_norm(product))
    slope = length * float(gradient @ unit)
    plain = 8 * torch.finfo(objective.space.dtype).eps * float(torch.linalg.vector_norm(gradient))
    # Rounding points anywhere: of its length, only what falls on the update counts, and a sample of it may fall short.
    usual = float(torch.linalg.vector_norm(doubt)) / math.sqrt(len(doubt))
    slope_error = length * (plain + CAUTION * max(abs(float(doubt @ unit)), usual))
    half, half_error = 0.5 * length**2 * curvature, 0.5 * length**2 * curvature_error
    if slope < -slope_error:
        ratio_error = (half_error + abs(half) * slope_error / -slope) / -slope
        ratio = estimate(half / -slope, ratio_error)
    elif slope <= slope_error:
        ratio = Estimate(math.nan, math.nan, "residual", f"the slope along the update is zero to rounding: {slope:.3g}")
    else:
        ratio = Estimate(math.nan, math.nan, "residual", f"not a descent direction: g·Δ = {slope:.3g}")
    return DirectionalSharpness(
        curvature=estimate(curvature, curvature_error),
        ratio=ratio,
        predicted_change=estimate(slope + half, slope_error + half_error),
        slope=estimate(slope, slope_error),
        length=length,
    )


def checked_direction(objective: Objective, direction: Tensor, name: str) -> Tensor:
    """A direction in the objective's parameter space as a float64 vector (P,) of our own, on its device.

    Raises:
        DiagnosticsError: another shape, not real, not finite, or zero.
    """
    vector = parameter_vector(objective, direction, name)
    if not bool(vector.any()):
        raise DiagnosticsError(f"{name} is zero", given="a vector of zeros", expected="a direction to go in")
    return vector


def parameter_vector(objective: Objective, direction: Tensor, name: str) -> Tensor:
    """The same, where zero will do.

    Raises:
        DiagnosticsError: another shape, not real, not finite.
    """
    require_objective(objective)
    size = objective.num_parameters
    if not isinstance(direction, Tensor):
        given = type(direction).__name__
    elif direction.is_complex() or direction.is_meta or direction.layout is not torch.strided:
        given = f"{direction.dtype}, {direction.layout}, on {direction.device}"
    else:
        given = "" if tuple(direction.shape) == (size,) else f"shape {tuple(direction.shape)}"
    if given:
        raise DiagnosticsError(
            f"{name} does not fit the objective",
            given=given,
            expected=f"a real dense tensor of shape ({size},)",
            attempt="objective.space.flatten(parts), with one tensor per selected parameter",
        )
    with torch.inference_mode(False), torch.no_grad():
        vector = direction.detach().to(objective.space.device, torch.float64, copy=True)
    if not bool(torch.isfinite(vector).all()):
        raise DiagnosticsError(f"{name} is not finite", given="NaN or infinity in it", expected="finite entries")
    return vector


def moved(objective: Objective, start: Tensor, step: Tensor) -> tuple[Tensor, ...]:
    """The parameters ``start + step``, one tensor per selected parameter, from two float64 vectors (P,)."""
    # Tensors made in inference mode could not be differentiated at.
    with torch.inference_mode(False), torch.no_grad():
        return objective.space.unflatten((start + step).to(objective.space.dtype))


def last_digits(objective: Objective, start: Tensor) -> Tensor:
    """A step (P,) that changes every parameter by its last digit, up or down at random: what rounding may do."""
    signs = torch.randint(0, 2, start.shape, generator=random_stream(0), device="cpu").to(start)
    return torch.finfo(objective.space.dtype).eps * start * (2 * signs - 1)


def finite_gradient(objective: Objective) -> tuple[Tensor, Tensor]:
    """∇L and an error of it by rounding, both (P,) in float64.

    The error is what changes when every parameter moves by its last digit: some times as much as rounding itself does.
    After a good fit the gradient is a small difference of large numbers, and then that is far more than the last digits
    of the gradient.

    Raises:
        DiagnosticsError: it is not finite.
    """
    with torch.inference_mode(False):
        start = objective.space.flatten(objective.space.values()).double()
    loss, gradient = objective.loss_and_gradient(objective.space.values())
    if not (math.isfinite(loss) and bool(torch.isfinite(gradient).all())):
        raise DiagnosticsError(
            "the loss or its gradient is not finite",
            given=f"loss {loss:g}",
            expected="finite parameters, data and loss",
            attempt="a checkpoint from before the run diverged",
        )
    _, beside = objective.loss_and_gradient(moved(objective, start, last_digits(objective, start)))
    return gradient.double(), beside.double() - gradient.double()
