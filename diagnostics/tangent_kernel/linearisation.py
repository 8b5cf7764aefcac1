"""Whether a step changes the outputs as the tangents say: f(θ + Δ) − f(θ) against J Δ.

A network in the lazy regime is linear in its parameters as far as it moves: every step, and all steps together from
θ₀, change the outputs by J Δ. In the rich regime the first-order model holds for single steps at best. Added up along a
run, first-order changes telescope: f_T − f_0 = Σ_t J_t Δ_t + what curvature adds.

J Δ is taken by two backward passes, or from differences of the outputs where an operation cannot be differentiated
twice.

Source: Chizat et al., arXiv 1812.07956 (lazy training); Jeffares et al., arXiv 2411.00247 (telescoping).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diagnostics.arguments import require_objective
from diagnostics.curvature.products.check import REFUSALS, reason_of
from diagnostics.curvature.products.jacobian import Sandwich
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate
from diagnostics.objective import Objective
from diagnostics.output_loss import OutputMap
from diagnostics.quiet import quiet
from diagnostics.recorded.examples import lengths
from diagnostics.recorded.outputs import flattened
from diagnostics.stability.directional import moved, parameter_vector

LOST = 16.0
"""Rounding of a difference of outputs, in units of ε and of the size of the outputs."""


@dataclass(frozen=True, repr=False)
class Linearisation:
    """What one step makes of the outputs, and what it would make of them to first order.

    Attributes:
        predicted: J Δ, (N, C), float64.
        actual: f(θ + Δ) − f(θ), likewise.
        error: ‖actual − predicted‖/‖actual‖: 0 where the model is linear in its parameters as far as the step goes.
        rounding: of ``actual``, as a norm.
    """

    predicted: Tensor
    actual: Tensor
    error: Estimate
    rounding: float

    def __str__(self) -> str:
        error = f"{self.error}" if self.error.determined else f"undetermined ({self.error.how})"
        return f"outputs move by {float(self.actual.norm()):.3g}; relative error of the first-order prediction {error}"

    def __repr__(self) -> str:
        return f"Linearisation({self})"


def linearisation(objective: Objective, update: Tensor, *, at: Tensor | None = None) -> Linearisation:
    """The change of the outputs by an update, and its first-order prediction.

    Args:
        objective: made with ``Objective(model, loss, batches)`` or ``Objective.huggingface``.
        update: Δ, shape (P,), in the order of ``objective.space``: θ' − θ, learning rate and all.
        at: θ, likewise (P,), where tangents are taken; the present parameters by default. Buffers, and parameters that
            were not selected, are those of the present.

    Raises:
        DiagnosticsError: outputs that cannot be seen, differ in number from example to example, or are not finite
            before or after; an update of another shape, or not finite.

    Source: arXiv 2411.00247.

    Example:
        >>> model, x = torch.nn.Linear(2, 1), torch.randn(5, 2)
        >>> objective = Objective(model, torch.nn.MSELoss(), (x, x[:, :1]))
        >>> step = linearisation(objective, -0.1 * objective.gradient())
        >>> float(step.error) < 1e-5
        True
    """
    require_objective(objective)
    delta = parameter_vector(objective, update, "update")
    predicted, actual, sizes, refused = [], [], [], ""
    with quiet(objective.model, objective.mode):
        start = objective.space.flatten(objective.space.values()).double()
        if at is not None:
            start = parameter_vector(objective, at, "at")
        after = moved(objective, start, delta)
        # The step that is taken: what single precision makes of θ + Δ.
        before = moved(objective, start, torch.zeros_like(delta))
        step = [end - begin for end, begin in zip(after, before, strict=True)]
        for index, count in enumerate(lengths(objective)):
            pushed, refused = _pushed(objective, index, before, step, refused)
            with torch.no_grad():
                ends = [flattened(objective.batch_outputs(index, end).outputs, count) for end in (before, after)]
            predicted.append(flattened(pushed.detach(), count).double())
            actual.append(ends[1].double() - ends[0].double())
            sizes.append(ends[0].double())
    if len({part.shape[1] for part in actual}) > 1:
        raise DiagnosticsError("examples differ in the number of their outputs", expected="the same for every example")
    if not all(bool(torch.isfinite(part).all()) for part in (*predicted, *actual)):
        raise DiagnosticsError("the outputs are not finite", given="NaN or infinity before or after the update")
    rounding = LOST * torch.finfo(objective.space.dtype).eps * float(torch.linalg.vector_norm(torch.cat(sizes)))
    how = f"JΔ by {'differences of outputs (' + refused + ')' if refused else 'double backward'}"
    whole = torch.cat(predicted), torch.cat(actual)
    return Linearisation(*whole, _relative(*whole, rounding, f"{how}; {objective.description}"), rounding)


def telescoped(steps: Sequence[Linearisation]) -> Estimate:
    """‖(f_T − f_0) − Σ_t J_t Δ_t‖/‖f_T − f_0‖: how far off the sum of first-order changes is after several steps.

    Args:
        steps: of consecutive updates, each at the parameters that the one before it led to.

    Raises:
        DiagnosticsError: none, or of other examples.

    Source: arXiv 2411.00247.
    """
    if not steps or len({step.actual.shape for step in steps}) > 1:
        raise DiagnosticsError(
            "steps are not those of one set of outputs",
            given=f"shapes {sorted({tuple(step.actual.shape) for step in steps})}",
            expected="one linearisation(objective, update) for each of several consecutive steps",
        )
    whole = [torch.stack([getattr(step, name) for step in steps]).sum(0) for name in ("predicted", "actual")]
    rounding = math.hypot(*(step.rounding for step in steps))
    return _relative(whole[0], whole[1], rounding, f"{len(steps)} steps; {steps[0].error.how}")


def _relative(predicted: Tensor, actual: Tensor, rounding: float, how: str) -> Estimate:
    size = float(torch.linalg.vector_norm(actual))
    if size <= rounding:
        return Estimate(math.nan, math.nan, "residual", f"the outputs move by no more than rounding, {size:.1g}; {how}")
    return Estimate(float(torch.linalg.vector_norm(actual - predicted)) / size, rounding / size, "residual", how)


def _pushed(
    objective: Objective, index: int, at: Sequence[Tensor], step: Sequence[Tensor], refused: str
) -> tuple[Tensor, str]:
    """J Δ for one batch, and why double backward would not do."""
    leaves = [value.detach().clone().requires_grad_() for value in at]
    every = slice(0, len(leaves))
    if not refused:
        try:
            graph = Sandwich(objective, index, leaves, [every], _as_it_is, differences=False)
            return graph.pushed(list(step), every), ""
        except REFUSALS as refusal:
            refused = reason_of(refusal, objective)
    graph = Sandwich(objective, index, leaves, [every], _as_it_is, differences=True)
    return graph.pushed(list(step), every), refused


def _as_it_is(*_: Any) -> OutputMap:
    return lambda direction: direction
