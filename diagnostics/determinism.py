"""Whether an Objective is one fixed function, and what moves it when it is not.

Batches are drawn once and random states are reset before every evaluation, so what still varies is out of reach of
both: a loss function that fetches a batch of its own, augments it with a generator of its own, or a module that draws
from one or keeps state of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.quiet import quiet


def what_varies(objective: Objective) -> DiagnosticsError | None:
    """Evaluate every batch twice; None when both agree, otherwise an error that names the likely cause.

    Example:
        >>> model, data = nn.Linear(2, 1), (torch.ones(3, 2), torch.ones(3, 1))
        >>> what_varies(Objective(model, nn.MSELoss(), data)) is None
        True
    """
    with quiet(objective.model, objective.mode):
        for index, weight in enumerate(objective.weights):
            if not weight:
                continue
            first, second = _Trace(objective, index), _Trace(objective, index)
            if _differ(first.result, second.result):
                return DiagnosticsError(
                    f"the objective is another function on every call: batch {index} gives {first.loss:.6g}, then "
                    f"{second.loss:.6g}",
                    given=first.cause(second),
                    expected="the same loss and gradient for the same parameters",
                    attempt="draw batches, augmentation and noise once, and hand them over as batches",
                )
    return None


class _Trace:
    """What went into and came out of every module in one evaluation, and the loss and gradient in the end."""

    def __init__(self, objective: Objective, index: int) -> None:
        self.calls: list[tuple[str, nn.Module, list[Tensor], list[Tensor]]] = []
        names = {module: name for name, module in objective.model.named_modules()}

        def record(module: nn.Module, inputs: Any, keywords: Any, outputs: Any) -> None:
            self.calls.append((names[module], module, _copies((inputs, keywords)), _copies(outputs)))

        handles = [module.register_forward_hook(record, with_kwargs=True) for module in names]
        try:
            leaves = [value.requires_grad_() for value in objective.space.values()]
            loss, gradient = objective.batch_gradient(index, leaves)
        finally:
            for handle in handles:
                handle.remove()
        self.loss = float(loss.detach())
        self.result = [loss.detach(), *gradient]

    def cause(self, other: _Trace) -> str:
        """In the order of execution: the first module that gives something else for the same."""
        if not self.calls:
            return "a loss that does not call the model's modules and draws random numbers of its own"
        pairs = list(zip(self.calls, other.calls, strict=False))
        if any(name == "" and _differ(inputs, again[2]) for (name, _, inputs, _), again in pairs):
            return "the model is handed different inputs each time: loss_fn shuffles, augments or fetches anew"
        for (name, module, inputs, outputs), (_, _, inputs_again, outputs_again) in pairs:
            if _differ(inputs, inputs_again):
                return (
                    f"something changes in forward() before {_called(name, module)}: random numbers, a counter, a clock"
                )
            if _differ(outputs, outputs_again):
                return f"{_called(name, module)} gives different outputs for the same inputs: {_habit(module)}"
        return "the modules repeat themselves and the loss does not: it draws random numbers of its own"


def _called(name: str, module: nn.Module) -> str:
    return f"module {name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"


def _habit(module: nn.Module) -> str:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return "dropout"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "batch normalisation whose statistics move"
    return "it draws from a generator of its own, or keeps state between calls"


def _copies(structure: Any) -> list[Tensor]:
    return [leaf.detach().clone() for leaf in tree_leaves(structure) if isinstance(leaf, Tensor)]


def _differ(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) != len(second) or any(
        a.shape != b.shape or not torch.allclose(a, b, rtol=1e-4, atol=1e-6 * _size(a), equal_nan=True)
        if a.is_floating_point()
        else not torch.equal(a, b)
        for a, b in zip(first, second, strict=True)
    )


def _size(tensor: Tensor) -> float:
    finite = tensor[torch.isfinite(tensor)]
    return float(finite.abs().max()) if finite.numel() else 0.0
