"""Three optimizers on the same digits, side by side: plain SGD, SGD with momentum, and Adam.

The report sets them beside each other twice. At equal steps, whoever is ahead differs in everything that moves with
the loss. At equal loss, what is left is the optimizer's own doing: weights of another length, features of another
rank, steps of another size. One curve per run; nothing is called better or worse that does not exceed twice its error.

Optimizers Qualitatively Alter Solutions And We Should Leverage This, arXiv 2507.12224. Takes about ten seconds.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from diagnostics import Objective
from probes import EffectiveLearningRate, FeatureRank, Monitor, Sharpness, Units
from reports import Report
from reports.demo.digits import digits

STEPS, EVERY, BATCH = 300, 20, 64


def train(folder: Path, make: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    """The same network, from the same start, on the same batches."""
    torch.manual_seed(0)
    images, labels = digits(1000)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = make(model)
    objective = Objective(model, nn.CrossEntropyLoss(), (images[:300], labels[:300]))
    probes = [Sharpness(tol=0.05), EffectiveLearningRate(memory=0.0), Units(), FeatureRank()]
    with Monitor(model, optimizer, objective, out=folder, probes=probes, every=EVERY, budget=None) as monitor:
        for _ in range(STEPS):
            chosen = torch.randint(0, len(images), (BATCH,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            monitor.log(loss=loss.item())


if __name__ == "__main__":
    torch.set_num_threads(1)
    runs = Path(tempfile.mkdtemp()) / "runs"
    train(runs / "sgd", lambda model: torch.optim.SGD(model.parameters(), lr=0.05))
    train(runs / "momentum", lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    train(runs / "adam", lambda model: torch.optim.Adam(model.parameters(), lr=1e-3))

    report = Report.from_runs(runs / "sgd", runs / "momentum", runs / "adam")
    print(report)
    print("\nthe page:", report.save(runs / "comparison.html"))
