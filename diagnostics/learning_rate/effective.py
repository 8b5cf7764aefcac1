"""Effective learning rates, one row per tensor.

The number in the config is rarely the rate a tensor trains at. Momentum multiplies a steady gradient by F(1) =
1/(1−β); Adam divides each coordinate by √v̂ + ε; and where a normalisation layer follows, only the direction of w
counts, so the rate is η/‖w‖² for SGD and η/‖w‖ for optimizers whose step does not scale with the gradient: as ‖w‖
grows, training slows down.

Source: van Laarhoven, arXiv 1706.05350; Lyle et al., arXiv 2407.01800.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.learning_rate.scale_invariance import HALVED, scale_invariant
from diagnostics.objective import Objective
from diagnostics.parameters import unwrap
from diagnostics.stability.preconditioner import positive_denominator, rules_by_parameter
from diagnostics.stability.rules import StepRule, unwrap_optimizer

if TYPE_CHECKING:
    import pandas
    from torch import nn


@dataclass(frozen=True)
class TensorRate:
    """How one tensor learns.

    Attributes:
        tensor: its name.
        lr: the rate in its parameter group.
        coordinate_rate: the step per unit of steady gradient: η F(1) for SGD; for Adam, AdamW and RMSprop the median
            of η F(1) / (√v̂ + ε) over coordinates, with half their interquartile range as spread.
        weight_norm: ‖w‖.
        gradient_norm: ‖∇L‖ on the objective.
        alignment: cos(w, ∇L); zero for scale-invariant tensors.
        scale_invariant: whether ⟨w, ∇L⟩ = 0 and ∇L(2w) = ∇L(w)/2.
        effective: η/‖w‖² (SGD) or η/‖w‖ (Adam, AdamW, RMSprop) for scale-invariant tensors, None for others.
        epsilon_share: share of coordinates with √v̂ < ε, where the adaptive rate is really SGD with rate η/ε; None
            for SGD.
    """

    tensor: str
    lr: float
    coordinate_rate: Estimate
    weight_norm: Estimate
    gradient_norm: Estimate
    alignment: Estimate
    scale_invariant: bool
    effective: Estimate | None
    epsilon_share: Estimate | None


@dataclass(frozen=True, repr=False)
class EffectiveLearningRates:
    """A table with one row per tensor that the optimizer and the objective share."""

    rows: list[TensorRate]

    def to_pandas(self) -> pandas.DataFrame:
        """The values as a DataFrame; errors in columns that end in ``_error``. Needs pandas."""
        import pandas

        return pandas.DataFrame([dict(_cells(row)) for row in self.rows])

    def __str__(self) -> str:
        width = max([6, *(len(row.tensor) for row in self.rows)])
        lines = [f"{'tensor':<{width}}  {'lr':>9}  {'per coord.':>10}  {'norm':>9}  {'cos(w,g)':>9}  effective"]
        for row in self.rows:
            effective = "not scale-invariant" if row.effective is None else f"{row.effective.value:.3g}"
            lines.append(
                f"{row.tensor:<{width}}  {row.lr:>9.3g}  {row.coordinate_rate.value:>10.3g}  "
                f"{row.weight_norm.value:>9.3g}  {row.alignment.value:>9.2g}  {effective}"
            )
        return "\n".join(lines)

    __repr__ = __str__


def effective_learning_rates(model: nn.Module, optimizer: Optimizer, objective: Objective) -> EffectiveLearningRates:
    """The rate at which each tensor really trains, at the parameters and optimizer state as they are now.

    Args:
        model: the model the objective was built on.
        optimizer: SGD, Adam, AdamW or RMSprop; the adaptive ones after at least one step.
        objective: supplies the gradient and the scale test. Costs one gradient, and another for each tensor whose
            weights and gradient are orthogonal.

    Raises:
        DiagnosticsError: the three do not belong together, the optimizer is not understood, or the loss, its gradient
            or the optimizer's state is not finite.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8, eps=0.0), nn.Linear(8, 1))
        >>> objective = Objective(model, nn.MSELoss(), (torch.randn(16, 4), torch.randn(16, 1)))
        >>> rates = effective_learning_rates(model, torch.optim.SGD(model.parameters(), lr=0.1), objective)
        >>> [row.tensor for row in rates.rows if row.scale_invariant]
        ['0.weight']
    """
    if unwrap(model) is not objective.model:
        raise DiagnosticsError(
            "model is not the one the objective was built on",
            given=type(model).__name__,
            expected=f"the same {type(objective.model).__name__} object",
        )
    rules = rules_by_parameter(optimizer)
    space = objective.space
    if not any(id(tensor) in rules for tensor in space.tensors):
        raise DiagnosticsError("the optimizer holds none of the objective's parameters", given=type(optimizer).__name__)
    values = space.values()
    loss, flat_gradient = objective.loss_and_gradient(values)
    gradients = space.unflatten(flat_gradient)
    _require_finite(loss, dict(zip(space.names, gradients, strict=True)))
    with torch.inference_mode(False), torch.no_grad():
        norms = [_norm(value) for value in values]
        gradient_norms = [_norm(gradient) for gradient in gradients]
        alignments = {
            name: _cosine(value, gradient) for name, value, gradient in zip(space.names, values, gradients, strict=True)
        }
        invariant = scale_invariant(objective, alignments, gradients)
        rows = [
            TensorRate(
                tensor=name,
                lr=rules[id(tensor)].lr,
                coordinate_rate=_coordinate_rate(unwrap_optimizer(optimizer), name, tensor, rules[id(tensor)]),
                weight_norm=exact(norm, "float64"),
                gradient_norm=exact(gradient_norm, f"one gradient; {objective.description}"),
                alignment=exact(alignments[name], f"one gradient; {objective.description}"),
                scale_invariant=invariant[name],
                effective=_effective(rules[id(tensor)], norm) if invariant[name] else None,
                epsilon_share=_epsilon_share(unwrap_optimizer(optimizer), tensor, rules[id(tensor)]),
            )
            for (name, tensor), norm, gradient_norm in zip(space.items(), norms, gradient_norms, strict=True)
            if id(tensor) in rules
        ]
    return EffectiveLearningRates(rows)


def _require_finite(loss: float, gradients: dict[str, Tensor]) -> None:
    """Refuse what no rate can be read from: a cosine with NaN would only look like no scale invariance."""
    if not math.isfinite(loss):
        raise DiagnosticsError("the loss is not finite", given=f"{loss}", expected="a finite loss on the objective")
    damaged = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
    if damaged:
        raise DiagnosticsError(
            "the gradient is not finite",
            given=f"NaN or infinite values for {len(damaged)} of {len(gradients)} tensors, first {damaged[0]!r}",
            expected="a finite gradient on the objective",
        )


def _effective(rule: StepRule, norm: float) -> Estimate:
    adaptive = rule.denominator is not None
    formula = "η/‖w‖" if adaptive else "η/‖w‖²"
    rate = rule.lr / norm ** (1 if adaptive else 2)
    return Estimate(
        rate, HALVED * rate, "bound", f"{formula}; the gradient halves within {HALVED:.0%} when w is doubled"
    )


def _coordinate_rate(optimizer: Optimizer, name: str, tensor: Tensor, rule: StepRule) -> Estimate:
    steady = rule.lr * rule.filter_at_one
    if rule.denominator is None:
        return exact(steady, "η F(1)")
    divisor = positive_denominator(optimizer, name, tensor, rule)
    if rule.second_moment is not None and (state := optimizer.state.get(tensor)):
        # A steady gradient is what bias correction makes of the first moment from the first step on.
        root, epsilon = rule.second_moment(state)
        divisor = root + epsilon
    rates = (steady / divisor).double().flatten()
    # torch.quantile refuses more than 2^24 entries; sorting does not.
    ordered = rates.sort().values
    low, median, high = (float(ordered[round(q * (len(ordered) - 1))]) for q in (0.25, 0.5, 0.75))
    return Estimate(
        median, (high - low) / 2, "spread", "median of η F(1)/(√v̂+ε) over coordinates, half their quartile range"
    )


def _epsilon_share(optimizer: Optimizer, tensor: Tensor, rule: StepRule) -> Estimate | None:
    state = optimizer.state.get(tensor)
    if rule.second_moment is None or not state:
        return None
    root, epsilon = rule.second_moment(state)
    return exact(float((root < epsilon).double().mean()), "count over coordinates")


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _cosine(left: Tensor, right: Tensor) -> float:
    lengths = _norm(left) * _norm(right)
    if lengths == 0.0:
        return math.nan
    return float(torch.sum(left.double() * right.double())) / lengths


def _cells(row: TensorRate) -> Iterator[tuple[str, Any]]:
    for field in fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Estimate):
            yield field.name, value.value
            yield f"{field.name}_error", value.error
        else:
            yield field.name, value
