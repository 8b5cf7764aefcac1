"""The optimizer's per-coordinate step sizes as a diagonal over an Objective's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from diagnostics.errors import DiagnosticsError
from diagnostics.parameters import ParameterSpace
from diagnostics.stability.rules import StepRule, step_rules, unwrap_optimizer


@dataclass(frozen=True)
class Scaling:
    """D = diag(η F(−1) / ((2 − η λ_d) P)) and the coupled decay, over a parameter space.

    The eigenvalue 1 of D^½ (H + Λ) D^½ is the edge, also when groups differ in rate, momentum or decay.

    Attributes:
        root: D^½, shape (P,); zero where the optimizer does not move a parameter.
        shift: Λ, shape (P,), or None when no decay goes through the gradient.
        uniform: the one rule that holds everywhere, or None when groups differ.
        note: what of the model this covers, when not everything.
    """

    root: Tensor
    shift: Tensor | None
    uniform: StepRule | None
    note: str


def rules_by_parameter(optimizer: Optimizer) -> dict[int, StepRule]:
    """The step rule of each parameter the optimizer holds, by ``id(parameter)``."""
    optimizer = unwrap_optimizer(optimizer)
    return {
        id(parameter): rule
        for rule, group in zip(step_rules(optimizer), optimizer.param_groups, strict=True)
        for parameter in group["params"]
    }


def scaling(optimizer: Optimizer, space: ParameterSpace) -> Scaling:
    """Read the optimizer's per-coordinate step sizes for the selected parameters.

    Raises:
        DiagnosticsError: no selected parameter is the optimizer's, or it keeps a preconditioner but has taken no
            step, or one that is not positive and finite.
    """
    rules = rules_by_parameter(optimizer)
    held = [rules.get(id(tensor)) for tensor in space.tensors]
    if not any(held):
        raise DiagnosticsError(
            "the optimizer holds none of the objective's parameters",
            given=f"{len(rules)} parameters in the optimizer, {len(held)} selected",
            expected="the optimizer that trains this model",
            attempt="build the Objective on the same module object whose parameters the optimizer was given",
        )
    squares = list(_squared_scales(unwrap_optimizer(optimizer), space, held))
    shifts = [0.0 if rule is None else rule.coupled_decay for rule in held]
    with torch.inference_mode(False), torch.no_grad():
        root = space.flatten(squares).sqrt()
        shift = None
        if any(shifts):
            shift = space.flatten(
                torch.full_like(tensor, value) for tensor, value in zip(space.tensors, shifts, strict=True)
            )
    present = [rule for rule in held if rule is not None]
    same = all(
        (rule.text, rule.weight, rule.coupled_decay) == (present[0].text, present[0].weight, present[0].coupled_decay)
        for rule in present
    )
    # Frozen tensors get no gradient, so a step does not move them.
    trained = {
        id(tensor)
        for group in unwrap_optimizer(optimizer).param_groups
        for tensor in group["params"]
        if tensor.requires_grad
    }
    outside = len(trained - {id(tensor) for tensor in space.tensors})
    return Scaling(
        root=root,
        shift=shift,
        uniform=present[0] if same else None,
        note=f"{outside} of the optimizer's {len(trained)} trainable parameters are not in the objective: a lower bound"
        if outside
        else "",
    )


def _squared_scales(optimizer: Optimizer, space: ParameterSpace, held: list[StepRule | None]) -> Iterator[Tensor]:
    for name, tensor, rule in zip(space.names, space.tensors, held, strict=True):
        with torch.inference_mode(False), torch.no_grad():
            if rule is None:
                yield torch.zeros_like(tensor)
            elif rule.denominator is None:
                yield torch.full_like(tensor, rule.weight)
            else:
                yield rule.weight / positive_denominator(optimizer, name, tensor, rule)


def positive_denominator(optimizer: Optimizer, name: str, tensor: Tensor, rule: StepRule) -> Tensor:
    """The preconditioner's diagonal for one parameter; infinite where it has never had a gradient."""
    state = optimizer.state.get(tensor)
    if not state:
        if any(optimizer.state.values()):
            # Others have state: this one has had no gradient yet, so the optimizer does not move it.
            return torch.full_like(tensor, torch.inf)
        raise DiagnosticsError(
            "the optimizer has no preconditioner yet",
            given=f"{type(optimizer).__name__} without state for {name!r}",
            expected="at least one optimizer step, or a loaded optimizer state",
        )
    assert rule.denominator is not None
    divisor = rule.denominator(state).to(tensor.device)
    if damaged := int((~divisor.isfinite()).sum()):
        raise DiagnosticsError(
            f"the preconditioner of {name!r} is not finite",
            given=f"a second moment that makes {damaged:,} of {divisor.numel():,} values of √v + ε NaN or infinite",
            expected="a finite optimizer state",
            attempt="a checkpoint from before a loss or gradient overflowed",
        )
    if not bool((divisor > 0).all()):
        raise DiagnosticsError(
            f"the preconditioner of {name!r} is not positive",
            given="eps=0 with coordinates that never had a gradient",
            expected="√v + ε > 0",
        )
    return divisor
