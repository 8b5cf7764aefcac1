"""Slow twins of the stability rules: run the real torch optimizer on a quadratic and watch whether it grows.

Second moments are written back before every step, as the rules take them to be frozen; everything else, momentum
buffers and weight decay included, is torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

SMALL = 1e-9
SETTLED = 10_000_000.0

Freeze = Callable[[Optimizer, nn.Parameter], None]


def prepare(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Let the optimizer create its state without moving anything."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def freeze_second_moment(
    optimizer: Optimizer, parameter: nn.Parameter, moment: Tensor | float, mean: float = 0.0, *, ahead: bool = True
) -> None:
    """Write the state so that this second moment is used, bias corrections settled.

    ``max_exp_avg_sq`` gets four times the moment; ``grad_avg`` (centred RMSprop) the given mean. ``ahead`` writes what
    the next step will decay to these values; without it they are what the last step has left.
    """
    state = optimizer.state[parameter]
    group = next(group for group in optimizer.param_groups if any(parameter is held for held in group["params"]))
    decay = 1.0 if not ahead else group["betas"][1] if "betas" in group else group["alpha"]
    moment = torch.as_tensor(moment)
    if "step" in state:
        state["step"].fill_(SETTLED)
    for key in ("exp_avg_sq", "square_avg"):
        if key in state:
            state[key].copy_(moment / decay)
    if "max_exp_avg_sq" in state:
        state["max_exp_avg_sq"].copy_(4 * moment)
    if "grad_avg" in state:
        state["grad_avg"].fill_(mean / decay)


def simulated_edge(
    build: Callable[[list[nn.Parameter]], Optimizer],
    freeze: Freeze | None,
    low: float,
    high: float,
    *,
    points: int = 1500,
    steps: int = 4000,
) -> float:
    """The smallest curvature from ``low`` to ``high`` at which ½ a x² is not contracted, on a grid of coordinates."""
    curvature = torch.logspace(torch.tensor(low).log10(), torch.tensor(high).log10(), points, dtype=torch.float64)
    x = nn.Parameter(torch.zeros(points, dtype=torch.float64))
    optimizer = build([x])
    prepare(optimizer, [x])
    x.data.fill_(SMALL)
    middle, end = _run(optimizer, [x], lambda: [curvature * x.detach()], freeze, steps)
    return float(curvature[_grown(middle, end).nonzero()[0, 0]])


def grows(
    optimizer: Optimizer, parameters: list[nn.Parameter], hessian: Tensor, freeze: Freeze | None, steps: int = 3000
) -> bool:
    """Whether a small displacement of all parameters grows on ½ θᵀHθ."""
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.data.copy_(SMALL * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    sizes = [parameter.numel() for parameter in parameters]

    def gradients() -> list[Tensor]:
        theta = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        return [
            part.view(parameter.shape)
            for part, parameter in zip((hessian @ theta).split(sizes), parameters, strict=True)
        ]

    middle, end = (window.max() for window in _run(optimizer, parameters, gradients, freeze, steps))
    return bool(_grown(middle, end))


def _grown(middle: Tensor, end: Tensor) -> Tensor:
    """Still growing, or so large that even the frozen second moment no longer holds it."""
    return (end > middle) | (end > 1e3 * SMALL) | ~torch.isfinite(end)


def _run(
    optimizer: Optimizer,
    parameters: list[nn.Parameter],
    gradients: Callable[[], list[Tensor]],
    freeze: Freeze | None,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Largest displacement of every coordinate in a window in the middle and one at the end."""
    window = 100
    middle = end = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    for step in range(steps):
        for parameter, gradient in zip(parameters, gradients(), strict=True):
            parameter.grad = gradient
            if freeze is not None:
                freeze(optimizer, parameter)
        optimizer.step()
        size = torch.cat([parameter.detach().reshape(-1).abs() for parameter in parameters])
        if steps // 2 - window <= step < steps // 2:
            middle = torch.maximum(middle, size)
        elif step >= steps - window:
            end = torch.maximum(end, size)
    return middle, end
