"""The step an optimizer would take, found by letting a copy of it take that step.

No rule is needed for that: momentum, preconditioning, clipping inside the optimizer and whatever else it does are in
the step. The copy shares nothing with the run: its parameters, its states and its settings are copies, and hooks and
schedulers are left behind.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.quiet import quiet
from diagnostics.stability.rules import unwrap_optimizer


def trial_step(objective: Objective, optimizer: Optimizer, gradient: Tensor | None = None) -> Tensor:
    """Δ, shape (P,): what one step with the objective's gradient would add to the selected parameters.

    Costs one gradient (unless given) and a copy of the parameters and of the optimizer's state.

    Args:
        objective: supplies the gradient.
        optimizer: any torch optimizer whose ``step()`` needs no closure.
        gradient: ∇L (P,), when it is known already.

    Raises:
        DiagnosticsError: the copy cannot step: it needs a closure, or cannot be copied.

    Example:
        >>> model, data = nn.Linear(1, 1, bias=False), (torch.ones(4, 1), torch.zeros(4, 1))
        >>> objective = Objective(model, nn.MSELoss(), data)
        >>> step = trial_step(objective, torch.optim.SGD(model.parameters(), lr=0.5))
        >>> bool(torch.allclose(step, -0.5 * objective.gradient()))
        True
    """
    space = objective.space
    parts = space.unflatten(objective.gradient() if gradient is None else gradient)
    with quiet(objective.model):
        try:
            twin, places = _twin(unwrap_optimizer(optimizer))
            for tensor, part in zip(space.tensors, parts, strict=True):
                if id(tensor) in places:
                    places[id(tensor)].grad = part.detach().clone()
            with _global_hooks_aside():
                twin.step()
        # Optimizers are anybody's code, and may need what a copy does not have.
        except Exception as problem:
            if isinstance(problem, DiagnosticsError | torch.OutOfMemoryError):
                raise
            raise DiagnosticsError(
                "a copy of the optimizer cannot take a step by itself",
                given=f"{type(optimizer).__name__}: {type(problem).__name__}: {problem}",
                expected="an optimizer whose step() needs gradients only",
                attempt="directional_sharpness(objective, update) or critical_sharpness(objective, update) "
                "with an update that was seen in training",
            ) from problem
        with torch.no_grad():
            return space.flatten(
                places[id(tensor)].detach() - tensor.detach() if id(tensor) in places else torch.zeros_like(tensor)
                for tensor in space.tensors
            )


def _twin(optimizer: Optimizer) -> tuple[Optimizer, dict[int, nn.Parameter]]:
    """An optimizer of the same kind over copies of the parameters, and those copies by ``id`` of the original."""
    places: dict[int, nn.Parameter] = {}
    memo: dict[int, Any] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            place = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            places[id(parameter)] = memo[id(parameter)] = place
    twin = object.__new__(type(optimizer))
    memo[id(optimizer)] = twin
    for name, value in vars(optimizer).items():
        # Learning-rate schedulers put a bound ``step`` on the instance, which would move the original.
        if name != "step":
            vars(twin)[name] = OrderedDict() if name.endswith("_hooks") else copy.deepcopy(value, memo)
    return twin, places


@contextmanager
def _global_hooks_aside() -> Iterator[None]:
    """Hooks on every optimizer of the process are not for a copy to fire."""
    everywhere: tuple[dict[int, Any], ...] = (
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    )
    before = [dict(hooks) for hooks in everywhere]
    try:
        for hooks in everywhere:
            hooks.clear()
        yield
    finally:
        for hooks, kept in zip(everywhere, before, strict=True):
            hooks.update(kept)
