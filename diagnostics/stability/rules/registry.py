"""From a live optimizer to the rule of each of its parameter groups."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from diagnostics.errors import DiagnosticsError
from diagnostics.stability.rules.adam import adam, adamax, nadam, radam
from diagnostics.stability.rules.adaptive import adadelta, adafactor, adagrad, rmsprop
from diagnostics.stability.rules.schedule_free import adamw_schedule_free, sgd_schedule_free
from diagnostics.stability.rules.sgd import asgd, sgd
from diagnostics.stability.rules.step_rule import Group, State, StepRule
from diagnostics.stability.rules.wrappers import wrapped_by

Build = Callable[[Group, State], StepRule]

_BY_CLASS: dict[type[Optimizer], Build] = {
    SGD: sgd,
    ASGD: asgd,
    Adam: adam,
    AdamW: adam,
    NAdam: nadam,
    RAdam: radam,
    Adamax: adamax,
    RMSprop: rmsprop,
    Adagrad: adagrad,
    Adadelta: adadelta,
    Adafactor: adafactor,
}

_BY_NAME: dict[str, tuple[Build, frozenset[str]]] = {
    "SGDScheduleFree": (sgd_schedule_free, frozenset({"momentum", "k", "weight_sum", "lr_max", "r"})),
    "AdamWScheduleFree": (adamw_schedule_free, frozenset({"betas", "k", "weight_sum", "lr_max", "r"})),
}
"""Classes outside torch, with what their groups must hold to be believed."""

OWN_GEOMETRY = {
    "Lion": "the sign of its momentum",
    "LionW": "the sign of its momentum",
    "SignSGD": "the sign of the gradient",
    "SignSGDMomentum": "the sign of its momentum",
    "Signum": "the sign of its momentum",
    "Tiger": "the sign of its momentum",
    "Rprop": "the sign of the gradient",
    "Muon": "an orthogonal matrix made of its momentum",
    "MuonWithAuxAdam": "an orthogonal matrix made of its momentum",
    "SingleDeviceMuonWithAuxAdam": "an orthogonal matrix made of its momentum",
}
"""Steps whose length does not depend on that of the gradient, and what they are instead."""


class NoStepRuleError(DiagnosticsError):
    """The optimizer's step is no linear filter of gradients that is known here."""


def step_rules(optimizer: Optimizer) -> tuple[StepRule, ...]:
    """One rule per parameter group, wrappers included.

    Raises:
        NoStepRuleError: an optimizer of its own geometry (Lion, sign descent, Muon), or an unknown one.
        DiagnosticsError: 8-bit states, ``maximize``, a wrapper or a group that cannot be read, or a learning rate that
            is negative or not finite.
    """
    inner, wrappers = wrapped_by(optimizer)
    _refuse_few_bits(inner)
    build = _builder(inner)
    if any(group.get("maximize", False) for group in inner.param_groups):
        raise DiagnosticsError(
            "the optimizer maximises",
            given="maximize=True",
            expected="an optimizer that minimises the objective",
            attempt="negate the loss instead, in the trainer and in the Objective",
        )
    rules = []
    for group in inner.param_groups:
        try:
            rule = build(group, _furthest_state(inner, group))
        except KeyError as missing:
            raise DiagnosticsError(
                "a parameter group lacks a setting of its optimizer",
                given=f"{type(inner).__name__} without {missing}",
                expected="param_groups as the optimizer makes them",
            ) from missing
        if not 0.0 <= rule.lr < math.inf:
            raise DiagnosticsError("the learning rate is not one", given=f"lr {rule.lr:g}", expected="zero or more")
        for wrapper in wrappers:
            rule = wrapper(rule, group)
        rules.append(rule)
    return tuple(rules)


def _builder(optimizer: Optimizer) -> Build:
    kind = type(optimizer)
    for known, build in _BY_CLASS.items():
        # A subclass that leaves the step alone takes the same step.
        if isinstance(optimizer, known) and inspect.unwrap(kind.step) is inspect.unwrap(known.step):
            return build
    if kind.__name__ in _BY_NAME:
        build, needed = _BY_NAME[kind.__name__]
        if all(needed <= group.keys() for group in optimizer.param_groups):
            return build
    if kind.__name__ in OWN_GEOMETRY:
        raise NoStepRuleError(
            f"{kind.__name__} has no curvature threshold",
            given=f"a step of fixed length: {OWN_GEOMETRY[kind.__name__]}",
            expected="a step in proportion to the gradient: without that it never contracts, at any curvature",
            attempt="stability(objective, optimizer).ratio, which measures along a step of its own",
        )
    raise NoStepRuleError(
        "no stability rule is known for this optimizer",
        given=kind.__name__,
        expected=", ".join(sorted(known.__name__ for known in _BY_CLASS)) + " (torch.optim), "
        "schedule-free SGD or AdamW, and SAM or Lookahead around these",
        attempt="stability(objective, optimizer).ratio, which measures along a step of its own",
    )


def _furthest_state(optimizer: Optimizer, group: Mapping[str, object]) -> State:
    """The state of the parameter that has taken the most steps; empty before the first."""
    parameters = group["params"]
    assert isinstance(parameters, list)
    states = [optimizer.state[parameter] for parameter in parameters if optimizer.state.get(parameter)]
    return max(states, key=lambda state: float(state.get("step", 0) or 0), default={})


def _refuse_few_bits(optimizer: Optimizer) -> None:
    """Refuse states that were rounded to 8 bits or fewer.

    Their √v is known to a few percent at best and ε-sized entries are lost, so no ratio made of them means anything.
    """
    name = type(optimizer).__name__
    few = "8bit" in name.lower() or "4bit" in name.lower()
    for state in optimizer.state.values():
        for value in state.values() if isinstance(state, Mapping) else ():
            narrow = isinstance(value, Tensor) and value.numel() > 1 and value.dtype in (torch.uint8, torch.int8)
            few = few or narrow or type(value).__name__.startswith("OptimState")
    if few:
        raise DiagnosticsError(
            "the optimizer keeps its state in 8 bits or fewer",
            given=name,
            expected="a second moment in floating point: rounded to 8 bits, its small entries are lost",
            attempt="the optimizer's 32-bit variant, or critical_sharpness(objective, update), which needs no state",
        )
