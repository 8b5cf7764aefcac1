"""Gradient descent with and without momentum: torch's SGD and ASGD."""

from __future__ import annotations

from diagnostics.stability.rules.step_rule import Group, Momentum, State, StepRule


def sgd(group: Group, state: State) -> StepRule:
    """SGD: momentum, dampening, Nesterov, decay through the gradient."""
    del state
    beta, dampening = float(group["momentum"]), float(group["dampening"])
    if group["nesterov"]:
        text, momentum = "(2+2β)/(η(1+2β))", Momentum(beta, buffer=beta, direct=1.0)
    elif beta == 0:
        # torch applies dampening only where it keeps a momentum buffer.
        text, momentum = "2/η", Momentum()
    else:
        text = "(2+2β)/η" if dampening == 0 else "(2+2β)/((1−τ)η)"
        momentum = Momentum(beta, gain=1 - dampening)
    decay = float(group["weight_decay"])
    return StepRule(
        text="sgd: " + text + (" − λ" if decay else ""),
        lr=float(group["lr"]),
        momentum=momentum,
        coupled_decay=decay,
    )


def asgd(group: Group, state: State) -> StepRule:
    """ASGD: plain descent with a rate that falls, and an average that does not act on the weights."""
    decay = float(group["weight_decay"])
    return StepRule(
        text="asgd: (2−ηΛ)/η" + (" − λ" if decay else "") + ", η as it has fallen",
        lr=float(state.get("eta", group["lr"])),
        decoupled_decay=float(group["lambd"]),
        coupled_decay=decay,
    )
