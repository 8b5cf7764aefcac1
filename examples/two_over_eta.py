"""Gradient descent raises curvature until its own step can only just follow it, and stays there.

A small tanh network is trained full batch at three learning rates. Whatever the rate, the sharpness climbs to 2/η:
the stability ratio, sharpness over threshold, ends near 1 each time. A control at a small rate stays far below.

Cohen et al., arXiv 2103.00065. Takes about ten seconds.
"""

import statistics

import torch
from torch import nn

from diagnostics import Objective, stability


def final_ratio(lr: float, steps: int = 1500) -> float:
    """The median stability ratio over the last third of training."""
    torch.manual_seed(0)
    x, y = torch.randn(200, 20), torch.randn(200, 5)
    model = nn.Sequential(
        nn.Linear(20, 48, bias=False), nn.Tanh(), nn.Linear(48, 48, bias=False), nn.Tanh(), nn.Linear(48, 5, bias=False)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 0.5 * (outputs - targets).square().sum(dim=1).mean()

    objective = Objective(model, loss, (x, y))
    ratios, start = [], None
    for step in range(steps):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
        if step >= 2 * steps // 3 and step % 25 == 0:
            now = stability(objective, optimizer, tol=1e-2, start=start)
            start = now.restart
            ratios.append(float(now.ratio))
    return statistics.median(ratios)


if __name__ == "__main__":
    for lr in (0.3, 0.4, 0.5):
        ratio = final_ratio(lr)
        print(f"lr {lr}: threshold 2/lr = {2 / lr:.2f}, stability ratio {ratio:.3f}")
        assert 0.9 < ratio < 1.15, "gradient descent should sit at the edge of stability"
    control = final_ratio(0.02)
    print(f"lr 0.02: threshold 2/lr = {2 / 0.02:.0f}, stability ratio {control:.3f} (control: far from the edge)")
    assert control < 0.5
