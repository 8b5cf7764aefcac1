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
from diagnostics.learning_rate.scale_invariance import FELL, HALVED, Invariance, scale_invariance
from diagnostics.learning_rate.table import EffectiveLearningRates, TensorRate
from diagnostics.objective import Objective
from diagnostics.parameters import unwrap
from diagnostics.stability.preconditioner import rules_by_parameter
from diagnostics.stability.rules import StepRule, unwrap_optimizer


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
    if unwrap(model) is not objective.model:
        raise DiagnosticsError(
            "model is not the one the objective was built on",
            given=type(model).__name__,
            expected=f"the same {type(objective.model).__name__} object",
        )
    inner = unwrap_optimizer(optimizer)
    groups = {id(tensor): group for group in inner.param_groups for tensor in group["params"]}
    try:
        rules, note = rules_by_parameter(optimizer), ""
    except DiagnosticsError as reason:
        rules, note = {}, str(reason)
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
                gradient_norm=exact(_norm(gradient), f"one gradient; {objective.description}"),
                alignment=exact(alignments[name], f"one gradient; {objective.description}"),
                scale_invariant=invariant[name].tensor,
                invariant_rows=_share(invariant[name]),
                **_rates(inner, name, tensor, rules.get(id(tensor)), value, invariant[name]),
                **_moments(inner, tensor, rules.get(id(tensor)), gradient, objective.description),
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
    optimizer: Optimizer, name: str, tensor: nn.Parameter, rule: StepRule | None, value: Tensor, invariance: Invariance
) -> dict[str, Any]:
    """The columns that need to know what a step does."""
    if rule is None:
        return dict.fromkeys(("coordinate_rate", "effective", "row_effective", "row_rates"))
    power = 1 if rule.denominator is not None else 2
    effective = row_effective = row_rates = None
    if not isinstance(optimizer, Adafactor):
        formula = "η/‖w‖" if power == 1 else "η/‖w‖²"
        if invariance.tensor:
            rate = rule.lr / _norm(value) ** power
            how = f"{formula}; the gradient halves within {HALVED:.0%} when w is doubled"
            effective = Estimate(rate, HALVED * rate, "bound", how)
        if invariance.rows is not None and bool(invariance.rows.any()):
            sizes = torch.linalg.vector_norm(value.flatten(1), dim=1, dtype=torch.float64).cpu()
            row_rates = torch.where(invariance.rows, rule.lr / sizes**power, torch.nan)
            how = (
                f"median of {formula} over {int(invariance.rows.sum())} scale-invariant rows, half their quartile range"
            )
            row_effective = _middle(row_rates[invariance.rows], how)
    steady = coordinate_rates(optimizer, name, tensor, rule)
    how = "median of η F(1)/(√v̂+ε) over coordinates, half their quartile range"
    uniform = rule.denominator is None
    return {
        "coordinate_rate": exact(rule.lr * rule.filter_at_one, "η F(1)") if uniform else _middle(steady, how),
        "effective": effective,
        "row_effective": row_effective,
        "row_rates": row_rates,
    }


def _moments(
    optimizer: Optimizer, tensor: nn.Parameter, rule: StepRule | None, gradient: Tensor, data: str
) -> dict[str, Any]:
    names = ("gradient_over_moment", "sign_agreement", "moment_alignment")
    if rule is None:
        return dict.fromkeys(("epsilon_share", *names))
    found = moment_statistics(optimizer, tensor, gradient, rule=rule)
    columns = {name: getattr(found, name) for name in names}
    named = {
        name: None if column is None else replace(column, how=f"{column.how}; gradient of {data}")
        for name, column in columns.items()
    }
    return {"epsilon_share": found.epsilon_share, **named}


def _middle(rates: Tensor, how: str) -> Estimate:
    _, low, median, high, _ = quantiles(rates)
    return Estimate(median, (high - low) / 2, "spread", how)


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
