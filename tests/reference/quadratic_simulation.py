"""Slow twins of the noisy quadratic model: moments step by step, and torch's optimizer on drawn gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def losses_by_recursion(
    h: Sequence[float],
    c: Sequence[float],
    steps: int,
    lr: float,
    batch_size: float,
    momentum: float = 0.0,
    preconditioning: float = 0.0,
) -> list[float]:
    """E of ½ Σ h θ² after 0, 1, ... steps from E θ² = 1, each moment by expanding the step's products."""
    totals = [0.5 * sum(h)] + [0.0] * steps
    for curvature, variance in zip(h, c, strict=True):
        k, q = curvature ** (1 - preconditioning), variance * curvature ** (-2 * preconditioning) / batch_size
        place, cross, speed = 1.0, 0.0, 0.0
        for step in range(1, steps + 1):
            # m' = βm + kθ + noise; θ' = θ − ηm'.
            new_speed = momentum**2 * speed + 2 * momentum * k * cross + k**2 * place + q
            with_old = momentum * cross + k * place
            place, cross, speed = (
                place - 2 * lr * with_old + lr**2 * new_speed,
                with_old - lr * new_speed,
                new_speed,
            )
            totals[step] += 0.5 * curvature * place
    return totals


def losses_by_training(
    h: torch.Tensor,
    c: torch.Tensor,
    steps: int,
    lr: float,
    batch_size: float,
    *,
    momentum: float = 0.0,
    preconditioning: float = 0.0,
    copies: int = 20000,
) -> torch.Tensor:
    """Losses (copies,) after training as many models with torch's SGD, on gradients drawn for each."""
    theta = nn.Parameter(torch.randn(copies, len(h), dtype=torch.float64))
    optimizer = torch.optim.SGD([theta], lr=lr, momentum=momentum)
    for _ in range(steps):
        noise = torch.randn_like(theta) * (c / batch_size).sqrt()
        theta.grad = (h * theta.detach() + noise) / h**preconditioning
        optimizer.step()
    return 0.5 * (h * theta.detach().square()).sum(1)
