"""Adam has an edge of stability too: preconditioned sharpness climbs to 38/η, and not to 2/η.

A small tanh network is trained full batch with Adam. What its momentum and its preconditioner leave of a step stops
contracting where the largest eigenvalue of P^-½ H P^-½ reaches (2+2β1)/((1−β1)η), which is 38/η at β1 = 0.9. Judged by
2/η the same run would look nineteen times too sharp. A control at a tenth of the rate has not come there.

Cohen et al., arXiv 2207.14484. Takes about ten seconds.
"""

import statistics

import torch
from torch import nn

from diagnostics import Objective, stability


def edge(lr: float, steps: int = 3000, score_from: int = 1350) -> tuple[float, float]:
    """The median of η λmax(P^-½ H P^-½) over the second half of training, and that of the stability ratio."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 10), torch.randn(64, 1)
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=lr), nn.MSELoss()
    objective = Objective(model, loss, (x, y))
    times_lr, ratios, start = [], [], None
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
        if step >= score_from and step % 50 == 0:
            now = stability(objective, optimizer, tol=1e-2, start=start)
            start = now.restart
            times_lr.append(lr * float(now.curvature))
            ratios.append(float(now.ratio))
    return statistics.median(times_lr), statistics.median(ratios)


if __name__ == "__main__":
    at_edge, ratio = edge(3e-3)
    print(f"lr 3e-3: η λmax(P^-½ H P^-½) = {at_edge:.1f}, where theory has 38; stability ratio {ratio:.3f}")
    assert 0.88 < ratio < 1.05, "full-batch Adam should sit at its own edge"
    control, control_ratio = edge(3e-4)
    print(f"lr 3e-4: η λmax(P^-½ H P^-½) = {control:.1f}; stability ratio {control_ratio:.3f} (control: not there yet)")
    assert control_ratio < 0.6
