"""What the BatchLadder probe writes is what ``diagnostics`` says of the same moment; training does not notice."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from diagnostics import DiagnosticsError, batch_ladder
from probes import BatchLadder, Monitor, Run
from probes.probe import Moment
from tests.probes.toy import Toy, Watch


def test_every_number_is_that_of_a_direct_call(toy: Toy) -> None:
    got = list(BatchLadder(draws=3).measure(Moment(2, toy.model, toy.optimizer, toy.objective)))
    direct = batch_ladder(toy.objective, draws=3, seed=2)
    rungs = {reading.layer: reading for reading in got if reading.name == "sharpness"}
    assert list(rungs) == [str(size) for size in direct.sizes] == ["1", "3", "6", "12"]
    for size, value in zip(direct.sizes, direct.values, strict=True):
        assert float(rungs[str(size)].value) == pytest.approx(float(value), rel=1e-4)
        assert rungs[str(size)].value.kind == value.kind
    law = {reading.name: reading.value for reading in got if reading.name != "sharpness"}
    assert list(law) == ["examples", "whole", "slope", "r_squared"]
    assert law["examples"] == 12
    assert float(law["slope"]) == pytest.approx(float(direct.slope), rel=1e-4)
    assert law["r_squared"] == pytest.approx(direct.r_squared, rel=1e-4)


def test_by_default_the_first_state_and_the_last_are_measured(toy: Toy, folder: Path) -> None:
    probe = BatchLadder(sizes=[3, 12], draws=2)
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[probe], every=1, budget=None):
        toy.train(4)
    run = Run.open(folder)
    assert run.layers("batch_ladder", "sharpness") == ["3", "12"]
    assert run.series("batch_ladder", "sharpness", "3").steps.tolist() == [0, 4]
    assert run.last("batch_ladder", "r_squared") is None, "two sizes fit any line"
    assert run.last("batch_ladder", "slope") is not None


def test_a_single_size_makes_no_law(toy: Toy) -> None:
    got = list(BatchLadder(sizes=[4]).measure(Moment(0, toy.model, None, toy.objective)))
    assert [reading.name for reading in got] == ["examples", "sharpness"]


def test_what_cannot_be_measured_says_why(toy: Toy) -> None:
    (large,) = BatchLadder(sizes=[100]).measure(Moment(0, toy.model, None, toy.objective))
    assert (large.status, large.value) == ("skipped", None)
    assert "larger than the number of examples" in str(large.note)
    with torch.no_grad():
        toy.model[0].weight.fill_(math.nan)
    (diverged,) = BatchLadder().measure(Moment(0, toy.model, None, toy.objective))
    assert "loss is not finite" in str(diverged.note)


@pytest.mark.parametrize(
    "settings", [{"sizes": []}, {"sizes": [0, 4]}, {"sizes": "16"}, {"sizes": 16}, {"draws": 1}, {"draws": 2.5}]
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(DiagnosticsError, match=r"batch size|draws"):
        BatchLadder(**settings)


def test_training_is_the_same_bit_for_bit(folder: Path) -> None:
    runs = []
    for probe in (BatchLadder(every=2, sizes=[2, 12], draws=2), Watch()):
        torch.manual_seed(0)
        toy = Toy(torch.optim.Adam, lr=0.01)
        with Monitor(toy.model, toy.optimizer, toy.objective, out=folder / probe.name, probes=[probe], every=1):
            toy.train(4)
        runs.append([*toy.model.state_dict().values(), torch.rand(3)])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
