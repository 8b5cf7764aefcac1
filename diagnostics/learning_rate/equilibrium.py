"""How far each step will turn a weight once growth and decay of its norm balance.

Gradients are orthogonal to a scale-invariant weight and lengthen it, weight decay shortens it; where both balance, the
angle per step depends on the learning rate η and the decay λ alone.

Let momentum pass gradients through a filter f with F(1) = Σ f_k and energy E = Σ f_k². Random steps lengthen ‖w‖² by
η² F(1)² ‖g‖² per step in the long run, and one step has the length η √E ‖g‖. Decay that goes through the gradient takes
2 η λ F(1) ‖w‖² away, decoupled decay 2 η λ ‖w‖². In balance the angle is √(2ηλ E/F(1)) and √(2ηλ E)/F(1). With
f_k = α^k that is √(2ηλ/(1+α)), with Adam's average √(2ηλ (1−β1)/(1+β1)).

Source: Kosson et al., arXiv 2305.17212; the timescale of decay: Wang and Aitchison, arXiv 2405.13698.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.stability.rules import StepRule, step_rules
from diagnostics.stability.rules.wrappers import wrapped_by

FILTERED = (SGD, Adam, AdamW, NAdam, RAdam)
"""Optimizers whose momentum is a direct term and one geometric average of the gradients."""

LION = ("Lion", "LionW")
"""Classes outside torch that step along the sign of an average of gradients, known by their names."""


@dataclass(frozen=True, repr=False)
class Equilibrium:
    """What scale-invariant weights of one parameter group tend to. ``nan`` where nothing is known, with the reason.

    Attributes:
        group: which parameter group.
        rotation: radians per step; first order in 1 / ``timescale``, which is also its relative error.
        weight_rms: ‖w‖/√d, where the optimizer's step does not scale with the gradient.
        timescale: steps over which decay forgets a weight, 1/(ηλ): how long the way to equilibrium takes.
    """

    group: int
    rotation: Estimate
    weight_rms: Estimate
    timescale: Estimate

    def __str__(self) -> str:
        if not self.rotation.determined:
            return f"group {self.group}: no equilibrium rotation ({self.rotation.how.partition('; ')[0]})"
        return (
            f"group {self.group}: {self.rotation} rad per step ({self.rotation.how}), rms of weights "
            f"{self.weight_rms}, timescale {self.timescale} steps"
        )

    __repr__ = __str__


def equilibrium_rotation(optimizer: Optimizer) -> tuple[Equilibrium, ...]:
    """The rotation per step at which scale-invariant weights settle, one entry per parameter group.

    Known for SGD (momentum, dampening, Nesterov) with torch's coupled decay; for Adam, NAdam and RAdam with decoupled
    decay; for Lion. Gradients are taken to be random and orthogonal to the weight.

    Source: arXiv 2305.17212; dampening and Nesterov are derived in this module's docstring.

    Example:
        >>> import torch
        >>> weights = [torch.nn.Parameter(torch.ones(2))]
        >>> adamw = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.1)
        >>> print(equilibrium_rotation(adamw)[0].rotation, equilibrium_rotation(adamw)[0].rotation.how)
        0.0032444 ± 0.0000003 √(2ηλ(1−β1)/(1+β1))
        >>> print(equilibrium_rotation(torch.optim.SGD(weights, lr=0.1))[0])
        group 0: no equilibrium rotation (no equilibrium without decay: norms grow for ever)
    """
    inner, wrappers = wrapped_by(optimizer)
    rules: list[StepRule | None]
    try:
        rules, reason = list(step_rules(optimizer)), ""
    except DiagnosticsError as refusal:
        rules, reason = [None] * len(inner.param_groups), str(refusal)
    return tuple(
        _equilibrium(index, inner, group, rule, reason, bool(wrappers))
        for index, (group, rule) in enumerate(zip(inner.param_groups, rules, strict=True))
    )


def _equilibrium(
    index: int, optimizer: Optimizer, group: Mapping[str, Any], rule: StepRule | None, reason: str, wrapped: bool
) -> Equilibrium:
    lion = type(optimizer).__name__ in LION and {"betas", "weight_decay"} <= group.keys()
    if rule is None and not lion:
        return _unknown(index, reason)
    lr = float(group["lr"]) if rule is None else rule.lr
    decay = float(group["weight_decay"]) if rule is None else rule.coupled_decay + rule.decoupled_decay
    if rule is not None and (wrapped or not isinstance(optimizer, FILTERED)):
        return _unknown(index, f"no formula is known for this step ({rule.text})")
    if decay <= 0.0:
        return _unknown(index, "no equilibrium without decay: norms grow for ever")
    if lr == 0.0:
        return _unknown(index, "the learning rate is zero")
    if rule is not None and not 0.0 < rule.filter_at_one < math.inf:
        return _unknown(index, f"momentum passes {rule.filter_at_one:g} times a steady gradient on")
    if rule is None:
        return _lion(index, lr, decay, *(float(beta) for beta in group["betas"]))
    if rule.coupled_decay and rule.denominator is not None:
        return _unknown(
            index, "coupled decay is divided by √v̂ as gradients are: the equilibrium depends on their size, not on η, λ"
        )
    energy, text = _energy(rule, group)
    # Decay through the gradient is amplified by momentum as gradients are.
    pull = lr * decay * (rule.filter_at_one if rule.coupled_decay else 1.0)
    angle = math.sqrt(2 * pull * energy) / rule.filter_at_one
    if rule.denominator is None:
        size = _nan("set by the gradients: ‖w‖ = ‖g‖ √(η F(1)/(2λ))")
    elif group.get("amsgrad", False):
        size = _nan("AMSGrad divides by the largest second moment so far: steps are of no known size")
    else:
        settled = math.sqrt(lr / (2 * decay)) * rule.filter_at_one
        # v̂ holds the gradient it divides, and is an average over 1/(1−β2) steps only.
        size = Estimate(settled, settled * (pull + 1 - float(group["betas"][1])), "bound", "√(η/(2λ)), for E[g²/v̂] = 1")
    timescale = exact(1 / pull, "1/(ηλF(1))" if rule.coupled_decay else "1/(ηλ)")
    return Equilibrium(index, Estimate(angle, pull * angle, "bound", text), size, timescale)


def _energy(rule: StepRule, group: Mapping[str, Any]) -> tuple[float, str]:
    """E = Σ f_k², with f_0 = direct + kept and f_k = kept β^k; and the angle in words."""
    momentum = rule.momentum
    kept = momentum.buffer * momentum.gain
    energy = momentum.direct**2 + 2 * momentum.direct * kept + kept**2 / (1 - momentum.beta**2)
    if momentum.beta == 0.0:
        return energy, "√(2ηλ)"
    if rule.denominator is not None:
        return energy, "√(2ηλ Σf²)/F(1), f of momentum" if momentum.direct else "√(2ηλ(1−β1)/(1+β1))"
    if group["nesterov"]:
        return energy, "√(2ηλ(1+2α−2α³)/(1+α))"
    return energy, "√(2ηλ(1−τ)/(1+α))" if group["dampening"] else "√(2ηλ/(1+α))"


def _lion(index: int, lr: float, decay: float, beta1: float, beta2: float) -> Equilibrium:
    """The sign of c is taken for √(2/π) c/σ, which leaves out what rounding to ±1 adds on its own, and that gradients
    of 1/(1−β2) steps ago are no longer orthogonal to the weight.
    """
    energy = (1 - beta1) ** 2 + beta1**2 * (1 - beta2) / (1 + beta2)
    angle = math.sqrt(math.pi * lr * decay * energy)
    error = (math.pi / 2 - 1) * energy + lr * decay / (1 - beta2)
    text = "√(π/2)√(2ηλ)√((1−β1)²+β1²(1−β2)/(1+β2))"
    size = math.sqrt(lr / (math.pi * decay * energy))
    return Equilibrium(
        index,
        Estimate(angle, angle * error, "bound", text),
        Estimate(size, size * error, "bound", "√(η/(πλ((1−β1)²+β1²(1−β2)/(1+β2))))"),
        exact(1 / (lr * decay), "1/(ηλ)"),
    )


def _unknown(index: int, reason: str) -> Equilibrium:
    return Equilibrium(index, _nan(reason), _nan(reason), _nan(reason))


def _nan(reason: str) -> Estimate:
    return Estimate(math.nan, math.nan, "bound", reason)
