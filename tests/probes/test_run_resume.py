"""Resuming: what came after the checkpoint is dropped, what came before is kept, and measuring goes on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, Objective
from probes import Monitor, Run, Units
from tests.probes.toy import Toy, Watch


def _train(toy: Toy, folder: Path, steps: int, resume: int | None = None, every: int = 2) -> Run:
    with Monitor(
        toy.model, toy.optimizer, toy.objective, out=folder, probes=[Watch(), Units()], every=every, resume=resume
    ) as monitor:
        for _ in range(steps):
            monitor.log(loss=toy.step())
    return Run.open(folder)


def test_later_records_go_earlier_ones_stay_and_measuring_goes_on(toy: Toy, folder: Path) -> None:
    first = _train(toy, folder, 10)
    kept = [record for record in first.records if record.step <= 4]
    run = _train(toy, folder, 4, resume=4)
    assert run.records[: len(kept)] == kept
    assert all(record.step >= 4 for record in run.records[len(kept) :])
    assert run.series("watch", "value").steps.tolist() == [0, 2, 4, 6, 8]
    assert run.series("loop", "loss").steps.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert run.header == first.header


def test_arrays_that_no_record_names_any_more_go_with_them(toy: Toy, folder: Path) -> None:
    """Also one whose record was never written, and one that was being written: a kill may come in between."""
    _train(toy, folder, 8)
    arrays = folder / "arrays"
    (arrays / "units-00000099.safetensors").write_bytes(b"orphan")
    (arrays / ".units-00000100.safetensors.4711").write_bytes(b"half")
    kept = arrays / "units-00000002.safetensors"
    before = kept.read_bytes()
    Monitor(toy.model, toy.optimizer, out=folder, probes=[], resume=4)
    assert sorted(path.name for path in arrays.iterdir()) == [f"units-{step:08d}.safetensors" for step in (0, 2, 4)]
    assert kept.read_bytes() == before


def test_every_array_of_a_resumed_run_can_be_read(toy: Toy, folder: Path) -> None:
    _train(toy, folder, 8)
    run = _train(toy, folder, 6, resume=3)
    named = [record for record in run.records if record.array is not None]
    assert {record.step for record in named} == {0, 2, 3, 4, 6, 8, 9}
    assert all(run.array(record) is not None for record in named)


def test_of_two_measurements_of_one_step_the_later_counts_everywhere(toy: Toy, folder: Path) -> None:
    _train(toy, folder, 4)
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[Watch(lambda moment: -1.0)], resume=4):
        pass
    run = Run.open(folder)
    assert [record.value for record in run.records if record.probe == "watch" and record.step == 4] == [4.0, -1.0]
    assert run.series("watch", "value").values.tolist() == [0.0, 2.0, -1.0]
    assert run.last("watch", "value").value == -1.0


def test_resuming_from_zero_keeps_the_first_state(toy: Toy, folder: Path) -> None:
    _train(toy, folder, 4)
    assert _train(toy, folder, 2, resume=0).series("watch", "value").steps.tolist() == [0, 2]


def test_resuming_past_the_end_drops_nothing(toy: Toy, folder: Path) -> None:
    first = _train(toy, folder, 4)
    run = _train(toy, folder, 1, resume=100)
    assert run.records[: len(first.records)] == first.records
    assert run.series("watch", "value").steps.tolist() == [0, 2, 4, 100, 101]


@pytest.mark.parametrize("step", [0, 6])
@pytest.mark.parametrize("empty", [True, False])
def test_resuming_where_nothing_is_is_refused_at_once(step: int, empty: bool, toy: Toy, folder: Path) -> None:
    """A mistyped folder must not pass for a run without its beginning."""
    if empty:
        folder.mkdir()
    with pytest.raises(DiagnosticsError, match=rf"there is no run to resume in .*; given: resume={step};.*resume=None"):
        Monitor(toy.model, toy.optimizer, out=folder, resume=step)
    assert list(folder.parent.rglob("*")) == ([folder] if empty else [])


def test_which_parameters_the_optimizer_holds_may_change_on_the_way(toy: Toy, folder: Path) -> None:
    _train(toy, folder, 4)
    head = torch.optim.SGD(toy.model[2].parameters(), lr=0.1)
    with Monitor(toy.model, head, toy.objective, out=folder, probes=[Watch()], resume=4) as monitor:
        head.step()
    assert monitor.step == 5


def test_each_block_says_how_it_ended_and_the_last_counts(toy: Toy, folder: Path) -> None:
    with suppress(ValueError), Monitor(toy.model, toy.optimizer, out=folder, probes=[]):
        toy.train(4)
        raise ValueError("stopped")
    assert Run.open(folder).last("monitor", "ended").note == "ValueError: stopped"
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[], resume=4):
        toy.train(2)
    assert Run.open(folder).last("monitor", "ended").note == "completed"
    assert Run.open(folder).series("monitor", "ended").steps.tolist() == [4, 6]


def test_a_run_of_another_model_is_refused_untouched(toy: Toy, folder: Path) -> None:
    _train(toy, folder, 4)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    wider = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    half = Toy().model.half()
    for other in (wider, half, nn.Linear(3, 2)):
        with pytest.raises(DiagnosticsError, match=r"of another model; given: .*; expected: .*; try: another"):
            Monitor(other, torch.optim.SGD(other.parameters(), lr=0.1), out=folder, resume=2)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_wrapper_does_not_make_another_model_of_it(toy: Toy, folder: Path) -> None:
    _train(toy, folder, 2)
    wrapped = nn.DataParallel(toy.model)
    objective = Objective(wrapped, nn.CrossEntropyLoss(), (toy.x, toy.y))
    Monitor(wrapped, toy.optimizer, objective, out=folder, resume=2)
    assert len(Run.open(folder).series("watch", "value")) == 2


def test_a_training_taken_up_again_measures_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """Model and optimizer come from a checkpoint; the run goes on as if nothing had happened."""

    straight, broken = Toy(torch.optim.Adam, lr=0.01), Toy(torch.optim.Adam, lr=0.01)
    with Monitor(straight.model, straight.optimizer, straight.objective, out=tmp_path / "a", every=2, budget=None):
        straight.train(8)
    with Monitor(broken.model, broken.optimizer, broken.objective, out=tmp_path / "b", every=2, budget=None):
        broken.train(4)
        torch.save([broken.model.state_dict(), broken.optimizer.state_dict()], tmp_path / "saved.pt")
        broken.train(3)
    weights, moments = torch.load(tmp_path / "saved.pt")
    fresh = Toy(torch.optim.Adam, lr=0.01)
    fresh.model.load_state_dict(weights)
    fresh.optimizer.load_state_dict(moments)
    with Monitor(fresh.model, fresh.optimizer, fresh.objective, out=tmp_path / "b", every=2, budget=None, resume=4):
        fresh.train(4)
    left, right = (Run.open(tmp_path / name) for name in "ab")
    for probe, name, layer in (
        ("sharpness", "loss", None),
        ("learning_rate", "relative_update", "0.weight"),
        ("units", "dormant", "1"),
    ):
        assert left.series(probe, name, layer).steps.tolist() == right.series(probe, name, layer).steps.tolist()
        assert left.series(probe, name, layer).values.tolist() == right.series(probe, name, layer).values.tolist()
    # The eigenvalue is the same within what both say of their error: one started warm, the other cold.
    one, other = (run.series("sharpness", "ratio") for run in (left, right))
    assert (abs(one.values - other.values) <= one.errors + other.errors).all()
