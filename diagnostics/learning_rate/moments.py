"""How an optimizer's moments stand to the present gradient.

Adam divides by a second moment that remembers 1/(1−β2) steps. When gradients grow faster than it learns of, steps are
too large, and the loss spikes some steps later: RMS_t = √mean(g²/max(v̂, ε²)) is about 1 while gradients stay what they
were and rises first. As in its source v̂ has already taken the gradient in, so that RMS_t cannot exceed 1/√(1−β2).

The gradient here is an objective's, as if it came next in training. On more data than a training batch it has less
noise than the gradients v̂ was made of, and RMS_t falls below 1 by the share of noise.

Source: Wortsman et al., arXiv 2304.13013 (StableAdamW, RMS_t).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact, listing
from diagnostics.stability.preconditioner import positive_denominator, rules_by_parameter
from diagnostics.stability.rules import StepRule, unwrap_optimizer

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, repr=False)
class MomentStatistics:
    """One tensor's moments against its gradient; None where the optimizer keeps no such moment.

    Attributes:
        gradient_over_moment: RMS_t, the gradient over √v̂ after it has been taken in.
        sign_agreement: share of coordinates in which gradient and first moment have one sign, of those where neither
            is zero; ½ for unrelated ones.
        moment_alignment: cos(g, m).
        update_alignment: cos(Δw, −g) for a realised update; None without one.
        epsilon_share: share of coordinates with √v̂ < ε, where the adaptive rate is really SGD with rate η/ε.
        rates: η F(1)/(√v̂ + ε) at the quantiles of ``QUANTILES`` over coordinates.
    """

    gradient_over_moment: Estimate | None
    sign_agreement: Estimate | None
    moment_alignment: Estimate | None
    update_alignment: Estimate | None
    epsilon_share: Estimate | None
    rates: tuple[float, ...] | None

    def __str__(self) -> str:
        return listing(self)

    __repr__ = __str__


def moment_statistics(
    optimizer: Optimizer,
    parameter: nn.Parameter,
    gradient: Tensor,
    *,
    update: Tensor | None = None,
    rule: StepRule | None = None,
    name: str = "the parameter",
) -> MomentStatistics:
    """How the moments of one parameter stand to a gradient.

    Args:
        optimizer: the one that holds the parameter.
        parameter: the live one.
        gradient: of the parameter's shape, without weight decay; decay that the optimizer adds to it is added here.
        update: the realised step, of the same shape, for its direction.
        rule: of its group, where ``rules_by_parameter`` has been asked already.
        name: what error messages call the parameter.

    Raises:
        DiagnosticsError: the optimizer does not hold the parameter, its step is not understood, its second moment is
            not positive and finite, or gradient and update are not of the parameter's shape and finite.

    Example:
        >>> w = nn.Parameter(torch.ones(3))
        >>> adam = torch.optim.Adam([w], betas=(0.9, 0.99))
        >>> w.grad = torch.tensor([1.0, -2.0, 4.0])
        >>> _ = adam.step()
        >>> now = moment_statistics(adam, w, torch.tensor([1.0, -2.0, -4.0]))
        >>> print(now.gradient_over_moment, now.sign_agreement)
        1 0.6667
    """
    rule = rule if rule is not None else rules_by_parameter(optimizer).get(id(parameter))
    if rule is None:
        raise DiagnosticsError("the optimizer does not hold the parameter", given=type(optimizer).__name__)
    for given in (gradient, *([] if update is None else [update])):
        if given.shape != parameter.shape or not bool(given.isfinite().all()):
            raise DiagnosticsError(
                "the gradient or the update is not of this parameter",
                given=f"shape {tuple(given.shape)}{', not finite' if given.shape == parameter.shape else ''}",
                expected=f"shape {tuple(parameter.shape)}, finite",
            )
    optimizer = unwrap_optimizer(optimizer)
    state = optimizer.state.get(parameter) or {}
    group = next(group for group in optimizer.param_groups if any(parameter is held for held in group["params"]))
    with torch.inference_mode(False), torch.no_grad():
        seen = gradient.detach() + rule.coupled_decay * parameter.detach()
        moment = state.get("exp_avg", state.get("momentum_buffer"))
        first = moment if isinstance(moment, Tensor) and moment.shape == seen.shape else None
        adaptive = bool(state) and rule.denominator is not None
        rates = quantiles(coordinate_rates(optimizer, name, parameter, rule)) if adaptive else None
        return MomentStatistics(
            gradient_over_moment=_gradient_over_moment(state, group, rule, seen) if state else None,
            sign_agreement=None if first is None else _sign_agreement(seen, first),
            moment_alignment=None if first is None else _alignment(seen, first, "cos(g, m)"),
            update_alignment=None if update is None else _alignment(-gradient, update, "cos(Δw, −g)"),
            epsilon_share=epsilon_share(optimizer, parameter, rule),
            rates=rates,
        )


def coordinate_rates(optimizer: Optimizer, name: str, parameter: nn.Parameter, rule: StepRule) -> Tensor:
    """The step per unit of a steady gradient, of the parameter's shape: η F(1) over the preconditioner.

    Raises:
        DiagnosticsError: a preconditioner that is missing, or not positive and finite; ``name`` is said to be whose.
    """
    steady = rule.lr * rule.filter_at_one
    if rule.denominator is None:
        return torch.full_like(parameter, steady, dtype=torch.float64)
    divisor = positive_denominator(optimizer, name, parameter, rule)
    if rule.steady_denominator is not None and (state := optimizer.state.get(parameter)):
        # A steady gradient is what bias correction makes of the first moment from the first step on.
        divisor = rule.steady_denominator(state, parameter.detach())
    return (steady / divisor).double()


def quantiles(rates: Tensor) -> tuple[float, ...]:
    """The entries at ``QUANTILES``; entries themselves, not interpolated. ``nan`` where there are none."""
    if not rates.numel():
        return (math.nan,) * len(QUANTILES)
    # torch.quantile refuses more than 2^24 entries; sorting does not. On the CPU numpy sorts ten times as fast.
    flat = rates.flatten()
    ordered = torch.from_numpy(numpy.sort(flat.numpy())) if flat.device.type == "cpu" else flat.sort().values
    return tuple(float(ordered[round(q * (len(ordered) - 1))]) for q in QUANTILES)


def epsilon_share(optimizer: Optimizer, parameter: nn.Parameter, rule: StepRule) -> Estimate | None:
    """The share of coordinates with √v̂ < ε; None for an optimizer, or a parameter, without second moment."""
    state = optimizer.state.get(parameter)
    if rule.second_moment is None or not state:
        return None
    root, epsilon = rule.second_moment(state)
    return exact(float((root < epsilon).double().mean()), "count over coordinates")


def _gradient_over_moment(
    state: Mapping[str, Any], group: Mapping[str, Any], rule: StepRule, gradient: Tensor
) -> Estimate | None:
    if rule.second_moment is None:
        return None
    epsilon = rule.second_moment(state)[1]
    moment = _taken_in(state, group, gradient)
    how = "√mean(g²/max(v̂, ε²)), v̂ with this gradient taken in"
    if moment is None:
        moment, how = rule.second_moment(state)[0].square(), "√mean(g²/max(v̂, ε²)), v̂ as it is"
    ratios = gradient.square() / moment.clamp_min(epsilon**2)
    return exact(math.sqrt(float(ratios.mean(dtype=torch.float64))), how)


def _taken_in(state: Mapping[str, Any], group: Mapping[str, Any], gradient: Tensor) -> Tensor | None:
    """v̂ after the next step, should this be its gradient; None for second moments of another make."""
    square = gradient.square()
    if {"exp_avg_sq", "step"} <= state.keys() and "betas" in group:
        beta = float(group["betas"][1])
        moment = beta * state["exp_avg_sq"] + (1 - beta) * square
        if group.get("amsgrad", False):
            moment = torch.maximum(moment, state["max_exp_avg_sq"])
        corrected: Tensor = moment / (1 - beta ** (float(state["step"]) + 1))
        return corrected
    if "square_avg" in state and "alpha" in group:
        beta = float(group["alpha"])
        moment = beta * state["square_avg"] + (1 - beta) * square
        if group.get("centered", False):
            moment = moment - (beta * state["grad_avg"] + (1 - beta) * gradient).square()
        centred: Tensor = moment.clamp_min(0)
        return centred
    return None


def _sign_agreement(gradient: Tensor, moment: Tensor) -> Estimate:
    if not bool(moment.isfinite().all()):
        return Estimate(math.nan, math.nan, "exact", "the first moment is not finite")
    there = (gradient != 0) & (moment != 0)
    count = int(there.sum())
    if not count:
        return Estimate(math.nan, math.nan, "exact", "the gradient or its first moment is all zero")
    same = int(((gradient.sign() == moment.sign()) & there).sum())
    return exact(same / count, f"count over {count:,} of {gradient.numel():,} coordinates, where neither is zero")


def _alignment(left: Tensor, right: Tensor, how: str) -> Estimate:
    return exact(cosine(left, right), how)


def cosine(left: Tensor, right: Tensor) -> float:
    """The cosine of the angle between two tensors, in float64; nan where one is zero."""
    lengths = [float(torch.linalg.vector_norm(side, dtype=torch.float64)) for side in (left, right)]
    if 0.0 in lengths:
        return math.nan
    return float(torch.sum(left.double() * right.double())) / (lengths[0] * lengths[1])
