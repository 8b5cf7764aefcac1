"""Schedule-free SGD and AdamW, recognised by class name and by what their parameter groups hold.

Gradients are taken at y = (1−β) z + β x, where z takes the steps and x averages z with weight c. In terms of y that
is a momentum with β' = 1 − c: the filter below follows from the two recursions. As c falls like 1/t, the edge moves
from 2/γ to 2/((1−β)γ). The weights must be y, so measure in the optimizer's train mode.

Source: Defazio et al., arXiv 2405.15682.
"""

from __future__ import annotations

import math

from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.stability.rules.step_rule import Group, Momentum, State, StepRule

EDGE = "2(2−c)/(γ(cβ+(2−c)(1−β)))"


def sgd_schedule_free(group: Group, state: State) -> StepRule:
    """Schedule-free SGD; decay goes through the gradient at y."""
    del state
    decay = float(group["weight_decay"])
    return StepRule(
        text=f"schedule-free sgd: {EDGE}" + (" − λ" if decay else ""),
        lr=_rate(group),
        momentum=_averaging(group, float(group["momentum"])),
        coupled_decay=decay,
    )


def adamw_schedule_free(group: Group, state: State) -> StepRule:
    """Schedule-free AdamW; decay at y joins the gradient after its division by √v̂ + ε."""
    del state
    beta1, beta2 = (float(beta) for beta in group["betas"])
    epsilon, decay = float(group["eps"]), float(group["weight_decay"])

    def second_moment(of: State) -> tuple[Tensor, float]:
        root: Tensor = (of["exp_avg_sq"] / (1 - beta2 ** float(group["k"]))).sqrt()
        return root, epsilon

    def denominator(of: State, parameter: Tensor) -> Tensor:
        del parameter
        root, _ = second_moment(of)
        return root + epsilon

    return StepRule(
        text=f"schedule-free adamw: {EDGE}" + (" − λ" if decay else ""),
        lr=_rate(group),
        momentum=_averaging(group, beta1),
        normalised_decay=decay,
        denominator=denominator,
        second_moment=second_moment,
    )


def _rate(group: Group) -> float:
    """γ with its warm-up, as the last step had it."""
    taken = int(group["k"])
    if not taken:
        warmup = int(group["warmup_steps"])
        return float(group["lr"]) / max(1, warmup)
    # The name came with version 1.3; before it the rate was not kept.
    warming = min(1.0, taken / group["warmup_steps"]) if group["warmup_steps"] else 1.0
    return float(group["lr"]) * warming


def _averaging(group: Group, beta: float) -> Momentum:
    """The filter from gradients to steps of y, with the weight c of the step just taken."""
    if int(group["k"]) and group.get("train_mode") is False:
        raise DiagnosticsError(
            "the schedule-free optimizer is in evaluation mode",
            given="weights at the average x, while steps are taken at y",
            expected="the weights that gradients are taken at",
            attempt="optimizer.train() before measuring",
        )
    total = float(group["weight_sum"])
    if not int(group["k"]) or total <= 0.0:
        return Momentum()
    last = float(group["k"]) ** float(group["r"]) * float(group["lr_max"]) ** float(group["weight_lr_power"])
    share = last / total
    if math.isclose(share, 1.0):
        return Momentum()
    return Momentum(1 - share, gain=beta * (1 - share), buffer=share / (1 - share), direct=1 - beta)
