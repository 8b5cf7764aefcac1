"""Effective learning rates, one row per tensor.

The number in the config is rarely the rate a tensor trains at. Momentum multiplies a steady gradient by F(1) =
1/(1−β); Adam divides each coordinate by √v̂ + ε; and where a normalisation layer follows, only the direction of w
counts, so the rate is η/‖w‖² for SGD and η/‖w‖ for optimizers whose step does not scale with the gradient: as ‖w‖
grows, training slows down. Before BatchNorm the same holds for every row w_i alone.

Source: van Laarhoven, arXiv 1706.05350; Lyle et al., arXiv 2407.01800.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adafactor, Optimizer

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.learning_rate.moments import coordinate_rates, cosine, moment_statistics, quantiles
from diagnostics.learning_rate.rotation import row_norms
from diagnostics.learning_rate.scale_invariance import FELL, HALVED, Invariance, scale_invariance
from diagnostics.learning_rate.table import EffectiveLearningRates, TensorRate
from diagnostics.objective import Objective
from diagnostics.parameters import unwrap
from diagnostics.stability.preconditioner import rules_by_parameter
from diagnostics.stability.rules import StepRule
from diagnostics.stability.rules.wrappers import wrapped_by


def effective_learning_rates(model: nn.Module, optimizer: Optimizer, objective: Objective) -> EffectiveLearningRates:
    """The rate at which each tensor really trains, at the parameters and optimizer state as they are now.

    Args:
        model: the model the objective was built on.
        optimizer: any; adaptive ones after at least one step. Where its step is not understood (Lion, Muon, sign
            descent) everything but rates and moments is measured, and ``note`` says so.
        objective: supplies the gradient and the scale test. Costs one gradient; another if rows look scale-invariant,
            and one if tensors do; and one more for each of these that did not pass together with the others.

    Raises:
        DiagnosticsError: the three do not belong together, or the loss, its gradient or the optimizer's state is not
            finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8, eps=0.0), nn.Linear(8, 1))
        >>> objective = Objective(model, nn.MSELoss(), (torch.randn(16, 4), torch.randn(16, 1)))
        >>> rates = effective_learning_rates(model, torch.optim.SGD(model.parameters(), lr=0.1), objective)
        >>> [(row.tensor, float(row.invariant_rows)) for row in rates.rows if row.scale_invariant]
        [('0.weight', 0.0)]
    """
    if not isinstance(objective, Objective):
        raise DiagnosticsError("objective is not an Objective", given=type(objective).__name__)
    if unwrap(model) is not objective.model:
        raise DiagnosticsError(
            "model is not the one the objective was built on",
            given=type(model).__name__,
            expected=f"the same {type(objective.model).__name__} object",
        )
    inner, wrappers = wrapped_by(optimizer)
    groups = {id(tensor): group for group in inner.param_groups for tensor in group["params"]}
    try:
        rules, note = rules_by_parameter(optimizer), ""
    except DiagnosticsError as reason:
        rules, note = {}, str(reason)
    wrapped = f"; the step inside {type(optimizer).__name__}" if wrappers else ""
    space = objective.space
    if not any(id(tensor) in groups for tensor in space.tensors):
        raise DiagnosticsError("the optimizer holds none of the objective's parameters", given=type(optimizer).__name__)
    values = space.values()
    loss, flat_gradient = objective.loss_and_gradient(values)
    gradients = space.unflatten(flat_gradient)
    _require_finite(loss, dict(zip(space.names, gradients, strict=True)))
    with torch.inference_mode(False), torch.no_grad():
        pairs = zip(space.names, values, gradients, strict=True)
        alignments = {name: cosine(value, gradient) for name, value, gradient in pairs}
        invariant = scale_invariance(objective, loss, gradients, alignments)
        measured = zip(space.items(), values, gradients, strict=True)
        rows = [
            TensorRate(
                tensor=name,
                lr=float(groups[id(tensor)]["lr"]),
                weight_norm=exact(_norm(value), "float64"),
                weight_magnitude=exact(float(value.abs().mean(dtype=torch.float64)), "mean |w|, float64"),
                gradient_norm=exact(_norm(gradient), f"one gradient; {objective.description}"),
                alignment=exact(alignments[name], f"one gradient; {objective.description}"),
                scale_invariant=invariant[name].tensor,
                invariant_rows=_share(invariant[name]),
                **_rates(inner, rules.get(id(tensor)), value, invariant[name], wrapped),
                **_moments(inner, name, tensor, rules.get(id(tensor)), gradient, objective.description, wrapped),
            )
            for (name, tensor), value, gradient in measured
            if id(tensor) in groups
        ]
    return EffectiveLearningRates(rows, note)


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


def _share(invariance: Invariance) -> Estimate | None:
    if invariance.rows is None or invariance.reached is None:
        return None
    reached, alone = int(invariance.reached.sum()), int(invariance.rows.sum())
    if not reached:
        return Estimate(math.nan, math.nan, "exact", "no row has a gradient")
    how = f"{alone} of {reached} rows with a gradient: scaled each by itself, their gradients fell within {FELL:.0%}"
    return exact(alone / reached, how)


def _rates(
    optimizer: Optimizer, rule: StepRule | None, value: Tensor, invariance: Invariance, wrapped: str
) -> dict[str, Any]:
    """The columns about rates that need to know what a step does."""
    effective = row_effective = row_rates = None
    # Adafactor's steps grow with the weights.
    if rule is not None and not isinstance(optimizer, Adafactor):
        power = 1 if rule.denominator is not None else 2
        formula = "η/‖w‖" if power == 1 else "η/‖w‖²"
        if invariance.tensor:
            rate = rule.lr / _norm(value) ** power
            slack = FELL if value.ndim > 1 else HALVED
            how = f"{formula}; the gradient falls as w grows, within {slack:.0%}{wrapped}"
            effective = Estimate(rate, slack * rate, "bound", how)
        if invariance.rows is not None and bool(invariance.rows.any()):
            row_rates = torch.where(invariance.rows, rule.lr / row_norms(value) ** power, torch.nan)
            how = (
                f"median of {formula} over {int(invariance.rows.sum())} scale-invariant rows, half their quartile range"
            )
            row_effective = _middle(quantiles(row_rates[invariance.rows]), how + wrapped)
    return {"effective": effective, "row_effective": row_effective, "row_rates": row_rates}


def _moments(
    optimizer: Optimizer,
    name: str,
    tensor: nn.Parameter,
    rule: StepRule | None,
    gradient: Tensor,
    data: str,
    wrapped: str,
) -> dict[str, Any]:
    """The columns that need the optimizer's state."""
    columns = ("gradient_over_moment", "sign_agreement", "moment_alignment")
    if rule is None:
        return dict.fromkeys(("coordinate_rate", "epsilon_share", *columns))
    found = moment_statistics(optimizer, tensor, gradient, rule=rule, name=name)
    if rule.denominator is None:
        rate = exact(rule.lr * rule.filter_at_one, "η F(1)" + wrapped)
    else:
        # A tensor that has had no gradient yet has no moments, and a rate all the same: zero.
        rates = found.rates or quantiles(coordinate_rates(optimizer, name, tensor, rule))
        rate = _middle(rates, "median of η F(1)/(√v̂+ε) over coordinates, half their quartile range" + wrapped)
    named: dict[str, Estimate | None] = {column: getattr(found, column) for column in columns}
    return {
        "coordinate_rate": rate,
        "epsilon_share": found.epsilon_share,
        **{
            column: None if value is None else replace(value, how=f"{value.how}; gradient of {data}")
            for column, value in named.items()
        },
    }


def _middle(rates: tuple[float, ...], how: str) -> Estimate:
    _, low, median, high, _ = rates
    return Estimate(median, (high - low) / 2, "spread", how)


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(row_norms(tensor)))
