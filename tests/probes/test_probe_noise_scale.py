"""What the NoiseScale probe writes is what ``diagnostics`` says of the same moment; training does not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diagnostics import DiagnosticsError, noise_scale
from probes import Monitor, NoiseScale, Run
from probes.checkpoint.examine import _probes
from probes.probe import Moment
from tests.probes.toy import Toy, Watch


def test_every_number_is_that_of_a_direct_call(toy: Toy) -> None:
    got = {
        reading.name: reading
        for reading in NoiseScale(batch_size=4, draws=6).measure(Moment(3, toy.model, None, toy.objective))
        if reading.layer is None
    }
    direct = noise_scale(toy.objective, draws=6, seed=3)
    assert got["gradient_sq"].value == direct.gradient_sq
    assert got["trace_covariance"].value == direct.trace_covariance
    assert got["simple"].value == (direct.simple if direct.simple.determined else None)
    assert (got["batch_size"].value, got["examples"].value) == (4.0, float(direct.examples))


def test_layers_and_the_metric_of_the_optimizer_are_there(toy: Toy) -> None:
    adam = torch.optim.Adam(toy.model.parameters())
    fresh = list(NoiseScale(draws=0).measure(Moment(0, toy.model, adam, toy.objective)))
    (reading,) = (one for one in fresh if one.name == "preconditioned")
    assert (reading.status, "no preconditioner yet" in str(reading.note)) == ("skipped", True)
    layers = [one.layer for one in fresh if one.name == "trace_covariance"]
    assert layers == [None, *(row.layer for row in noise_scale(toy.objective, draws=0).by_layer)]
    plain = NoiseScale(draws=0).measure(Moment(1, toy.model, toy.optimizer, toy.objective))
    direct = noise_scale(toy.objective, optimizer=toy.optimizer, draws=0).preconditioned
    assert direct is not None
    (value,) = (one.value for one in plain if one.name == "preconditioned")
    assert value == (direct if direct.determined else None)


def test_a_run_holds_it_and_is_the_same_bit_for_bit(folder: Path) -> None:
    ends = []
    for probe in (NoiseScale(draws=2), Watch()):
        toy = Toy(lr=0.1)
        with Monitor(toy.model, toy.optimizer, toy.objective, out=folder / probe.name, probes=[probe], every=2):
            toy.train(4)
        ends.append(torch.cat([tensor.detach().flatten() for tensor in toy.model.parameters()]))
    assert torch.equal(*ends)
    assert Run.open(folder / "noise_scale").series("noise_scale", "trace_covariance").steps.tolist() == [0, 2, 4]


def test_a_diverged_model_says_why_there_is_nothing(toy: Toy) -> None:
    with torch.no_grad():
        toy.model[0].weight.fill_(float("nan"))
    (reading,) = NoiseScale().measure(Moment(1, toy.model, None, toy.objective))
    assert reading.status == "skipped"
    assert "finite" in str(reading.note)


def test_on_a_checkpoint_it_is_measured_when_named() -> None:
    assert [probe.name for probe in _probes(["noise_scale"])] == ["noise_scale"]
    assert "noise_scale" not in [probe.name for probe in _probes(None)]


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"batch_size": 1.5}, {"draws": 1}, {"draws": -2}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(DiagnosticsError, match=r"batch_size|draws"):
        NoiseScale(**settings)
