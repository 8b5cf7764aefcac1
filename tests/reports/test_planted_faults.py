"""Faults planted in real runs on the digits stand first in their reports, and nothing is alleged in healthy ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from diagnostics import Objective
from probes import BatchSharpness, EffectiveLearningRate, Monitor, NoiseScale, Sharpness, Units
from reports import Report
from reports.demo.digits import digits

Make = Callable[[nn.Module], Optimizer]


def _report(folder: Path, make: Make, batch: int, steps: int, *, dead: int = 0) -> Report:
    torch.manual_seed(0)
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    with torch.no_grad():
        model[2].bias[:dead] = -20.0
    optimizer, loss = make(model), nn.CrossEntropyLoss()
    probes = [
        Sharpness(tol=0.05),
        EffectiveLearningRate(),
        Units(),
        BatchSharpness(batch_size=batch, max_draws=40),
        NoiseScale(batch_size=batch, draws=0),
    ]
    objective = Objective(model, loss, (x[:256], y[:256]))
    with Monitor(model, optimizer, objective, out=folder, probes=probes, every=steps // 8, budget=None):
        for _ in range(steps):
            chosen = torch.randint(len(x), (batch,))
            optimizer.zero_grad()
            loss(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return Report.from_run(folder)


def _sgd(rate: float) -> Make:
    return lambda model: SGD(model.parameters(), lr=rate)


def _adam(rate: float) -> Make:
    return lambda model: Adam(model.parameters(), lr=rate)


@pytest.mark.parametrize(
    ("make", "batch", "steps", "dead", "id", "said", "advice"),
    [
        (_sgd(2.0), 64, 240, 0, "sharpness/regime", "The run was thrown off", "Lower the learning rate"),
        (_sgd(0.1), 1, 2400, 0, "noise_scale/batch", "batches of 1 are far below", "Raise the batch"),
        (_adam(1e-3), 64, 240, 40, "units/dead_at_start", "40 of 64 units at layer 3", "look at the initialisation"),
    ],
    ids=["too high a rate", "a tiny batch", "dead units"],
)
def test_the_fault_stands_first(
    tmp_path: Path, make: Make, batch: int, steps: int, dead: int, id: str, said: str, advice: str
) -> None:
    report = _report(tmp_path / "run", make, batch, steps, dead=dead)
    first = report.findings[0]
    assert first.id == id, report
    assert first.level in ("fail", "warn")
    assert said in report.document.diagnosis
    assert any(advice in line for line in first.advice)


@pytest.mark.parametrize(
    ("make", "batch"),
    [(_adam(1e-3), 64), (_sgd(0.1), 64), (_sgd(0.1), 16)],
    ids=["adam", "sgd", "small batches"],
)
def test_nothing_is_alleged_in_a_healthy_run(tmp_path: Path, make: Make, batch: int) -> None:
    report = _report(tmp_path / "run", make, batch, 320)
    assert [one.claim for one in report.findings if one.level in ("fail", "warn")] == []
    assert report.document.diagnosis.startswith("Nothing calls for action")
