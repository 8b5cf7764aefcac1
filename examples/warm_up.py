"""Why warm-up works: it gives curvature the time to come down before the rate is full.

A network that starts sharp cannot follow the rate that it is trained at later: the stability ratio is far above 1 at
step 0 and the first steps throw it out. With the rate raised slowly the ratio only ever touches 1: each time it does,
oscillation along the sharpest directions pushes curvature down, and so a rate becomes possible that was not. What the
report calls a catapult or a blow-up without warm-up, it calls stable or at the edge with it.

Gilmer et al., arXiv 2110.04369. Takes about fifteen seconds.
"""

import torch
from torch import Tensor, nn

from diagnostics import Objective, stability


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ ‖f − y‖², averaged over examples."""
    return 0.5 * (outputs - targets).square().sum(dim=1).mean()


def train(lr: float, warm_up: int, steps: int = 600) -> tuple[list[float], list[float]]:
    """Losses, and the stability ratio every ten steps."""
    torch.manual_seed(0)
    x, y = torch.randn(200, 20), torch.randn(200, 5)
    layers = [nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 5)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        layers[-1].weight.mul_(6.0)  # a head that starts too large, and makes everything below it sharp
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, warm_up)))
    objective = Objective(model, half_square, (x, y))
    losses, ratios, start = [], [], None
    for step in range(steps):
        if step % 10 == 0:
            now = stability(objective, optimizer, tol=2e-2, start=start)
            start = now.restart
            ratios.append(float(now.ratio))
        optimizer.zero_grad()
        loss = half_square(model(x), y)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if not losses[-1] < 1e6:
            break
    return losses, ratios


if __name__ == "__main__":
    losses, ratios = train(0.3, warm_up=0)
    print(
        f"no warm-up: ratio {ratios[0]:.1f} at step 0, loss {losses[0]:.2f} → {losses[-1]:.2g} in {len(losses)} steps"
    )
    assert ratios[0] > 4, "the rate is far too high for the curvature at the start"
    assert losses[-1] > 1e6, "so the run is thrown out"

    losses, ratios = train(0.3, warm_up=300)
    print(
        f"warm-up over 300 steps: ratio at most {max(ratios):.2f}, at the end {ratios[-1]:.2f}; loss → {losses[-1]:.3f}"
    )
    assert max(ratios) < 2, "curvature comes down as the rate goes up"
    assert 0.9 < ratios[-1] < 1.15, "until the full rate is the edge"
    assert losses[-1] < 0.1

    losses, ratios = train(0.03, warm_up=0)
    print(f"a rate that fits from the start: ratio at most {max(ratios):.2f}, loss {losses[-1]:.2f} (control)")
    assert max(ratios) < 1.15
    assert max(losses) <= losses[0]
