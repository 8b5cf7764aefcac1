"""What the GradientFlow probe writes is what ``diagnostics`` says of the same moment; training does not notice."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, Objective, gradient_flow_sharpness
from probes import GradientFlow, Monitor, Run
from probes.probe import Moment, Reading
from tests.probes.toy import Toy, Watch


@pytest.fixture
def scalar() -> Toy:
    """A deep scalar network that seeks uv = 1: its flow ends quickly, and sharper than it began."""
    toy = Toy()
    toy.model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    for layer, weight in zip(toy.model, (3.0, 0.5), strict=True):
        nn.init.constant_(layer.weight, weight)
    ones = torch.ones(1, 1).double()
    toy.objective = Objective(toy.model, lambda output, target: 0.5 * (output - target).square().mean(), (ones, ones))
    toy.optimizer = torch.optim.SGD(toy.model.parameters(), lr=0.1)
    return toy


def readings(probe: GradientFlow, toy: Toy, optimizer: torch.optim.Optimizer | None) -> dict[str, Reading]:
    return {reading.name: reading for reading in probe.measure(Moment(1, toy.model, optimizer, toy.objective))}


def test_every_number_is_that_of_a_direct_call(scalar: Toy) -> None:
    got = readings(GradientFlow(), scalar, scalar.optimizer)
    direct = gradient_flow_sharpness(scalar.objective, max_gradients=2000, seed=1)
    assert direct.converged
    assert list(got) == ["now", "threshold", "sharpness", "distance", "loss"]
    assert float(got["sharpness"].value) == pytest.approx(float(direct.sharpness), rel=1e-6)
    assert float(got["sharpness"].value) == pytest.approx(8.98, abs=0.02), "1/a + 1/b with ab = 1 and a − b = 9 − ¼"
    assert float(got["now"].value) == pytest.approx(float(direct.start), rel=1e-6)
    assert (got["distance"].value, got["loss"].value) == (direct.distance, direct.loss)
    assert (got["threshold"].value, got["threshold"].note) == (20.0, "sgd: 2/η")


def test_only_plain_sgd_has_a_threshold_to_hold_the_flow_against(scalar: Toy) -> None:
    for optimizer in (torch.optim.AdamW(scalar.model.parameters()), None):
        got = readings(GradientFlow(), scalar, optimizer)
        assert "threshold" not in got
        assert got["sharpness"].status == "ok"


def test_a_flow_that_was_not_followed_to_its_end_gives_no_number(scalar: Toy) -> None:
    got = readings(GradientFlow(max_gradients=60), scalar, scalar.optimizer)
    assert list(got) == ["now", "threshold", "sharpness"]
    assert (got["sharpness"].status, got["sharpness"].value) == ("skipped", None)
    assert str(got["sharpness"].note).startswith("NOT CONVERGED: after")
    assert "allows more than 60" in str(got["sharpness"].note)


def test_a_diverged_model_gives_no_numbers(toy: Toy) -> None:
    with torch.no_grad():
        toy.model[0].weight.fill_(math.nan)
    got = readings(GradientFlow(), toy, toy.optimizer)
    assert [(one.status, one.value) for one in got.values()] == [("skipped", None)]
    assert "finite" in str(got["sharpness"].note)


@pytest.mark.parametrize("most", [0, 59, 100.5, True, "many"])
def test_bad_settings_are_refused(most: int) -> None:
    with pytest.raises(DiagnosticsError, match="max_gradients"):
        GradientFlow(max_gradients=most)


def test_by_default_the_first_state_and_the_last_are_measured_and_training_does_not_notice(folder: Path) -> None:
    runs = []
    for probe in (GradientFlow(max_gradients=60), Watch()):
        torch.manual_seed(0)
        toy = Toy(torch.optim.Adam, lr=0.01)
        with Monitor(toy.model, toy.optimizer, toy.objective, out=folder / probe.name, probes=[probe], every=1):
            toy.train(4)
        runs.append([*toy.model.state_dict().values(), torch.rand(3)])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    run = Run.open(folder / "gradient_flow")
    assert run.series("gradient_flow", "now").steps.tolist() == [0, 4]
    assert [entry["schedule"] for entry in run.header["probes"]] == ["the first state and the last"]
