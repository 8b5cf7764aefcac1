"""Above 2/η gradient descent can throw itself to a flatter place and converge there: the catapult.

The model is the smallest that does it: f = u·v/√n on one example, with loss f²/2. With ηλ between 2 and 4 at the start
the loss first rises a hundredfold and then falls to zero where the curvature is lower; above 4 it never comes back.
Below 2 nothing of the kind happens. The report on such a run has a name for each.

Lewkowycz et al., arXiv 2003.02218. Takes a few seconds.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from diagnostics import Objective, sharpness
from probes import Monitor, Sharpness
from reports import Report

WIDTH = 512


class Product(nn.Module):
    """f = u·v/√n."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """One output for each input."""
        return x * (self.u @ self.v) / WIDTH**0.5


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ (f − y)², averaged."""
    return 0.5 * (outputs - targets).square().mean()


def train(times_lambda: float, folder: Path, steps: int = 200) -> tuple[list[float], float, str]:
    """Losses, ηλ at the end, and the report's word for the run, with η set so that ηλ is ``times_lambda`` at first."""
    torch.manual_seed(0)
    model, data = Product(), (torch.ones(1), torch.zeros(1))
    objective = Objective(model, half_square, data)
    lr = times_lambda / float(sharpness(objective).values[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses: list[float] = []
    with Monitor(model, optimizer, objective, out=folder, probes=[Sharpness()], every=1, budget=None):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = half_square(model(data[0]), data[1])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if not losses[-1] < 1e4:
                break
    final = lr * float(sharpness(objective).values[0]) if losses[-1] < 1e4 else float("nan")
    regime = next(finding for finding in Report.from_run(folder).findings if finding.id == "sharpness/regime")
    return losses, final, regime.claim.partition(":")[0]


if __name__ == "__main__":
    out = Path(tempfile.mkdtemp())
    for start in (1.5, 2.5, 3.5, 4.5):
        losses, final, verdict = train(start, out / str(start))
        rise = max(losses) / losses[0]
        print(f"ηλ {start} → {final:.2f}: the loss rose ×{rise:.3g}, ended at {losses[-1]:.1e}. {verdict}.")
        if start < 2:
            assert rise < 1.01
            assert losses[-1] < 1e-6
        elif start < 4:
            assert rise > 2, "steps are too long for the curvature at the start"
            assert losses[-1] < 1e-6, "and yet it converges"
            assert final < 2, "in a flatter place"
            assert "flatter" in verdict
        else:
            assert not losses[-1] < 1e4
            assert "diverged" in verdict
    print("the page:", Report.from_run(out / "2.5").save(out / "catapult.html"))
