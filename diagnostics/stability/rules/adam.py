"""The Adam family: a first moment, over the root of a second one, with bias corrections and ε as torch applies them.

Each step's corrections are those of the step just taken (``state["step"]``). In the first steps they stand in the
preconditioner, so the threshold is that of the settled optimizer; NAdam's momentum goes on changing for a thousand
steps, and its threshold with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diagnostics.stability.rules.step_rule import Group, Momentum, State, StepRule

EDGE = "(2+2β1)/((1−β1)η)"
DECAYED_EDGE = "(1+β1)(2−ηλ)/((1−β1)η)"


def adam(group: Group, state: State) -> StepRule:
    """Adam and AdamW, AMSGrad included."""
    del state
    beta1, beta2, epsilon, coupled, decoupled = _settings(group)

    def second_moment(of: State) -> tuple[Tensor, float]:
        moment = of["max_exp_avg_sq"] if group["amsgrad"] else of["exp_avg_sq"]
        root: Tensor = moment.sqrt() / math.sqrt(1 - beta2 ** float(of["step"]))
        return root, epsilon

    def steady(of: State, parameter: Tensor) -> Tensor:
        del parameter
        root, _ = second_moment(of)
        return root + epsilon

    return StepRule(
        text=f"{'adamw' if group.get('decoupled_weight_decay', False) else 'adam'}: "
        + (DECAYED_EDGE if decoupled else EDGE),
        lr=float(group["lr"]),
        momentum=Momentum(beta1, gain=1 - beta1),
        decoupled_decay=decoupled,
        coupled_decay=coupled,
        denominator=_corrected(steady, beta1),
        steady_denominator=steady,
        second_moment=second_moment,
    )


def nadam(group: Group, state: State) -> StepRule:
    """NAdam: its momentum μ_t = β1 (1 − ½·0.96^{tψ}) and its corrections change from step to step."""
    beta1, beta2, epsilon, coupled, decoupled = _settings(group)

    def momentum(of: State) -> Momentum:
        step = max(1.0, float(of.get("step", 1.0)))
        now, following = (
            beta1 * (1 - 0.5 * 0.96 ** (moment * float(group["momentum_decay"]))) for moment in (step, step + 1)
        )
        product = float(of["mu_product"]) if of.get("step") else now
        return Momentum(
            beta1,
            gain=1 - beta1,
            buffer=following / (1 - product * following),
            direct=(1 - now) / (1 - product),
        )

    common = momentum(state)

    def second_moment(of: State) -> tuple[Tensor, float]:
        root: Tensor = (of["exp_avg_sq"] / (1 - beta2 ** float(of["step"]))).sqrt()
        return root, epsilon

    def denominator(of: State, parameter: Tensor) -> Tensor:
        del parameter
        root, _ = second_moment(of)
        # A parameter that joined later has a momentum of its own.
        return (root + epsilon) * (common.at_minus_one / momentum(of).at_minus_one)

    return StepRule(
        text=f"nadam: {'(2−ηλ)' if decoupled else '2'}/(ηF(−1)), F of the present step",
        lr=float(group["lr"]),
        momentum=common,
        decoupled_decay=decoupled,
        coupled_decay=coupled,
        denominator=denominator,
        second_moment=second_moment,
    )


def radam(group: Group, state: State) -> StepRule:
    """RAdam: Adam with a rectified rate, and without its preconditioner in the first steps."""
    beta1, beta2, epsilon, coupled, decoupled = _settings(group)

    def second_moment(of: State) -> tuple[Tensor, float]:
        correction = math.sqrt(1 - beta2 ** float(of["step"]))
        return of["exp_avg_sq"].sqrt() / correction, epsilon / correction

    def steady(of: State, parameter: Tensor) -> Tensor:
        rectification = _rectification(beta2, float(of["step"]))
        if rectification is None:
            return torch.ones_like(parameter)
        root, floor = second_moment(of)
        return (root + floor) / rectification

    adapting = not state or _rectification(beta2, float(state["step"])) is not None
    return StepRule(
        text="radam: " + (DECAYED_EDGE if decoupled else EDGE),
        lr=float(group["lr"]),
        momentum=Momentum(beta1, gain=1 - beta1),
        decoupled_decay=decoupled,
        coupled_decay=coupled,
        denominator=_corrected(steady, beta1),
        steady_denominator=steady,
        second_moment=second_moment if adapting else None,
    )


def adamax(group: Group, state: State) -> StepRule:
    """Adamax: the largest recent gradient in the place of the second moment; ε is inside it."""
    del state
    beta1 = float(group["betas"][0])

    def steady(of: State, parameter: Tensor) -> Tensor:
        del parameter
        largest: Tensor = of["exp_inf"]
        return largest

    return StepRule(
        text=f"adamax: {EDGE}",
        lr=float(group["lr"]),
        momentum=Momentum(beta1, gain=1 - beta1),
        coupled_decay=float(group["weight_decay"]),
        denominator=_corrected(steady, beta1),
        steady_denominator=steady,
    )


def _settings(group: Group) -> tuple[float, float, float, float, float]:
    """β1, β2, ε, the decay that goes through the gradient and the one that does not."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    decay = float(group["weight_decay"])
    coupled, decoupled = (0.0, decay) if group.get("decoupled_weight_decay", False) else (decay, 0.0)
    return beta1, beta2, float(group["eps"]), coupled, decoupled


def _corrected(steady: Callable[[State, Tensor], Tensor], beta1: float) -> Callable[[State, Tensor], Tensor]:
    """The divisor with the bias correction of the first moment, which makes early steps longer."""

    def denominator(of: State, parameter: Tensor) -> Tensor:
        divisor: Tensor = steady(of, parameter) * (1 - beta1 ** float(of["step"]))
        return divisor

    return denominator


def _rectification(beta2: float, step: float) -> float | None:
    """RAdam's factor on the rate, or None while it does without the second moment."""
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / (1 - beta2**step)
    if length <= 5:
        return None
    return math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
