"""The step an optimizer would take, found by letting a copy of it take that step.

No rule is needed for that: momentum, preconditioning, clipping inside the optimizer and whatever else it does are in
the step. The copy shares nothing with the run (see ``optimizer_twin``). A step that finds the run's parameters all the
same, as one that names the model in its code, is undone and refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from diagnostics.arguments import require_objective
from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.quiet import quiet
from diagnostics.stability.directional import parameter_vector
from diagnostics.stability.optimizer_twin import Places, held_by, reached_optimizers, twin_of
from diagnostics.stability.rules import unwrap_optimizer


def trial_step(objective: Objective, optimizer: Optimizer, gradient: Tensor | None = None) -> Tensor:
    """Δ, shape (P,): what one step with the objective's gradient would add to the selected parameters.

    Costs one gradient (unless given), two copies of the parameters and one of the optimizer's state. Frozen
    parameters have no gradient, and stay.

    Args:
        objective: supplies the gradient.
        optimizer: any torch optimizer whose ``step()`` needs no closure.
        gradient: ∇L (P,), when it is known already.

    Raises:
        DiagnosticsError: the copy cannot step: it needs a closure, cannot be copied, or steps the run's own
            parameters; a gradient of another shape, or not finite.

    Example:
        >>> model, data = torch.nn.Linear(1, 1, bias=False), (torch.ones(4, 1), torch.zeros(4, 1))
        >>> objective = Objective(model, torch.nn.MSELoss(), data)
        >>> step = trial_step(objective, torch.optim.SGD(model.parameters(), lr=0.5))
        >>> bool(torch.allclose(step, -0.5 * objective.gradient()))
        True
    """
    (step,) = trial_steps(objective, optimizer, 1, gradient)
    return step


def trial_steps(objective: Objective, optimizer: Optimizer, count: int, gradient: Tensor | None = None) -> list[Tensor]:
    """Δ, (P,) each, of so many steps in a row: each with the objective's gradient where the one before it led.

    Args:
        objective: supplies the gradients.
        optimizer: as for ``trial_step``.
        count: how many steps.
        gradient: ∇L (P,) of the first, when it is known already.

    Raises:
        DiagnosticsError: as for ``trial_step``.

    Example:
        >>> model, data = torch.nn.Linear(1, 1, bias=False), (torch.ones(4, 1), torch.zeros(4, 1))
        >>> objective = Objective(model, torch.nn.MSELoss(), data)  # w², which steps of 3/4 of the gradient overshoot
        >>> one, other = trial_steps(objective, torch.optim.SGD(model.parameters(), lr=0.75), 2)
        >>> round(float(other / one), 5)
        -0.5
    """
    require_objective(objective)
    inner = unwrap_optimizer(optimizer)
    first = objective.gradient() if gradient is None else parameter_vector(objective, gradient, "gradient")
    with quiet(objective.model):
        try:
            with untouched(held_by(reached_optimizers(inner))), twin_of(inner) as (twin, places):
                return list(_steps(objective, twin, places, first, count))
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


def _steps(objective: Objective, twin: Optimizer, places: Places, gradient: Tensor, count: int) -> Iterator[Tensor]:
    space = objective.space
    for step in range(count):
        at = [places.get(id(tensor), tensor).detach().clone() for tensor in space.tensors]
        if step:
            gradient = objective.loss_and_gradient(at)[1]
        for tensor, part in zip(space.tensors, space.unflatten(gradient), strict=True):
            if id(tensor) in places and tensor.requires_grad:
                places[id(tensor)].grad = part.detach().clone()
        with global_hooks_aside():
            twin.step()
        with torch.no_grad():
            yield space.flatten(
                places[id(tensor)].detach() - before if id(tensor) in places else torch.zeros_like(tensor)
                for tensor, before in zip(space.tensors, at, strict=True)
            )


@contextmanager
def untouched(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Put the run's parameters back where a step has found them around the copies, and refuse it."""
    before = [parameter.detach().clone() for parameter in parameters]
    reached = 0
    try:
        yield
    finally:
        for parameter, kept in zip(parameters, before, strict=True):
            if not torch.allclose(parameter.detach(), kept, rtol=0.0, atol=0.0, equal_nan=True):
                reached += 1
                with torch.no_grad():
                    parameter.copy_(kept)
    if reached:
        raise DiagnosticsError(
            "the optimizer's step finds the model's parameters by itself, and cannot be tried on copies",
            given=f"{reached} of {len(before)} parameters moved, and put back",
            expected="a step over param_groups",
            attempt="directional_sharpness(objective, update) with an update that was seen in training",
        )


@contextmanager
def global_hooks_aside() -> Iterator[None]:
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
