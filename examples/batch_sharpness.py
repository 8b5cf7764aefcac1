"""Under mini-batches it is batch sharpness that stands at the edge, while λmax of the whole loss stays below it.

The same small tanh network as in ``two_over_eta.py``, with 16 of its 200 examples per step. Sharpness stops rising at
two thirds of 2/η, and nothing in it tells why. The curvature that each mini-batch has along its own gradient does: its
mean, E[g_Bᵀ H_B g_B / ‖g_B‖²], has come to 2/η. A control at a small rate is far from it.

Andreyev and Beneventano, arXiv 2412.20553. Takes about twenty seconds.
"""

import statistics

import torch
from torch import Tensor, nn

from diagnostics import Objective, batch_sharpness, stability

BATCH = 16


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ ‖f − y‖², averaged over examples."""
    return 0.5 * (outputs - targets).square().sum(dim=1).mean()


def final_ratios(lr: float, steps: int = 4000) -> tuple[float, float]:
    """Medians over the second half of training: batch sharpness, and λmax of the whole loss, over 2/η."""
    torch.manual_seed(0)
    x, y = torch.randn(200, 20), torch.randn(200, 5)
    model = nn.Sequential(
        nn.Linear(20, 48, bias=False), nn.Tanh(), nn.Linear(48, 48, bias=False), nn.Tanh(), nn.Linear(48, 5, bias=False)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    objective = Objective(model, half_square, (x, y))
    batches, whole, start = [], [], None
    for step in range(1, steps + 1):
        chosen = torch.randperm(len(x))[:BATCH]
        optimizer.zero_grad()
        half_square(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        if step >= steps // 2 and step % 200 == 0:
            measured = batch_sharpness(objective, BATCH, optimizer=optimizer, rtol=0.05)
            assert measured.ratio is not None
            batches.append(float(measured.ratio))
            now = stability(objective, optimizer, tol=2e-2, start=start)
            start = now.restart
            whole.append(float(now.ratio))
    return statistics.median(batches), statistics.median(whole)


if __name__ == "__main__":
    batch, whole = final_ratios(0.5)
    print(f"lr 0.5: batch sharpness {batch:.2f} of 2/lr, λmax of the whole loss {whole:.2f} of it")
    assert 0.85 < batch < 1.3, "batch sharpness should be at the edge"
    assert whole < 0.85, "while λmax is not"
    batch, whole = final_ratios(0.02)
    print(f"lr 0.02: batch sharpness {batch:.2f} of 2/lr, λmax {whole:.2f} of it (control: far from the edge)")
    assert batch < 0.6
