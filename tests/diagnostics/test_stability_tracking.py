"""Followed through a run by warm starts, the ratio is at every check what a cold and far tighter search finds."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, RMSprop

from diagnostics import Objective, stability
from tests.reference.optimizers import SAM


def _half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(dim=1).mean()


def _network() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(100, 12), torch.randn(100, 4)
    model = nn.Sequential(
        nn.Linear(12, 32, bias=False), nn.Tanh(), nn.Linear(32, 32, bias=False), nn.Tanh(), nn.Linear(32, 4, bias=False)
    )
    return model, x, y


@pytest.mark.parametrize(
    ("make", "reached"),
    [
        (lambda p: SGD(p, lr=0.4), True),
        (lambda p: SGD(p, lr=0.02), False),
        (lambda p: Adam(p, lr=3e-3), True),
        (lambda p: RMSprop(p, lr=2e-3), True),
        (lambda p: SAM(p, SGD, rho=0.1, lr=0.3), True),
    ],
    ids=["GD at the edge", "GD far from it", "Adam", "RMSprop", "SAM"],
)
def test_tracking_equals_the_cold_value(make: Callable[[Any], Any], reached: bool) -> None:
    model, x, y = _network()
    optimizer = make(model.parameters())
    objective = Objective(model, _half_square, (x, y))
    start, products, ratios = None, [], []
    for step in range(1, 501):
        for half in (optimizer.first_step, optimizer.second_step) if isinstance(optimizer, SAM) else (optimizer.step,):
            optimizer.zero_grad()
            _half_square(model(x), y).backward()
            half()
        if step % 25 == 0:
            tracked = stability(objective, optimizer, tol=1e-2, start=start, seed=step)
            cold = stability(objective, optimizer, tol=1e-4, seed=step + 1)
            assert tracked.converged
            assert tracked.ratio.error <= 1e-2 * float(tracked.ratio)
            assert float(tracked.ratio) == pytest.approx(float(cold.ratio), rel=1e-2)
            start = tracked.restart
            products.append(tracked.matvecs)
            ratios.append(float(cold.ratio))
    assert (max(ratios) > 0.9) == reached
    assert statistics.mean(products[1:]) < 18
