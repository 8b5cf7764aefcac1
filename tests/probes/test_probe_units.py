"""What the Units probe writes is what ``unit_activity`` says, with the scores of the units kept as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from diagnostics import Objective, unit_activity
from probes import Monitor, Run, Units


class Net(nn.Module):
    """A convolution, a functional non-linearity, and a layer of which two units are dead."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 3)
        self.rectifier = nn.ReLU()
        self.hidden = nn.Linear(48, 5)
        self.out = nn.Linear(5, 2)
        with torch.no_grad():
            self.hidden.bias[:2] = -100.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.rectifier(self.convolution(x)).flatten(1)
        return self.out(torch.relu(self.hidden(x)))  # type: ignore[no-any-return]


@pytest.fixture
def measured(folder: Path) -> tuple[Run, nn.Module, Objective]:
    model = Net()
    data = [(torch.randn(count, 1, 6, 6), torch.randint(2, (count,))) for count in (5, 3)]
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, optimizer, objective, out=folder, probes=[Units(tau=0.1)], every=1):
        for x, y in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return Run.open(folder), model, objective


def test_counts_are_those_of_unit_activity(measured: tuple[Run, nn.Module, Objective]) -> None:
    run, model, objective = measured
    table = unit_activity(model, objective, tau=0.1)
    assert run.layers("units", "dead") == ["rectifier", "relu"] == [row.layer for row in table.rows]
    for row in table.rows:
        counts = ("duplicate", "outliers", "gradient_dormant", "frozen", "sign_entropy", "rms")
        known = [name for name in counts if getattr(row, name) is not None]
        assert {"gradient_dormant", "frozen"} <= set(known)
        for name in ("units", "dormant", "dead", "saturated", "linearised", *known):
            record = run.last("units", name, row.layer)
            assert record.value == getattr(row, name)
            assert "relu" in record.note
            assert f"{row.samples} samples per unit" in record.note
    assert run.last("units", "dead", "relu").value == 2
    assert run.series("units", "dead", "relu").steps.tolist() == [0, 1, 2]


def test_scores_are_kept_one_file_for_each_measurement(
    measured: tuple[Run, nn.Module, Objective], folder: Path
) -> None:
    run, model, objective = measured
    files = sorted(file.name for file in (folder / "arrays").iterdir())
    assert files == [f"units-{step:08d}.safetensors" for step in (0, 1, 2)]
    for row in unit_activity(model, objective, tau=0.1).rows:
        scores = run.array(run.last("units", "units", row.layer))
        assert scores.dtype == numpy.float64
        assert numpy.array_equal(scores, row.scores.numpy())
    assert run.array(run.last("units", "dead", "relu")) is None
    assert {record.array for record in run.records if record.name == "dead"} == {None}


def test_values_that_are_not_finite_are_no_failure_of_the_probe(folder: Path) -> None:
    """It says why, and speaks again when they have gone."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    objective = Objective(model, nn.CrossEntropyLoss(), (torch.randn(4, 3), torch.tensor([0, 1, 0, 1])))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Monitor(model, optimizer, objective, out=folder, probes=[Units()], every=1):
        for step in range(5):
            with torch.no_grad():
                model[0].bias[0] = 0.0 if step == 4 else float("nan")
            optimizer.step()
    run = Run.open(folder)
    told = [record for record in run.records if record.probe == "units" and record.status != "ok"]
    assert [(record.status, record.step) for record in told] == [("skipped", step) for step in (1, 2, 3, 4)]
    assert "the pre-activations at '1' are not finite" in told[0].note
    assert run.series("units", "dead", "1").steps.tolist() == [0, 5]


def test_a_model_without_non_linearities_says_so(folder: Path) -> None:
    model = nn.Linear(3, 2)
    objective = Objective(model, nn.CrossEntropyLoss(), (torch.randn(4, 3), torch.tensor([0, 1, 0, 1])))
    with Monitor(model, torch.optim.SGD(model.parameters(), lr=0.1), objective, out=folder, probes=[Units()]):
        pass
    [record] = [record for record in Run.open(folder).records if record.probe == "units"]
    assert (record.status, record.value) == ("skipped", None)
    assert "no non-linearity" in record.note
