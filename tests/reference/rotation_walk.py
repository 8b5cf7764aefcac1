"""Slow twins of rotation: angles in Python floats, and the real optimizer on random gradients orthogonal to w."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Lion(Optimizer):
    """Chen et al. 2023, line by line: torch has none."""

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for w in group["params"]:
                m = self.state[w].setdefault("exp_avg", torch.zeros_like(w))
                direction = (beta1 * m + (1 - beta1) * w.grad).sign()
                w.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                m.mul_(beta2).add_(w.grad, alpha=1 - beta2)


def angle(left: Sequence[float], right: Sequence[float]) -> float:
    """2 atan2(‖û − v̂‖, ‖û + v̂‖) (Kahan), term by term."""
    long, other = (math.sqrt(math.fsum(x * x for x in side)) for side in (left, right))
    apart = math.fsum((a / long - b / other) ** 2 for a, b in zip(left, right, strict=True))
    together = math.fsum((a / long + b / other) ** 2 for a, b in zip(left, right, strict=True))
    return 2 * math.atan2(math.sqrt(apart), math.sqrt(together))


def settled_walk(
    build: Callable[[list[nn.Parameter]], Optimizer],
    *,
    steps: int,
    measured: int,
    scale: float = 1.0,
    rows: int = 16,
    columns: int = 400,
    start: float = 1.0,
    invariant: bool = True,
) -> tuple[float, float]:
    """Rms angle per step and rms of weights over the last ``measured`` steps.

    Args:
        build: makes the optimizer.
        steps: all of them.
        measured: how many at the end count.
        scale: rms of gradients at ‖w‖ = √columns.
        rows: independent weights.
        columns: their dimension.
        start: rms of weights at the beginning.
        invariant: gradients shrink with ‖w‖, as those of scale-invariant weights do.
    """
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(start * torch.randn(rows, columns, generator=generator, dtype=torch.float64))
    optimizer = build([w])
    squares = sizes = 0.0
    for step in range(steps):
        before: Tensor = w.detach().clone()
        unit = before / before.norm(dim=1, keepdim=True)
        g = scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        g -= (g * unit).sum(1, keepdim=True) * unit
        w.grad = g * columns**0.5 / before.norm(dim=1, keepdim=True) if invariant else g
        optimizer.step()
        if step >= steps - measured:
            after = w.detach()
            half = (unit - after / after.norm(dim=1, keepdim=True)).norm(dim=1) / 2
            squares += float((2 * half.asin()).square().mean())
            sizes += float(after.square().mean())
    return math.sqrt(squares / measured), math.sqrt(sizes / measured)
