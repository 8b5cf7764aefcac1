"""A learning rate that nobody lowered falls by itself: growing norms do it, and projection stops it.

Before a normalisation layer only the direction of a weight counts, and Adam turns it by about η/‖w‖ per step. Nothing
holds ‖w‖, every step lengthens it, and so the rate in force decays while the config says it is constant. Projecting the
weights back to their first norm after each step (Normalize-and-Project) keeps it where it was. The targets change all
the time here, as in continual learning, so that there is always something to learn.

Lyle et al., arXiv 2407.01800. Takes about ten seconds.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

from diagnostics import Objective
from probes import EffectiveLearningRate, Monitor, Run

HIDDEN = "0.weight", "3.weight"


def shares_of_rate(project: bool, steps: int = 3000) -> dict[str, float]:
    """Of each weight before a LayerNorm: the effective rate at the end, over that at the start."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 64, bias=False),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Linear(64, 64, bias=False),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    x, y = torch.randn(256, 16), torch.randint(10, (256,))
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss()
    norms = {name: dict(model.named_parameters())[name].detach().norm() for name in HIDDEN}
    with tempfile.TemporaryDirectory() as out:
        probes, objective = [EffectiveLearningRate()], Objective(model, loss, (x, y))
        with Monitor(model, optimizer, objective, out=Path(out) / "run", probes=probes, every=500, budget=None):
            for step in range(steps):
                if step % 200 == 0:
                    y = torch.randint(10, (256,))
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()
                if project:
                    with torch.no_grad():
                        for name, norm in norms.items():
                            weight = dict(model.named_parameters())[name]
                            weight.mul_(norm / weight.norm())
        run = Run.open(Path(out) / "run")
        series = {name: run.series("learning_rate", "effective", name) for name in HIDDEN}
    return {name: float(one.values[-1] / one.values[0]) for name, one in series.items()}


if __name__ == "__main__":
    for name, share in shares_of_rate(project=False).items():
        print(f"{name}: norms have grown, {share:.0%} of the effective rate is left")
        assert share < 0.4
    for name, share in shares_of_rate(project=True).items():
        print(f"{name}, projected: {share:.0%} of the effective rate is left (control)")
        assert 0.95 < share < 1.05
