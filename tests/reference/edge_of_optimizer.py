"""Just inside its threshold an optimizer contracts a quadratic, just outside it grows: seen by running it.

Second moments and step counts are written back before every step, because rules take the preconditioner to be frozen.
Everything else, momentum buffers and weight decay included, is the optimizer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from diagnostics.stability.rules import step_rules, unwrap_optimizer

FAR = 1e4
SMALL = 1e-10
Freeze = Callable[[dict[str, Any], dict[str, Any]], None]


def frozen(step: float, moment: float) -> Freeze:
    """What makes the state after a step hold this step count and this second moment, in whatever torch calls it."""

    def freeze(group: dict[str, Any], state: dict[str, Any]) -> None:
        if not state:
            return
        if "step" in state:
            state["step"] = state["step"].fill_(step - 1) if isinstance(state["step"], torch.Tensor) else int(step) - 1
        beta2 = group["betas"][1] if "betas" in group else group.get("alpha", group.get("rho", 1.0))
        for key in ("exp_avg_sq", "square_avg", "exp_inf"):
            if key in state:
                state[key].fill_(moment / beta2)
        if "max_exp_avg_sq" in state:
            state["max_exp_avg_sq"].fill_(4 * moment)
        if "grad_avg" in state:
            state["grad_avg"].fill_(0.5 * moment**0.5 / beta2)
        if "acc_delta" in state:
            state["acc_delta"].fill_(0.01 * moment)
        for key in ("sum", "variance", "row_var", "col_var"):
            if key in state:
                state[key].fill_(moment)
        if "mu_product" in state:
            rates = [
                group["betas"][0] * (1 - 0.5 * 0.96 ** (moment_step * group["momentum_decay"]))
                for moment_step in range(1, int(step))
            ]
            state["mu_product"].fill_(float(torch.tensor(rates, dtype=torch.float64).prod()))

    return freeze


def schedule_free_frozen(taken: int, share: float, moment: float) -> Freeze:
    """The same for schedule-free optimizers: the averaging weight c stays."""

    def freeze(group: dict[str, Any], state: dict[str, Any]) -> None:
        group["k"], group["lr_max"] = taken, group["lr"]
        weight = (taken + 1) ** group["r"] * group["lr"] ** group["weight_lr_power"]
        group["weight_sum"] = weight * (1 / share - 1)
        if "exp_avg_sq" in state:
            state["exp_avg_sq"].fill_(moment / group["betas"][1])

    return freeze


def grows(
    build: Callable[[list[nn.Parameter]], Any],
    share: float,
    freeze: Freeze | None = None,
    *,
    shape: tuple[int, ...] = (1,),
    steps: int = 6000,
) -> bool:
    """Whether ½ a x² grows under the optimizer, at ``share`` of the curvature that its rule gives as the edge."""
    x = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = build([x])
    inner = unwrap_optimizer(optimizer)

    def step(curvature: float) -> None:
        if freeze is not None:
            for group in inner.param_groups:
                freeze(group, inner.state.get(x, {}))
        x.grad = curvature * x.detach()
        # Adadelta divides by what it has summed before it adds to it: that sum is part of what is frozen.
        summed = {key: value.clone() for key, value in inner.state.get(x, {}).items() if key == "acc_delta"}
        optimizer.step()
        inner.state.get(x, {}).update(summed)

    # Once to make the state, once more to leave it as it will be after every step.
    step(0.0)
    step(0.0)
    curvature = share * edge_in_curvature(optimizer, inner.state.get(x, {}), x)
    start = SMALL / max(1.0, curvature)
    with torch.no_grad():
        x.fill_(start)
        for key in ("z", "momentum_buffer", "exp_avg"):
            if key in inner.state[x] and inner.state[x][key] is not None:
                inner.state[x][key].fill_(start if key == "z" else 0.0)
        for parameter, slow in getattr(optimizer, "slow", ()):
            slow.copy_(parameter)
    for _ in range(steps):
        step(curvature)
        # A cycle of a wrapper ends where the weights are pulled back; in between they may swing.
        if getattr(optimizer, "count", 0) % getattr(optimizer, "k", 1) == 0:
            size = float(x.detach().abs().max()) + _buffered(inner.state[x], inner.param_groups[0])
            if not start / FAR < size < start * FAR:
                return not size < start
    return size > start


def edge_in_curvature(optimizer: Optimizer, state: Mapping[str, Any], x: nn.Parameter) -> float:
    """The Hessian's own curvature at the edge, the same for all coordinates."""
    (rule,) = step_rules(optimizer)
    if rule.denominator is None:
        return rule.threshold
    divisor = rule.denominator(state, x.detach()).expand_as(x)
    assert torch.allclose(divisor, divisor.flatten()[0])
    return rule.threshold * float(divisor.flatten()[0]) - rule.coupled_decay


def _buffered(state: Mapping[str, Any], group: Mapping[str, Any]) -> float:
    """What a momentum buffer still holds, as a distance: oscillation is small in x where it is large in the buffer."""
    buffer = state.get("momentum_buffer")
    return 0.0 if buffer is None else float(group["lr"]) * float(buffer.abs().max())
