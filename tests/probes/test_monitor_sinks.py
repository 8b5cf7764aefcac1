"""Sinks and the loop's own scalars: what is passed on, and that neither can disturb anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from diagnostics import Estimate
from probes import Monitor, Run
from probes.probe import Reading
from tests.probes.toy import Toy, Watch


def test_sinks_get_every_good_number_under_its_path_and_the_step(toy: Toy, folder: Path) -> None:
    told: dict[int, dict[str, float]] = {}

    def sink(scalars: Mapping[str, float], step: int) -> None:
        told.setdefault(step, {}).update(scalars)

    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, every=2, budget=None, sinks=[sink]) as monitor:
        toy.train(2)
        monitor.log(loss=1.0)
    run = Run.open(folder)
    own = [record for record in run.records if record.probe in ("loop", "monitor")]
    good = [record for record in run.records if record.status == "ok" and record not in own]
    assert set(told) == {0, 2}
    for step, scalars in told.items():
        assert scalars == {
            "/".join(["diag", record.probe, record.name, *([record.layer] if record.layer else [])]): record.value
            for record in good
            if record.step == step
        }
    assert {"diag/sharpness/ratio", "diag/units/dormant/1", "diag/learning_rate/lr/0.weight"} <= told[2].keys()
    assert len(own) > 0


def test_sinks_never_get_a_number_that_is_none(toy: Toy, folder: Path) -> None:
    readings = iter(
        [
            Reading("value", math.nan),
            Reading("value", Estimate(math.inf, 0.0, "exact", "")),
            Reading("value", None, status="skipped"),
            Reading("value", 2.0),
        ]
    )
    told = []
    watch = Watch(lambda moment: next(readings), every=1)
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[watch], sinks=[lambda *call: told.append(call)]):
        toy.train(3)
    assert told == [({"diag/watch/value": 2.0}, 3)]
    assert all(type(value) is float for value in told[0][0].values())


def test_a_sink_that_raises_is_warned_about_once_and_dropped_after_three_in_a_row(
    toy: Toy, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls: dict[str, list[int]] = {"broken": [], "shaky": [], "good": []}

    def broken(scalars: Mapping[str, float], step: int) -> None:
        calls["broken"].append(step)
        raise ConnectionError("no network")

    def shaky(scalars: Mapping[str, float], step: int) -> None:
        calls["shaky"].append(step)
        if step % 3:
            raise TimeoutError

    def good(scalars: Mapping[str, float], step: int) -> None:
        calls["good"].append(step)

    with Monitor(toy.model, toy.optimizer, out=folder, probes=[Watch(every=1)], sinks=[broken, shaky, good]):
        toy.train(6)
    assert calls == {"broken": [0, 1, 2], "shaky": list(range(7)), "good": list(range(7))}
    assert len(Run.open(folder).series("watch", "value")) == 7
    assert len(caplog.records) == 2


def test_a_sink_may_keep_and_change_what_it_is_given(toy: Toy, folder: Path) -> None:
    """Loggers add their own keys to the dictionary."""
    told: list[Any] = []
    sinks = [lambda scalars, step: scalars.clear(), lambda scalars, step: told.append(scalars)]
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[Watch()], sinks=sinks):
        pass
    assert told == [{"diag/watch/value": 0.0}]


def test_the_loops_own_scalars_are_recorded_at_their_step(toy: Toy, folder: Path) -> None:
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[]) as monitor:
        for _ in range(3):
            monitor.log(loss=toy.step(), momentum=0.9)
    losses = Run.open(folder).series("loop", "loss")
    assert losses.steps.tolist() == [1, 2, 3]
    assert losses.values[0] > losses.values[2]
    assert Run.open(folder).series("loop", "momentum").values.tolist() == [0.9] * 3


@pytest.mark.parametrize(
    "value",
    [2, 2.0, True + 1, numpy.float32(2), numpy.int64(2), numpy.array(2.0), torch.tensor(2), torch.tensor([2.0])],
    ids=repr,
)
def test_any_scalar_can_be_logged(value: Any, toy: Toy, folder: Path) -> None:
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[]) as monitor:
        monitor.log(loss=value)
    assert Run.open(folder).last("loop", "loss").value == 2.0


def test_a_loss_with_its_graph_can_be_logged_and_used_afterwards(toy: Toy, folder: Path) -> None:
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[]) as monitor:
        loss = toy.loss()
        monitor.log(loss=loss)
        loss.backward()
    assert Run.open(folder).last("loop", "loss").value == pytest.approx(loss.item())


@pytest.mark.parametrize(
    "garbage", ["low", None, torch.zeros(3), {"a": 1}, 10**400, object()], ids=lambda v: type(v).__name__
)
def test_garbage_among_the_loops_scalars_does_not_take_the_good_ones_with_it(
    garbage: Any, toy: Toy, folder: Path
) -> None:
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[]) as monitor:
        monitor.log(bad=garbage, loss=0.5)
        monitor.log(loss=math.nan)
    run = Run.open(folder)
    bad, good, undefined = (record for record in run.records if record.probe == "loop")
    assert (bad.name, bad.status, bad.value) == ("bad", "failed", None)
    assert bad.note.startswith("not a number: ")
    assert (good.name, good.value) == ("loss", 0.5)
    assert (undefined.status, undefined.value, undefined.note) == ("ok", None, "value was nan")
