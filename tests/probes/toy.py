"""The smallest training run there is, and the smallest probes, for tests of everything around a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import Objective
from probes.probe import Moment, Reading

cross_entropy = nn.CrossEntropyLoss()


class Toy:
    """A model, an optimizer, data and an Objective that belong together."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD, **settings: Any) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(12, 3, generator=generator)
        self.y = (self.x.sum(1) > 0).long()
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        with torch.no_grad():
            for tensor in self.model.parameters():
                tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
        self.optimizer = optimizer(self.model.parameters(), **({"lr": 0.1} | settings))
        self.objective = Objective(self.model, cross_entropy, (self.x, self.y))

    def loss(self) -> Tensor:
        return cross_entropy(self.model(self.x), self.y)

    def step(self) -> float:
        """One optimizer step on the whole data."""
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step()


@dataclass
class Watch:
    """A probe that runs a function of the moment and notes its steps; by default it measures the step."""

    does: Callable[[Moment], Any] = lambda moment: float(moment.step)
    every: int | Callable[[int], bool] | None = None
    name: str = "watch"
    needs: frozenset[str] = frozenset()
    cost: str = "free"
    steps: list[int] = field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        return {}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        self.steps.append(moment.step)
        value = self.does(moment)
        yield value if isinstance(value, Reading) else Reading("value", value)


def no_objective_loss(*_: Any) -> Tensor:
    """A loss that fails, for an Objective that cannot be measured."""
    raise ZeroDivisionError("the loss divides by zero")
