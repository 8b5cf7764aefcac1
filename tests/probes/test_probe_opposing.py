"""What the OpposingSignals probe writes is what ``diagnostics`` says of the next two steps; training is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from diagnostics import DiagnosticsError, opposing_signals
from diagnostics.stability.trial_step import trial_steps
from probes import Monitor, OpposingSignals, Run
from probes.checkpoint.examine import _probes
from probes.probe import Moment, Reading
from tests.probes.toy import Toy, Watch


def _readings(probe: OpposingSignals, moment: Moment) -> dict[str, Reading]:
    return {reading.name: reading for reading in probe.measure(moment)}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_every_number_is_that_of_a_direct_call(optimizer: Any) -> None:
    toy = Toy(optimizer, lr=0.05)
    toy.train(3)
    got = _readings(OpposingSignals(share=0.1), Moment(3, toy.model, toy.optimizer, toy.objective))
    update, following = trial_steps(toy.objective, toy.optimizer, 2)
    direct = opposing_signals(toy.objective, update, following=following, share=0.1)
    for name in ("carried", "net", "cosine", "alternation", "growth", "loss_change"):
        estimate = getattr(direct, name)
        assert got[name].value == (estimate if estimate.determined else None), name
    assert got["gaussian"].value == direct.gaussian
    for name in ("changes", "rising", "falling"):
        assert got[name].array is not None
        assert got[name].array.tolist() == getattr(direct, name).tolist()
        assert got[name].value == len(getattr(direct, name))
    # The two steps are those that training takes.
    start = toy.objective.space.flatten(toy.objective.space.values())
    for planned in (update, following):
        toy.step()
        there = toy.objective.space.flatten(toy.objective.space.values())
        torch.testing.assert_close(there - start, planned, rtol=1e-4, atol=1e-6)
        start = there


def test_a_run_holds_it_and_is_the_same_bit_for_bit(folder: Path) -> None:
    ends = []
    for probe in (OpposingSignals(), Watch()):
        torch.manual_seed(0)
        toy = Toy(torch.optim.Adam, lr=0.01)
        with Monitor(toy.model, toy.optimizer, toy.objective, out=folder / probe.name, probes=[probe], every=2):
            toy.train(4)
        state = [value for one in toy.optimizer.state.values() for value in one.values()]
        ends.append([*toy.model.state_dict().values(), *state, torch.rand(3)])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
    run = Run.open(folder / "opposing")
    assert run.series("opposing", "carried").steps.tolist() == [0, 2, 4]
    record = run.last("opposing", "changes")
    assert record is not None
    array = run.array(record)
    assert array is not None
    assert (array.shape, array.dtype) == ((12,), numpy.float64)


def test_what_cannot_be_measured_says_why(toy: Toy) -> None:
    (alone,) = OpposingSignals().measure(Moment(0, toy.model, None, toy.objective))
    assert (alone.status, alone.value) == ("skipped", None)
    assert "no optimizer" in str(alone.note)
    toy.optimizer.param_groups[0]["lr"] = 0.0
    (still,) = OpposingSignals().measure(Moment(0, toy.model, toy.optimizer, toy.objective))
    assert "learning rate is 0" in str(still.note)
    toy.optimizer.param_groups[0]["lr"] = 1e-6
    tiny = _readings(OpposingSignals(), Moment(0, toy.model, toy.optimizer, toy.objective))
    assert "no more than rounding" in str(tiny["carried"].note)
    assert "cosine" not in tiny
    with torch.no_grad():
        toy.model[0].weight.fill_(float("nan"))
    (diverged,) = OpposingSignals().measure(Moment(0, toy.model, toy.optimizer, toy.objective))
    assert "finite" in str(diverged.note)


def test_on_a_checkpoint_it_is_measured_when_named() -> None:
    assert [probe.name for probe in _probes(["opposing"])] == ["opposing"]
    assert "opposing" not in [probe.name for probe in _probes(None)]


@pytest.mark.parametrize("share", [0.0, 0.7, "half", True])
def test_bad_settings_are_refused(share: Any) -> None:
    with pytest.raises(DiagnosticsError, match="share"):
        OpposingSignals(share=share)
