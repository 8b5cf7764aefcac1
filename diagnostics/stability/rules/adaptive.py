"""Optimizers that scale each coordinate and keep no first moment: RMSprop, Adagrad, Adadelta, Adafactor."""

from __future__ import annotations

import torch
from torch import Tensor

from diagnostics.stability.rules.step_rule import Group, Momentum, State, StepRule


def rmsprop(group: Group, state: State) -> StepRule:
    """RMSprop, with momentum and centred."""
    del state
    momentum, epsilon = float(group["momentum"]), float(group["eps"])

    def second_moment(of: State) -> tuple[Tensor, float]:
        moment = of["square_avg"]
        if group["centered"]:
            moment = moment - of["grad_avg"].square()
        root: Tensor = moment.clamp_min(0).sqrt()
        return root, epsilon

    def denominator(of: State, parameter: Tensor) -> Tensor:
        del parameter
        root, _ = second_moment(of)
        return root + epsilon

    return StepRule(
        text="rmsprop: " + ("(2+2μ)/η" if momentum else "2/η"),
        lr=float(group["lr"]),
        momentum=Momentum(momentum),
        coupled_decay=float(group["weight_decay"]),
        denominator=denominator,
        second_moment=second_moment,
    )


def adagrad(group: Group, state: State) -> StepRule:
    """Adagrad: the sum of all squares, and a rate that may fall; both stand in the preconditioner."""
    del state
    epsilon, decay = float(group["eps"]), float(group["lr_decay"])

    def second_moment(of: State) -> tuple[Tensor, float]:
        root: Tensor = of["sum"].sqrt()
        return root, epsilon

    def denominator(of: State, parameter: Tensor) -> Tensor:
        del parameter
        root, _ = second_moment(of)
        return (root + epsilon) * (1 + (float(of["step"]) - 1) * decay)

    return StepRule(
        text="adagrad: 2/η",
        lr=float(group["lr"]),
        coupled_decay=float(group["weight_decay"]),
        denominator=denominator,
        second_moment=second_moment,
    )


def adadelta(group: Group, state: State) -> StepRule:
    """Adadelta: the root of squared gradients over that of squared steps, ε inside both."""
    del state
    epsilon = float(group["eps"])

    def second_moment(of: State) -> tuple[Tensor, float]:
        return of["square_avg"].sqrt(), epsilon**0.5

    def denominator(of: State, parameter: Tensor) -> Tensor:
        del parameter
        divisor: Tensor = ((of["square_avg"] + epsilon) / (of["acc_delta"] + epsilon)).sqrt()
        return divisor

    return StepRule(
        text="adadelta: 2/η",
        lr=float(group["lr"]),
        coupled_decay=float(group["weight_decay"]),
        denominator=denominator,
        second_moment=second_moment,
    )


def adafactor(group: Group, state: State) -> StepRule:
    """Adafactor: a factored second moment, and a rate relative to the size of the tensor.

    Clipping of the update to the RMS ``d`` is not in the state. It shortens steps, so where it acts the true ratio is
    lower.
    """
    del state
    rate, decay, smallest = float(group["lr"]), float(group["weight_decay"]), float(group["eps"][1])

    def second_moment(of: State) -> tuple[Tensor, float]:
        if "variance" in of:
            moment: Tensor = of["variance"]
        else:
            rows, columns = of["row_var"], of["col_var"]
            floor = torch.finfo(rows.dtype).eps if group["eps"][0] is None else float(group["eps"][0])
            # A product by broadcasting: autocast would take ``@`` in half precision.
            moment = rows * columns / rows.mean(dim=-2, keepdim=True).clamp(min=floor)
        floor = torch.finfo(moment.dtype).eps if group["eps"][0] is None else float(group["eps"][0])
        return moment.sqrt(), floor

    def denominator(of: State, parameter: Tensor) -> Tensor:
        root, floor = second_moment(of)
        size = float(torch.linalg.vector_norm(parameter, dtype=torch.float64)) / parameter.numel() ** 0.5
        relative = max(smallest, size) * min(rate, float(of["step"]) ** -0.5)
        # η is divided out of the rate that is really applied, because the rule multiplies by η.
        divisor: Tensor = root.clamp_min(floor) * (rate / relative)
        return divisor

    return StepRule(
        text=f"adafactor: {'(2−ηλ)' if decay else '2'}/η, as if the update were not clipped",
        lr=rate,
        decoupled_decay=decay,
        denominator=denominator if rate else None,
        second_moment=second_moment,
    )
