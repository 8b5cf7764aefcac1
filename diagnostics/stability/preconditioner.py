"""The optimizer's per-coordinate step sizes as a diagonal over an Objective's parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from diagnostics.errors import DiagnosticsError
from diagnostics.parameters import ParameterSpace
from diagnostics.stability.rules import StepRule, step_rules, unwrap_optimizer


@dataclass(frozen=True)
class Scaling:
    """D = diag(η F(−1) / ((2 − η λ_d) P)) and the coupled decay, over a parameter space.

    The eigenvalue 1 of D^½ (H + Λ) D^½ is the edge, also when groups differ in rate, momentum or decay. For a
    sharpness-aware step H + H R H takes the place of H.

    Attributes:
        root: D^½, shape (P,); zero where the optimizer does not move a parameter.
        shift: Λ, shape (P,), or None when no decay goes through the gradient.
        ascent: R, shape (P,): how far uphill the gradient is taken, per unit of gradient; None for others, and where
            the edge in units of H is known.
        uniform: the one rule that holds everywhere, or None when groups differ.
        edge: the threshold of that rule, with the present gradient for a sharpness-aware step.
        note: what of the model this covers, when not everything.
    """

    root: Tensor
    shift: Tensor | None
    ascent: Tensor | None
    uniform: StepRule | None
    edge: float
    note: str


def rules_by_parameter(optimizer: Optimizer) -> dict[int, StepRule]:
    """The step rule of each parameter the optimizer holds, by ``id(parameter)``."""
    rules = step_rules(optimizer)
    return {
        id(parameter): rule
        for rule, group in zip(rules, unwrap_optimizer(optimizer).param_groups, strict=True)
        for parameter in group["params"]
    }


def scaling(optimizer: Optimizer, space: ParameterSpace, gradient: Tensor | None = None) -> Scaling:
    """Read the optimizer's per-coordinate step sizes for the selected parameters.

    Args:
        optimizer: the live optimizer, in its wrappers.
        space: the selected parameters.
        gradient: ∇L (P,), which sharpness-aware steps depend on.

    Raises:
        DiagnosticsError: no selected parameter is the optimizer's, or it keeps a preconditioner but has taken no
            step, or one that is not positive and finite; or a sharpness-aware step without a gradient.
    """
    rules = rules_by_parameter(optimizer)
    # Frozen tensors get no gradient, so a step does not move them.
    held = [rules.get(id(tensor)) if tensor.requires_grad else None for tensor in space.tensors]
    present = [rule for rule in held if rule is not None]
    if not present and any(id(tensor) in rules for tensor in space.tensors):
        raise DiagnosticsError(
            "every selected parameter that the optimizer holds is frozen",
            given=f"{len(held)} selected, none with requires_grad among those held",
            expected="at least one that a step can move",
            attempt="a new Objective on the model as it is now, which selects what trains",
        )
    if not present:
        raise DiagnosticsError(
            "the optimizer holds none of the objective's parameters",
            given=f"{len(rules)} parameters in the optimizer, {len(held)} selected",
            expected="the optimizer that trains this model",
            attempt="build the Objective on the same module object whose parameters the optimizer was given",
        )
    inner = unwrap_optimizer(optimizer)
    uniform = present[0] if all(_alike(rule, present[0]) for rule in present) else None
    parts = [
        _part(inner, name, tensor, rule) for name, tensor, rule in zip(space.names, space.tensors, held, strict=True)
    ]
    with torch.inference_mode(False), torch.no_grad():
        root = space.flatten(squares.sqrt() for squares, _ in parts)
        decayed = any(rule.coupled_decay or rule.normalised_decay for rule in present)
        shift = space.flatten(shifts for _, shifts in parts) if decayed else None
        ascent, edge = None, math.nan if uniform is None else uniform.threshold
        if any(rule.ascent for rule in present):
            size = _gradient_norm(gradient)
            if uniform is not None and _edge_is_known(uniform):
                # The decay goes through the gradient of the base step, and does not climb.
                edge = uniform.threshold_at(size)
                root, shift = root * math.sqrt(1.0 / (edge * uniform.weight)), None
            else:
                ascent = _ascent(space, held, gradient, size)
    return Scaling(
        root=root,
        shift=shift,
        ascent=ascent,
        uniform=uniform,
        edge=edge,
        note=_note(inner, space, held, uniform is None),
    )


def _note(optimizer: Optimizer, space: ParameterSpace, held: Sequence[StepRule | None], differ: bool) -> str:
    """What the model leaves out."""
    trained = {id(tensor) for group in optimizer.param_groups for tensor in group["params"] if tensor.requires_grad}
    outside = len(trained - {id(tensor) for tensor in space.tensors})
    fresh = sum(
        rule is not None and rule.denominator is not None and not _started(optimizer.state.get(tensor, {}))
        for tensor, rule in zip(space.tensors, held, strict=True)
    )
    notes = []
    if outside:
        count = f"{outside} of the optimizer's {len(trained)} trainable parameters"
        notes.append(f"{count} are not in the objective: a lower bound")
    if fresh:
        notes.append(f"{fresh} of {len(held)} parameters have no optimizer state yet, and are taken to stay")
    if differ and any(rule is not None and rule.stretch != 1.0 for rule in held):
        # The pull back couples groups, and each has its own edge here.
        notes.append("Lookahead around groups that differ: right to a few percent")
    return "; ".join(notes)


def _alike(one: StepRule, other: StepRule) -> bool:
    settings = ("text", "weight", "coupled_decay", "normalised_decay", "ascent", "ascent_by_size")
    return all(getattr(one, name) == getattr(other, name) for name in settings)


def _edge_is_known(rule: StepRule) -> bool:
    """Whether a sharpness-aware step has an edge in units of H."""
    return rule.denominator is None and not rule.ascent_by_size and 0.0 < rule.threshold < math.inf


def _part(optimizer: Optimizer, name: str, tensor: Tensor, rule: StepRule | None) -> tuple[Tensor, Tensor]:
    """One tensor's part of D and of Λ."""
    with torch.inference_mode(False), torch.no_grad():
        # Half precision has no room for squares of small steps.
        zeros = torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
        if rule is None:
            return zeros, zeros
        if rule.denominator is None:
            return zeros + rule.weight, zeros + (rule.coupled_decay + rule.normalised_decay)
        divisor = positive_denominator(optimizer, name, tensor, rule)
        # Decay that joins the gradient after its division by P is P times as much before it.
        normalised = rule.normalised_decay * torch.where(divisor.isfinite(), divisor, zeros)
        return rule.weight / divisor, zeros + rule.coupled_decay + normalised


def _gradient_norm(gradient: Tensor | None) -> float:
    size = 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    if not 0.0 < size < math.inf:
        raise DiagnosticsError(
            "the edge of a sharpness-aware step depends on the gradient"
            + (", and this measure does not know it" if gradient is None else ""),
            given="SAM or ASAM" if gradient is None else f"a gradient of norm {size:g}",
            expected="another optimizer" if gradient is None else "a finite gradient that is not zero",
            attempt="stability(objective, optimizer), which takes the gradient from the objective",
        )
    return size


def _ascent(space: ParameterSpace, held: Sequence[StepRule | None], gradient: Tensor | None, size: float) -> Tensor:
    """ρ/‖g‖ for SAM, and ρ θ²/‖|θ| g‖ for ASAM, coordinate by coordinate."""
    scales = space.flatten(
        tensor.detach().square() if rule is not None and rule.ascent_by_size else torch.ones_like(tensor)
        for tensor, rule in zip(space.tensors, held, strict=True)
    )
    radii = space.flatten(
        torch.full_like(tensor, 0.0 if rule is None else rule.ascent)
        for tensor, rule in zip(space.tensors, held, strict=True)
    )
    if any(rule is not None and rule.ascent_by_size for rule in held) and gradient is not None:
        size = float(torch.linalg.vector_norm(scales.sqrt() * gradient, dtype=torch.float64))
    return radii * scales / size


def positive_denominator(optimizer: Optimizer, name: str, tensor: Tensor, rule: StepRule) -> Tensor:
    """The preconditioner's diagonal for one parameter; infinite where it has never had a gradient."""
    state = optimizer.state.get(tensor)
    if not state or not _started(state):
        if any(_started(other) for other in optimizer.state.values()):
            # Others have state: this one has had no gradient yet, so the optimizer does not move it.
            return torch.full_like(tensor, torch.inf)
        raise DiagnosticsError(
            "the optimizer has no preconditioner yet",
            given=f"{type(optimizer).__name__} without state for {name!r}",
            expected="at least one optimizer step, or a loaded optimizer state",
        )
    assert rule.denominator is not None
    try:
        divisor = rule.denominator(state, tensor.detach()).to(tensor.device)
    except KeyError as missing:
        raise DiagnosticsError(
            f"the optimizer's state of {name!r} does not belong to its settings",
            given=f"{type(optimizer).__name__} without {missing}",
            expected="a state as the optimizer makes it, with the settings that it has now",
            attempt="one more step of training, if a setting was changed",
        ) from missing
    if divisor.shape != tensor.shape:
        raise DiagnosticsError(
            f"the optimizer's state of {name!r} is not of its shape",
            given=f"{tuple(divisor.shape)} for a parameter of {tuple(tensor.shape)}",
            expected="one second moment per weight",
            attempt="the optimizer that trains this model, its parameters neither flattened nor sharded",
        )
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


def _started(state: Mapping[str, Any]) -> bool:
    """Whether a step was taken: some optimizers make their states, all zero, before the first."""
    return bool(state) and float(state.get("step", 1)) > 0
