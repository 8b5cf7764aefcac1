"""A network that learns task after task until it cannot learn any more, and the report that says why.

Every task asks for new random labels of the same inputs, as in the benchmarks of continual learning. With Adam at a
high rate the ReLU units die, each task is learned worse than the one before, and in the end none is. The Monitor puts
random targets to copies of the network: what it fits, beside what a fresh network fits, is its plasticity. The same
stream with LayerNorm before the non-linearities keeps it.

Dohare et al., arXiv 2306.13812; Lyle et al., arXiv 2402.18762. Takes about ten seconds.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

from diagnostics import Objective
from probes import EffectiveLearningRate, Monitor, Plasticity, Units, at
from reports import Report

TASKS, STEPS, EXAMPLES, WIDTH = 10, 100, 192, 64


def network(normalised: bool) -> nn.Module:
    """Three hidden layers."""
    layers: list[nn.Module] = []
    for inputs in (16, WIDTH, WIDTH):
        layers += [nn.Linear(inputs, WIDTH), *([nn.LayerNorm(WIDTH)] if normalised else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def stream(normalised: bool, out: Path) -> tuple[list[float], Report]:
    """Accuracy at the end of each task, and the report on the run."""
    torch.manual_seed(0)
    model, loss, x = network(normalised), nn.CrossEntropyLoss(), torch.randn(EXAMPLES, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    objective = Objective(model, loss, (x, torch.randint(10, (EXAMPLES,))))
    probes = [
        Units(),
        EffectiveLearningRate(every=at(TASKS * STEPS)),
        Plasticity(steps=40, lr=1e-2, draws=3, every=at(TASKS * STEPS)),
    ]
    accuracies = []
    with Monitor(model, optimizer, objective, out=out, probes=probes, every=STEPS, budget=None):
        for _ in range(TASKS):
            labels = torch.randint(10, (EXAMPLES,))
            for _ in range(STEPS):
                optimizer.zero_grad()
                loss(model(x), labels).backward()
                optimizer.step()
            accuracies.append(float((model(x).argmax(1) == labels).float().mean()))
    return accuracies, Report.from_run(out)


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    accuracies, report = stream(False, folder / "relu")
    print("accuracy, task by task:", *(f"{one:.2f}" for one in accuracies))
    print(report)
    lost = next(finding for finding in report.findings if finding.id == "plasticity/lost")
    assert lost.level == "fail"
    assert "are dead" in lost.meaning
    assert accuracies[0] > 0.95
    assert accuracies[-1] < 0.5

    accuracies, report = stream(True, folder / "normalised")
    print("with LayerNorm, task by task:", *(f"{one:.2f}" for one in accuracies))
    print(report.document.diagnosis)
    assert accuracies[-1] > 0.95
    assert not any(finding.level in ("fail", "warn") for finding in report.findings)
