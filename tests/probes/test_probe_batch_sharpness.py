"""What the BatchSharpness probe writes is what ``diagnostics`` says of the same moment."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from diagnostics import DiagnosticsError, batch_sharpness, gradient_noise_interaction
from probes import BatchSharpness, Monitor, Run
from probes.probe import Moment, Reading
from probes.sharpness import NO_EDGE
from tests.probes.toy import Toy


def _readings(toy: Toy, probe: BatchSharpness, step: int = 3) -> dict[str, Reading]:
    moment = Moment(step, toy.model, toy.optimizer, toy.objective)
    return {reading.name: reading for reading in probe.measure(moment)}


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 0.1}], ids=str)
def test_the_readings_are_those_of_the_moment(settings: dict[str, float]) -> None:
    toy = Toy(lr=0.5, **settings)
    toy.train(3)
    readings = _readings(toy, BatchSharpness(4, max_draws=50))
    measured = batch_sharpness(toy.objective, 4, optimizer=toy.optimizer, rtol=0.05, max_draws=50, seed=3)
    assert readings["value"].value == measured.value
    assert readings["ratio"].value == measured.ratio
    assert (readings["threshold"].value, readings["threshold"].note) == (measured.threshold, measured.rule)
    assert readings["batch_size"].value == 4.0
    assert readings["noise_interaction"].value == gradient_noise_interaction(toy.objective, 4, draws=32, seed=3)
    names = ["value", "ratio", "threshold", "momentum", "batch_size", "noise_interaction"]
    assert list(readings) == [name for name in names if settings or name != "momentum"]
    if settings:
        assert repr(readings["momentum"].value) == repr(measured.momentum)


def test_a_monitor_writes_it_down(toy: Toy, folder: Path) -> None:
    probes = [BatchSharpness(4, every=2)]
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=probes, budget=None):
        toy.train(5)
    run = Run.open(folder)
    assert run.series("batch_sharpness", "ratio").steps.tolist() == [0, 2, 4, 5]
    ratio, value = (run.series("batch_sharpness", name).values for name in ("ratio", "value"))
    assert ratio.tolist() == pytest.approx((value * 0.1 / 2).tolist())
    assert run.last("batch_sharpness", "threshold").note == "sgd: 2/η"
    assert run.header["probes"][0]["settings"] == {"batch_size": 4, "rtol": 0.05, "max_draws": 200}


@pytest.mark.parametrize("optimizer", [torch.optim.Rprop, torch.optim.Adam], ids=["no rule", "no state yet"])
def test_without_a_ratio_the_value_is_there_and_the_reason(optimizer: Any) -> None:
    readings = _readings(Toy(optimizer), BatchSharpness(4))
    assert readings["value"].value.determined
    assert readings["ratio"].status == "skipped"
    assert readings["ratio"].note
    assert "threshold" not in readings
    assert "momentum" not in readings


def test_without_an_optimizer_as_from_a_checkpoint(toy: Toy) -> None:
    [*readings] = BatchSharpness(4).measure(Moment(0, toy.model, None, toy.objective))
    ratio = next(reading for reading in readings if reading.name == "ratio")
    assert (ratio.status, ratio.note) == ("skipped", "no optimizer was given")


def test_a_batch_size_beyond_the_objective_fails_and_training_goes_on(toy: Toy, folder: Path) -> None:
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[BatchSharpness(13)], budget=None):
        toy.train(2)
    failed = [record for record in Run.open(folder).records if record.status == "failed"]
    assert [record.step for record in failed] == [0, 2]
    assert all("given: 13 of 12" in record.note for record in failed)


def test_everything_wrong_is_named_in_one_error() -> None:
    with pytest.raises(DiagnosticsError, match=r"batch_size=0, rtol=nan, max_draws=1\.5"):
        BatchSharpness(0, rtol=math.nan, max_draws=1.5)
    for wrong in ({"batch_size": True}, {"batch_size": 2, "rtol": 0.0}, {"batch_size": 2, "max_draws": 1}):
        with pytest.raises(DiagnosticsError):
            BatchSharpness(**wrong)


def test_at_a_learning_rate_of_zero_the_value_stays_and_there_is_no_edge() -> None:
    toy = Toy(lr=0.1, momentum=0.9)
    toy.train(2)
    before = _readings(toy, BatchSharpness(4))
    assert before["ratio"].status == "ok"
    toy.optimizer.param_groups[0]["lr"] = 0.0
    after = _readings(toy, BatchSharpness(4))
    assert float(after["value"].value) == pytest.approx(float(before["value"].value))
    assert (after["ratio"].status, after["ratio"].note) == ("skipped", NO_EDGE)
    assert not {"threshold", "momentum"} & after.keys()
