"""Whatever goes wrong on the Monitor's side is written down, warned about once, and kept from the loop."""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from diagnostics import Objective
from probes import Monitor, Run, Units
from probes.probe import Moment, Reading
from tests.probes.toy import Toy, Watch, no_objective_loss


def _fails_at(*steps: int) -> Watch:
    def does(moment: Moment) -> float:
        if moment.step in steps:
            raise ZeroDivisionError(f"at {moment.step}")
        return 1.0

    return Watch(does, every=1)


def _statuses(folder: Path, probe: str = "watch") -> list[str]:
    return [record.status for record in Run.open(folder).records if record.probe == probe]


def test_three_failures_in_a_row_switch_a_probe_off(toy: Toy, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    failing, steady = _fails_at(1, 2, 3, 4, 5), Watch(every=1, name="steady")
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[failing, steady]):
        toy.train(5)
    assert failing.steps == [0, 1, 2, 3]
    assert steady.steps == [0, 1, 2, 3, 4, 5]
    records = [record for record in Run.open(folder).records if record.probe == "watch"]
    assert [record.status for record in records] == ["ok", "failed", "failed", "failed"]
    assert records[1].note == "ZeroDivisionError: at 1"
    assert records[3].note == "ZeroDivisionError: at 3 (switched off after 3 failures in a row)"
    [warning] = caplog.records
    assert (warning.name, warning.levelno) == ("probes", logging.WARNING)
    assert "'watch' failed at step 1 and training goes on: ZeroDivisionError: at 1" in warning.getMessage()


def test_two_failures_and_then_a_success_start_the_count_anew_but_not_the_warning(
    toy: Toy, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing = _fails_at(1, 2, 4, 5, 7)
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[failing]):
        toy.train(8)
    assert failing.steps == list(range(9))
    assert _statuses(folder) == ["failed" if step in (1, 2, 4, 5, 7) else "ok" for step in range(9)]
    assert len(caplog.records) == 1


def test_what_a_probe_measured_before_it_failed_is_kept(toy: Toy, folder: Path) -> None:
    class Halfway(Watch):
        def measure(self, moment: Moment) -> Any:
            yield Reading("first", 1.0)
            raise ValueError("then it broke")

    with Monitor(toy.model, toy.optimizer, out=folder, probes=[Halfway()]):
        pass
    run = Run.open(folder)
    assert run.last("watch", "first").value == 1.0
    assert run.records[1].note == "ValueError: then it broke"


GARBAGE = {
    "text for a number": "much",
    "a tensor of several numbers": torch.zeros(3),
    "not a reading": Reading,
    "a layer that is no text": Reading("value", 1.0, layer=3),  # type: ignore[arg-type]
    "an unknown status": Reading("value", 1.0, status="fine"),  # type: ignore[arg-type]
    "a note that is no text": Reading("value", 1.0, note=["a", "b"]),  # type: ignore[arg-type]
    "a number too large for a float": 10**400,
    "an array of objects": Reading("value", 1.0, array=numpy.array([object()])),
    "a tensor for an array": Reading("value", 1.0, array=torch.zeros(2)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_from_a_probe_is_a_failure_of_that_probe_and_the_run_stays_readable(
    garbage: str, toy: Toy, folder: Path
) -> None:
    broken, steady = Watch(lambda moment: GARBAGE[garbage], every=1), Watch(every=1, name="steady")
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[broken, steady]):
        toy.train(4)
    assert _statuses(folder) == ["failed", "failed", "failed"]
    assert Run.open(folder).series("steady", "value").values.tolist() == [0, 1, 2, 3, 4]


def test_half_a_surrogate_in_an_error_message_does_not_lose_the_record(toy: Toy, folder: Path) -> None:
    """Names of files on disk may hold them; UTF-8 may not."""

    def fails(moment: Moment) -> None:
        raise FileNotFoundError("caf\udce9.txt")

    with Monitor(toy.model, toy.optimizer, out=folder, probes=[Watch(fails)]):
        pass
    assert Run.open(folder).records[0].note == "FileNotFoundError: caf?.txt"


def test_an_objective_whose_loss_raises_is_three_failures_per_probe_and_no_more(
    toy: Toy, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Objective.from_loss(toy.model, no_objective_loss, [toy.x])
    with Monitor(toy.model, toy.optimizer, broken, out=folder, every=1, budget=None):
        toy.train(4)
    for probe in ("sharpness", "learning_rate", "units"):
        assert _statuses(folder, probe).count("failed") == 3
    assert len(caplog.records) == 3
    measured = Run.open(folder).series("learning_rate", "relative_update", "0.weight")
    assert measured.steps.tolist() == [1, 2], "what does not need the loss was measured until the probe went off"


def test_a_run_that_diverges_is_measured_to_the_end(folder: Path) -> None:
    toy = Toy()
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, every=1, budget=None):
        toy.step()
        with torch.no_grad():
            toy.model[0].weight.fill_(math.nan)
        toy.train(2)
    run = Run.open(folder)
    losses = [record for record in run.records if record.name == "loss"]
    assert [math.isnan(value) for value in run.series("sharpness", "loss").values] == [False, False, True, True]
    assert losses[-1].note.endswith("value was nan")
    assert "not finite" in next(r.note for r in run.records if r.name == "ratio" and r.status == "skipped")


def test_measurements_recover_when_the_weights_do(folder: Path) -> None:
    toy = Toy()
    good = {name: tensor.clone() for name, tensor in toy.model.state_dict().items()}
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, every=1, budget=None):
        toy.model[0].weight.data.fill_(math.nan)
        toy.step()
        toy.model.load_state_dict(good)
        toy.train(1)
    ratios = Run.open(folder).series("sharpness", "ratio")
    assert ratios.steps.tolist() == [0, 2]
    assert math.isfinite(ratios.values[1])


def test_a_full_disk_ends_the_writing_and_not_the_training(
    toy: Toy, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when the disk takes half a line and no error is raised; and although there may be room again later."""
    write, room = os.write, [True]

    def limited(descriptor: int, content: bytes) -> int:
        return write(descriptor, content if room[0] else content[: len(content) // 2])

    seen: list[int] = []
    monkeypatch.setattr(os, "write", limited)
    sink = lambda scalars, step: seen.append(step)  # noqa: E731
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[Watch(every=1)], sinks=[sink]):
        toy.train(2)
        room[0] = False
        toy.train(1)
        room[0] = True
        toy.train(1)
    assert Run.open(folder).series("watch", "value").steps.tolist() == [0, 1, 2]
    assert Run.open(folder).torn > 0
    assert seen == [0, 1, 2, 3, 4], "loggers do not depend on the disk"
    assert [record.getMessage() for record in caplog.records] == [
        f"the run can no longer be written, training goes on: [Errno {errno.ENOSPC}] only a part was written: "
        f"'{folder / 'records.jsonl'}'"
    ]


def test_a_deleted_run_folder_does_not_stop_training(toy: Toy, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[Units()], every=1) as monitor:
        toy.step()
        shutil.rmtree(folder)
        toy.train(2)
    assert monitor.step == 3
    assert len(caplog.records) == 1
    assert "can no longer be written" in caplog.records[0].getMessage()
