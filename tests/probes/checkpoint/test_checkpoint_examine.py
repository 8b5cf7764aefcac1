"""Measuring a checkpoint: with a task it says what a live run would have said at that moment."""

from __future__ import annotations

import math
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diagnostics import DiagnosticsError, effective_learning_rates, sharpness, stability, unit_activity
from probes.checkpoint.examine import examine, stages
from tests.probes.toy import Toy

TASK = """
import torch
from tests.probes.toy import Toy

def build(checkpoint):
    toy = Toy()
    toy.model.load_state_dict(checkpoint["model"])
    return toy.objective

def bare(checkpoint):
    return build({"model": checkpoint})

def adam(checkpoint):
    toy = Toy(torch.optim.Adam, lr=0.02)
    toy.model.load_state_dict(checkpoint["model"])
    toy.optimizer.load_state_dict(checkpoint["optimizer"])
    return toy.objective, toy.optimizer

def broken_loss(checkpoint):
    from diagnostics import Objective
    toy = Toy()
    return Objective(toy.model, lambda outputs, targets: outputs.sum() * float("nan"), (toy.x, toy.y))

def raising_loss(checkpoint):
    from diagnostics import Objective
    from tests.probes.toy import no_objective_loss
    toy = Toy()
    return Objective.from_loss(toy.model, no_objective_loss, [toy.x])

def no_second_derivative(checkpoint):
    from diagnostics import Objective
    toy = Toy()
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()
        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("no derivative at all")
    return Objective(toy.model, lambda outputs, targets: Once.apply(outputs), (toy.x, toy.y))
"""


@pytest.fixture
def task(tmp_path: Path) -> str:
    (tmp_path / "task.py").write_text(dedent(TASK))
    return str(tmp_path / "task.py")


@pytest.fixture
def trained() -> Toy:
    toy = Toy(torch.optim.Adam, lr=0.02)
    toy.train(15)
    return toy


def _save(toy: Toy, path: Path, **more: Any) -> Path:
    torch.save({"model": toy.model.state_dict(), "optimizer": toy.optimizer.state_dict(), "step": 15} | more, path)
    return path


def test_without_a_task_the_tensors_are_surveyed(trained: Toy, tmp_path: Path) -> None:
    run = examine(_save(trained, tmp_path / "last.pt"))
    assert run.layers("weights", "norm") == list(trained.model.state_dict())
    for name, tensor in trained.model.state_dict().items():
        assert run.last("weights", "norm", name).value == pytest.approx(float(tensor.norm()))
        assert run.last("weights", "elements", name).value == tensor.numel()
    assert {record.probe for record in run.records} == {"weights"}
    assert {record.step for record in run.records} == {15}
    assert run.header["model"] == {
        "class": None,
        "parameters": 26,
        "shapes": {"0.weight": [4, 3], "0.bias": [4], "2.weight": [2, 4], "2.bias": [2]},
    }
    assert run.header["optimizer"]["groups"][0]["lr"] == 0.02
    assert run.path is None


def test_with_model_and_optimizer_everything_is_what_it_was_in_training(
    trained: Toy, task: str, tmp_path: Path
) -> None:
    run = examine(_save(trained, tmp_path / "last.pt"), task=f"{task}:adam")
    assert {record.status for record in run.records} == {"ok"}
    live = stability(trained.objective, trained.optimizer, tol=1e-6)
    assert run.last("sharpness", "ratio").value == pytest.approx(float(live.ratio), rel=1e-3)
    assert run.last("sharpness", "threshold").value == live.threshold
    plain, _ = sharpness(trained.objective, tol=1e-6)
    assert run.last("sharpness", "sharpness").value == pytest.approx(float(plain), rel=1e-3)
    assert run.last("sharpness", "loss").value == trained.objective.loss()
    for row in effective_learning_rates(trained.model, trained.optimizer, trained.objective).rows:
        assert run.last("learning_rate", "coordinate_rate", row.tensor).value == row.coordinate_rate.value
    [units] = unit_activity(trained.model, trained.objective).rows
    assert run.last("units", "dormant", "1").value == units.dormant
    assert (run.header["model"]["class"], run.header["optimizer"]["class"]) == ("Sequential", "Adam")
    assert run.header["objective"]["loss_terms"] == 12
    assert run.header["task"].endswith("task.py:adam")


def test_without_an_optimizer_what_needs_one_says_so(trained: Toy, task: str, tmp_path: Path) -> None:
    run = examine(_save(trained, tmp_path / "last.pt"), task=task)
    skipped = {(record.probe, record.name): record.note for record in run.records if record.status == "skipped"}
    assert skipped == dict.fromkeys(
        [("sharpness", "ratio"), ("learning_rate", "effective")], "the task gives no optimizer"
    )
    assert run.last("sharpness", "sharpness") is not None
    assert run.last("units", "dead", "1") is not None


def test_a_safetensors_file_is_handed_over_as_its_tensors(trained: Toy, task: str, tmp_path: Path) -> None:
    save_file(trained.model.state_dict(), tmp_path / "model.safetensors")
    run = examine(tmp_path / "model.safetensors", task=f"{task}:bare")
    assert run.last("sharpness", "loss").value == trained.objective.loss()
    assert {record.step for record in run.records} == {0}, "the file does not say"


def test_weights_that_are_nan_are_found_and_do_not_stop_the_rest(trained: Toy, task: str, tmp_path: Path) -> None:
    with torch.no_grad():
        trained.model[0].weight[0, 0] = math.nan
    run = examine(_save(trained, tmp_path / "last.pt"), task=f"{task}:adam")
    assert run.last("weights", "non_finite", "0.weight").value == 1
    assert math.isnan(run.series("sharpness", "loss").values[0])
    assert len(run.series("sharpness", "sharpness")) == 0, "no number is made up for a curvature that is none"
    [failed] = [record for record in run.records if record.status == "failed"]
    assert (failed.probe, failed.name) == ("sharpness", "measurement")
    assert "not finite" in failed.note
    assert run.last("units", "units", "1") is not None


def test_a_loss_that_is_nan_is_said_to_be(trained: Toy, task: str, tmp_path: Path) -> None:
    run = examine(_save(trained, tmp_path / "last.pt"), task=f"{task}:broken_loss")
    assert math.isnan(run.series("sharpness", "loss").values[0])
    assert len(run.series("sharpness", "sharpness")) == 0
    assert run.last("weights", "norm", "0.weight") is not None


def test_a_loss_that_raises_fails_each_probe_with_its_reason(trained: Toy, task: str, tmp_path: Path) -> None:
    run = examine(_save(trained, tmp_path / "last.pt"), task=f"{task}:raising_loss")
    failed = [(record.probe, record.note) for record in run.records if record.status == "failed"]
    assert [probe for probe, _ in failed] == ["sharpness", "units"], "rates have no optimizer here, and say that"
    assert {note for _, note in failed} == {"ZeroDivisionError: the loss divides by zero"}


def test_what_was_measured_before_a_failure_is_kept(trained: Toy, task: str, tmp_path: Path) -> None:
    run = examine(_save(trained, tmp_path / "last.pt"), task=f"{task}:no_second_derivative", only=["sharpness"])
    assert run.last("sharpness", "loss") is not None
    assert [record.name for record in run.records if record.status == "failed"] == ["measurement"]


@pytest.mark.parametrize("only", [["units"], ["sharpness", "units"], []])
def test_only_the_probes_asked_for_are_run(only: list[str], trained: Toy, task: str, tmp_path: Path) -> None:
    told: list[str] = []
    run = examine(_save(trained, tmp_path / "last.pt"), task=task, only=only, progress=told.append)
    assert {record.probe for record in run.records} == {"weights", *only}
    assert told == [
        "opening the file",
        "surveying tensors",
        "building the task",
        *(f"measuring {name}" for name in only),
    ]
    assert stages(task, only) == len(told)


def test_progress_is_told_as_often_as_was_said(trained: Toy, tmp_path: Path, task: str) -> None:
    path = _save(trained, tmp_path / "last.pt")
    for chosen in (None, task):
        told: list[str] = []
        examine(path, task=chosen, progress=told.append)
        assert len(told) == stages(chosen, None)


def test_a_task_that_fails_is_one_error(trained: Toy, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def build(checkpoint):\n    return checkpoint['nothing']\n")
    with pytest.raises(DiagnosticsError, match=r"KeyError: 'nothing' \(bad.py, line 2\)"):
        examine(_save(trained, tmp_path / "last.pt"), task=str(tmp_path / "bad.py"))


def test_examining_draws_no_random_numbers_and_is_repeatable(trained: Toy, task: str, tmp_path: Path) -> None:
    path = _save(trained, tmp_path / "last.pt")
    before = torch.get_rng_state()
    runs = [examine(path, task=f"{task}:adam") for _ in range(2)]
    # The build makes its model's first weights from the global generator; nothing else may draw from it.
    torch.set_rng_state(before)
    Toy()
    Toy()
    expected = torch.get_rng_state()
    torch.set_rng_state(before)
    examine(path, task=f"{task}:adam")
    examine(path, task=f"{task}:adam")
    assert torch.equal(torch.get_rng_state(), expected)
    values = [[(record.probe, record.name, record.layer, record.value) for record in run.records] for run in runs]
    assert values[0] == values[1]
