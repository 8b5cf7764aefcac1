"""Sharpness-aware minimisation stays below 2/η: its edge falls with the gradient, and the run follows it down.

SAM takes its gradient a little uphill, at θ + ρ g/‖g‖, so curvature λ acts as λ (1 + ρλ/‖g‖). The edge is where that
reaches 2/η. As the gradient shrinks the edge falls, and training is held at ever lower curvature: that is how SAM finds
flat places. The stability ratio knows the wrapper, so 1 is the edge here as everywhere.

Long and Bartlett, arXiv 2309.12488. Takes about twenty seconds.
"""

import statistics
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import Objective, stability


class SAM(torch.optim.Optimizer):
    """The usual wrapper: ``first_step`` goes uphill, ``second_step`` comes back and steps."""

    def __init__(
        self, params: Iterable[nn.Parameter], base_optimizer: type[torch.optim.Optimizer], rho: float, **base: Any
    ):
        super().__init__(params, {"rho": rho, **base})
        self.base_optimizer = base_optimizer(self.param_groups, **base)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        """To θ + ρ g/‖g‖."""
        weights = [weight for group in self.param_groups for weight in group["params"]]
        length = torch.stack([weight.grad.norm() for weight in weights]).norm()
        for weight in weights:
            self.state[weight]["from"] = weight.detach().clone()
            weight.add_(self.param_groups[0]["rho"] * weight.grad / length)

    @torch.no_grad()
    def second_step(self) -> None:
        """Back to θ, and on with the gradient from up there."""
        for group in self.param_groups:
            for weight in group["params"]:
                weight.copy_(self.state[weight]["from"])
        self.base_optimizer.step()


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ ‖f − y‖², averaged over examples."""
    return 0.5 * (outputs - targets).square().sum(dim=1).mean()


def at_edge(lr: float, rho: float, steps: int = 1500) -> tuple[float, float]:
    """The median ratio, and the median of sharpness over 2/η, over the last third of training."""
    torch.manual_seed(0)
    x, y = torch.randn(200, 20), torch.randn(200, 5)
    model = nn.Sequential(
        nn.Linear(20, 48, bias=False), nn.Tanh(), nn.Linear(48, 48, bias=False), nn.Tanh(), nn.Linear(48, 5, bias=False)
    )
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=rho, lr=lr)
    objective = Objective(model, half_square, (x, y))
    ratios, plain, start = [], [], None
    for step in range(steps):
        for half in (optimizer.first_step, optimizer.second_step):
            optimizer.zero_grad()
            half_square(model(x), y).backward()
            half()
        if step >= 2 * steps // 3 and step % 25 == 0:
            now = stability(objective, optimizer, tol=1e-2, start=start)
            start = now.restart
            ratios.append(float(now.ratio))
            plain.append(float(now.curvature) * lr / 2)
    return statistics.median(ratios), statistics.median(plain)


if __name__ == "__main__":
    for lr in (0.25, 0.35):
        ratio, plain = at_edge(lr, rho=0.1)
        print(f"lr {lr}: stability ratio {ratio:.3f}, while sharpness is only {plain:.2f} of 2/lr")
        assert 0.9 < ratio < 1.15, "SAM should sit at its own edge"
        assert plain < 0.9, "which is below that of gradient descent"
    ratio, plain = at_edge(0.02, rho=0.1)
    print(f"lr 0.02: stability ratio {ratio:.3f} (control: far from the edge)")
    assert ratio < 0.6
