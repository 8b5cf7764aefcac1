"""What the Plasticity probe writes is what ``plasticity`` says of the same moment; training does not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diagnostics import DiagnosticsError, plasticity
from probes import Monitor, Plasticity, Run
from probes.checkpoint.examine import _probes
from probes.probe import Moment
from probes.schedule import every
from tests.probes.toy import Toy, Watch

QUANTITIES = ("fitted", "fresh_fitted", "ratio", "lost", "accuracy", "fresh_accuracy")


@pytest.mark.parametrize("own", [False, True])
def test_every_number_is_that_of_a_direct_call(toy: Toy, own: bool) -> None:
    toy.train(3)
    probe = Plasticity(steps=20, lr=0.05, draws=3, own_optimizer=own)
    got = {one.name: one for one in probe.measure(Moment(3, toy.model, toy.optimizer, toy.objective))}
    rule: dict[str, Any] = {"optimizer": toy.optimizer} if own else {"lr": 0.05}
    measured = plasticity(toy.objective, steps=20, draws=3, seed=3, **rule)
    assert got["gradients"].value == measured.gradients == 2 * 3 * 20
    for name in QUANTITIES:
        estimate = getattr(measured, name)
        assert got[name].value == (estimate if estimate.determined else None)
    assert probe.settings()["steps"] == 20
    assert ("lr" in probe.settings()) != own


def test_a_run_holds_it_at_both_ends_and_is_the_same_bit_for_bit(folder: Path) -> None:
    ends = []
    for probe in (Plasticity(steps=2, draws=2), Watch()):
        toy = Toy(torch.optim.Adam, lr=0.1)
        with Monitor(toy.model, toy.optimizer, toy.objective, out=folder / probe.name, probes=[probe], every=2):
            toy.train(5)
        moments = [value for state in toy.optimizer.state.values() for value in state.values()]
        ends.append(torch.cat([tensor.detach().flatten() for tensor in (*toy.model.parameters(), *moments)]))
    assert torch.equal(*ends)
    run = Run.open(folder / "plasticity")
    assert run.series("plasticity", "fitted").steps.tolist() == [0, 5]
    assert run.last("monitor", "seconds", "plasticity") is not None


def test_it_has_a_schedule_of_its_own(folder: Path) -> None:
    toy = Toy()
    probe = Plasticity(steps=1, draws=2, every=every(2))
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[probe], budget=None):
        toy.train(4)
    assert Run.open(folder).series("plasticity", "fitted").steps.tolist() == [0, 2, 4]


def test_what_cannot_be_had_says_why(toy: Toy) -> None:
    (reading,) = Plasticity(own_optimizer=True).measure(Moment(1, toy.model, None, toy.objective))
    assert "no optimizer" in str(reading.note)
    with torch.no_grad():
        toy.model[0].weight.fill_(float("nan"))
    (reading,) = Plasticity().measure(Moment(1, toy.model, None, toy.objective))
    assert (reading.status, reading.name) == ("skipped", "ratio")
    assert "finite" in str(reading.note)


def test_on_a_checkpoint_it_is_measured_when_named() -> None:
    assert [probe.name for probe in _probes(["plasticity"])] == ["plasticity"]
    assert "plasticity" not in [probe.name for probe in _probes(None)]


@pytest.mark.parametrize("settings", [{"steps": 0}, {"draws": 1}, {"lr": 0.0}, {"moments": True}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(DiagnosticsError, match=next(iter(settings))):
        Plasticity(**settings)
