"""Optimizers that torch does not have, in a few obvious lines: the steps that rules are checked against."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer


class Lion(Optimizer):
    """Chen et al., arXiv 2302.06675: the sign of an interpolated momentum."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                average = state.setdefault("exp_avg", torch.zeros_like(parameter))
                parameter.sub_(group["lr"] * (beta1 * average + (1 - beta1) * parameter.grad).sign())
                average.mul_(beta2).add_((1 - beta2) * parameter.grad)


class SAM(Optimizer):
    """Foret et al., arXiv 2010.01412, in the form that most people copy: two steps, and shared groups."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        base_optimizer: type[Optimizer] = SGD,
        rho: float = 0.05,
        adaptive: bool = False,
        **settings: Any,
    ):
        super().__init__(params, {"rho": rho, "adaptive": adaptive, **settings})
        self.base_optimizer = base_optimizer(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        """Go uphill, and remember where from."""
        held = [(group, parameter) for group in self.param_groups for parameter in group["params"]]
        size = torch.stack(
            [((parameter.abs() if group["adaptive"] else 1.0) * parameter.grad).norm() for group, parameter in held]
        ).norm()
        for group, parameter in held:
            self.state[parameter]["old"] = parameter.detach().clone()
            scale = parameter.square() if group["adaptive"] else 1.0
            parameter.add_(group["rho"] * scale * parameter.grad / size)

    @torch.no_grad()
    def second_step(self) -> None:
        """Come back, and step with the gradient from up there."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.copy_(self.state[parameter]["old"])
        self.base_optimizer.step()

    def step(self, closure: Callable[[], float] | None = None) -> None:
        raise RuntimeError("SAM needs a closure")


class Lookahead:
    """Zhang et al., arXiv 1907.08610; not an Optimizer, as in many copies of it."""

    def __init__(self, optimizer: Optimizer, k: int = 5, alpha: float = 0.5):
        self.optimizer, self.k, self.alpha, self.count = optimizer, k, alpha, 0
        self.param_groups = optimizer.param_groups
        self.slow = [
            (parameter, parameter.detach().clone()) for group in self.param_groups for parameter in group["params"]
        ]

    @torch.no_grad()
    def step(self) -> None:
        self.optimizer.step()
        self.count += 1
        if self.count % self.k == 0:
            for parameter, slow in self.slow:
                slow.lerp_(parameter, self.alpha)
                parameter.copy_(slow)
