"""What the AscentSharpness probe writes is what ``diagnostics`` says of the same moment; training does not notice."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, Objective, ascent_sharpness
from probes import AscentSharpness, Monitor, Run
from probes.checkpoint.examine import _probes
from probes.probe import Moment, Reading
from reports.arguments import NAMED, PROBES
from tests.probes.toy import Toy, Watch


def readings(probe: AscentSharpness, toy: Toy) -> dict[str, Reading]:
    return {reading.name: reading for reading in probe.measure(Moment(1, toy.model, None, toy.objective))}


def square(weight: float) -> Toy:
    """The loss w²."""
    toy = Toy()
    toy.model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(toy.model.weight, weight)
    toy.objective = Objective(toy.model, nn.MSELoss(), (torch.ones(4, 1), torch.zeros(4, 1)))
    return toy


@pytest.mark.parametrize("adaptive", [False, True])
def test_every_number_is_that_of_a_direct_call(toy: Toy, adaptive: bool) -> None:
    got = readings(AscentSharpness(rho=0.1, adaptive=adaptive), toy)
    direct = ascent_sharpness(toy.objective, 0.1, adaptive=adaptive)
    assert float(got["rise"].value) == pytest.approx(float(direct.value), rel=1e-5)
    assert float(got["first_order"].value) == pytest.approx(float(direct.first_order), rel=1e-5)
    assert (got["loss"].value, got["rho"].value) == (pytest.approx(direct.loss), 0.1)
    assert "lower bound" in got["rise"].value.how


def test_a_parabola_rises_as_it_must() -> None:
    got = readings(AscentSharpness(rho=0.1), square(1.0))
    assert float(got["rise"].value) == pytest.approx(1.1**2 - 1, rel=1e-4)
    assert float(got["first_order"].value) == pytest.approx(0.2, rel=1e-4)


def test_at_a_minimum_there_is_no_way_up_to_first_order() -> None:
    got = readings(AscentSharpness(), square(0.0))
    assert got["rise"].status == "skipped"
    assert "gradient is zero" in str(got["rise"].note)
    assert got["loss"].value == 0.0
    assert "first_order" not in got


def test_a_diverged_model_gives_no_rise(toy: Toy) -> None:
    with torch.no_grad():
        toy.model[0].weight.fill_(math.nan)
    got = readings(AscentSharpness(), toy)
    assert (got["rise"].status, got["rise"].value) == ("skipped", None)
    assert "finite" in str(got["rise"].note)


def test_on_a_checkpoint_what_lies_around_the_edge_is_measured_when_named_alone() -> None:
    by_default = {probe.name for probe in _probes(None)}
    for name in ("ascent", "sharpening", "batch_ladder", "gradient_flow"):
        assert name in NAMED
        assert name not in by_default
        assert [probe.name for probe in _probes([name])] == [name]
    # What weights say by themselves is read from the file, without a probe.
    assert (
        {probe.name for probe in _probes(PROBES)} == set(PROBES) - {"weights", "trajectory"} == by_default | set(NAMED)
    )


@pytest.mark.parametrize("rho", [0.0, -0.1, math.nan, math.inf, "small", True])
def test_bad_settings_are_refused(rho: float) -> None:
    with pytest.raises(DiagnosticsError, match="rho"):
        AscentSharpness(rho=rho)


def test_training_is_the_same_bit_for_bit(folder: Path) -> None:
    runs = []
    for probe in (AscentSharpness(adaptive=True), Watch()):
        torch.manual_seed(0)
        toy = Toy(torch.optim.Adam, lr=0.01)
        with Monitor(toy.model, toy.optimizer, toy.objective, out=folder / probe.name, probes=[probe], every=1):
            toy.train(4)
        runs.append([*toy.model.state_dict().values(), torch.rand(3)])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    assert Run.open(folder / "ascent").series("ascent", "rise").steps.tolist() == [0, 1, 2, 3, 4]
