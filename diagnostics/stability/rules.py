"""What each optimizer does to a gradient, as far as linear stability needs to know.

Write a step as Δx = −η F(z) P⁻¹ g (F the filter that momentum applies to the gradients, P the preconditioner) with
decoupled decay (1 − ηλ_d), and let weight decay that goes through the gradient add λ to the Hessian. The first root
to leave the unit disc is z = −1, an oscillation that flips sign every step, and it does so when the largest
eigenvalue of P^-½ (H + λ) P^-½ reaches

    (2 − η λ_d) / (η F(−1)).

Rules below give F(−1), F(1), η, λ and λ_d of one parameter group as torch defines its optimizers; the preconditioner
is read from the optimizer's state, with bias correction and ε as torch applies them.

Source: Cohen et al. 2021 (arXiv 2103.00065) for SGD and momentum, Cohen et al. 2022 (arXiv 2207.14484) for Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from diagnostics.errors import DiagnosticsError


@dataclass(frozen=True)
class StepRule:
    """One parameter group's step, reduced to what stability and effective rates need.

    Attributes:
        text: the threshold in the field's notation.
        lr: η.
        filter_at_minus_one: F(−1), how momentum passes a gradient that flips sign every step.
        filter_at_one: F(1), how it passes a constant gradient.
        decoupled_decay: λ_d, applied to the weights.
        coupled_decay: λ, added to the gradient.
        denominator: for a parameter's state, the per-coordinate divisor P (a tensor), or None when P is the identity.
        second_moment: for a parameter's state, (√v̂, ε) as torch compares them, or None without a second moment.
    """

    text: str
    lr: float
    filter_at_minus_one: float
    filter_at_one: float
    decoupled_decay: float = 0.0
    coupled_decay: float = 0.0
    denominator: Callable[[Mapping[str, Any]], Tensor] | None = None
    second_moment: Callable[[Mapping[str, Any]], tuple[Tensor, float]] | None = None

    @property
    def weight(self) -> float:
        """η F(−1) / (2 − η λ_d): curvature times this is 1 at the edge."""
        remaining = 2.0 - self.lr * self.decoupled_decay
        if remaining <= 0.0:
            raise DiagnosticsError(
                "the optimizer's weight decay alone overshoots",
                given=f"lr {self.lr:g} times weight_decay {self.decoupled_decay:g} is at least 2",
                expected="lr * weight_decay well below 1",
            )
        return self.lr * self.filter_at_minus_one / remaining

    @property
    def threshold(self) -> float:
        """The curvature at the edge; infinite at a zero learning rate.

        Without a preconditioner this is for the Hessian of the loss alone, so coupled decay is taken off; with one it
        is for P^-½ (H + λ) P^-½.
        """
        if self.weight == 0.0:
            return math.inf
        return 1.0 / self.weight - (self.coupled_decay if self.denominator is None else 0.0)


def unwrap_optimizer(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside a wrapper that keeps it as ``.optimizer``, as accelerate's does."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner if isinstance(inner, Optimizer) else optimizer


def step_rules(optimizer: Optimizer) -> tuple[StepRule, ...]:
    """One rule per parameter group.

    Raises:
        DiagnosticsError: the optimizer is none of SGD, Adam, AdamW, RMSprop, or maximises.
    """
    optimizer = unwrap_optimizer(optimizer)
    rule = _RULES.get(type(optimizer))
    if rule is None:
        raise DiagnosticsError(
            "no stability rule is known for this optimizer",
            given=type(optimizer).__name__,
            expected=" or ".join(sorted(known.__name__ for known in _RULES)) + " (torch.optim)",
            attempt="top_eigenpairs(Hessian(objective)) for the sharpness alone",
        )
    if any(group.get("maximize", False) for group in optimizer.param_groups):
        raise DiagnosticsError(
            "the optimizer maximises",
            given="maximize=True",
            expected="an optimizer that minimises the objective",
            attempt="negate the loss instead, in the trainer and in the Objective",
        )
    return tuple(rule(group) for group in optimizer.param_groups)


def _sgd(group: Mapping[str, Any]) -> StepRule:
    beta, dampening = float(group["momentum"]), float(group["dampening"])
    if group["nesterov"]:
        text = "(2+2β)/(η(1+2β))"
        minus_one, one = (1 + 2 * beta) / (1 + beta), 1 / (1 - beta)
    else:
        text = "2/η" if beta == 0 else "(2+2β)/η" if dampening == 0 else "(2+2β)/((1−τ)η)"
        kept = 1 - dampening if beta else 1.0  # torch applies dampening only where it keeps a momentum buffer
        minus_one, one = kept / (1 + beta), kept / (1 - beta)
    decay = float(group["weight_decay"])
    return StepRule(
        text="sgd: " + text + (" − λ" if decay else ""),
        lr=float(group["lr"]),
        filter_at_minus_one=minus_one,
        filter_at_one=one,
        coupled_decay=decay,
    )


def _adam(group: Mapping[str, Any]) -> StepRule:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    epsilon, decay = float(group["eps"]), float(group["weight_decay"])
    decoupled = bool(group.get("decoupled_weight_decay", False))

    def second_moment(state: Mapping[str, Any]) -> tuple[Tensor, float]:
        moment = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        root: Tensor = moment.sqrt() / math.sqrt(1 - beta2 ** float(state["step"]))
        return root, epsilon

    def denominator(state: Mapping[str, Any]) -> Tensor:
        root, _ = second_moment(state)
        divisor: Tensor = (root + epsilon) * (1 - beta1 ** float(state["step"]))
        return divisor

    edge = "(1+β1)(2−ηλ)/((1−β1)η)" if decoupled and decay else "(2+2β1)/((1−β1)η)"
    return StepRule(
        text=f"{'adamw' if decoupled else 'adam'}: {edge}",
        lr=float(group["lr"]),
        filter_at_minus_one=(1 - beta1) / (1 + beta1),
        filter_at_one=1.0,
        decoupled_decay=decay if decoupled else 0.0,
        coupled_decay=0.0 if decoupled else decay,
        denominator=denominator,
        second_moment=second_moment,
    )


def _rmsprop(group: Mapping[str, Any]) -> StepRule:
    momentum, epsilon = float(group["momentum"]), float(group["eps"])

    def second_moment(state: Mapping[str, Any]) -> tuple[Tensor, float]:
        moment = state["square_avg"]
        if group["centered"]:
            moment = moment - state["grad_avg"].square()
        root: Tensor = moment.clamp_min(0).sqrt()
        return root, epsilon

    def denominator(state: Mapping[str, Any]) -> Tensor:
        root, _ = second_moment(state)
        return root + epsilon

    return StepRule(
        text="rmsprop: " + ("(2+2μ)/η" if momentum else "2/η"),
        lr=float(group["lr"]),
        filter_at_minus_one=1 / (1 + momentum),
        filter_at_one=1 / (1 - momentum),
        coupled_decay=float(group["weight_decay"]),
        denominator=denominator,
        second_moment=second_moment,
    )


_RULES: dict[type[torch.optim.Optimizer], Callable[[Mapping[str, Any]], StepRule]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
    RMSprop: _rmsprop,
}
