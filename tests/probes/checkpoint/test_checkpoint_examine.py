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
    assert {record.status for record in run.records if record.probe != "weights"} == {"ok"}
    live = stability(trained.objective, trained.optimizer, tol=1e-6)
    assert run.last("sharpness", "ratio").value == pytest.approx(float(live.ratio), rel=1e-3)
    assert run.last("sharpness", "threshold").value == live.threshold
    plain = sharpness(trained.objective, tol=1e-6).estimate()
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
    silent = [record for record in run.records if record.status == "skipped" and record.probe != "weights"]
    skipped = {(record.probe, record.name): record.note for record in silent}
    assert skipped == dict.fromkeys([("sharpness", "ratio"), ("learning_rate", "effective")], "no optimizer was given")
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
    failed = [record for record in run.records if record.status == "failed"]
    assert [(record.probe, record.name) for record in failed] == [("sharpness", "measurement")]
    assert all("not finite" in record.note for record in failed)
    [rates] = [record for record in run.records if record.status == "skipped" and record.probe == "learning_rate"]
    assert rates.note.startswith("the loss is not finite")
    [units] = [record for record in run.records if record.status == "skipped" and record.probe == "units"]
    assert units.note.startswith("the pre-activations at '1' are not finite; given: 12 of 48 values")
    assert run.last("weights", "norm", "2.weight") is not None


def test_an_optimizer_state_that_is_not_finite_is_found_and_its_worst_tensor_named(
    trained: Toy, tmp_path: Path
) -> None:
    state = trained.optimizer.state
    state[trained.model[0].bias]["exp_avg"][0] = math.inf
    state[trained.model[2].weight]["exp_avg_sq"][:, :3] = math.nan
    run = examine(_save(trained, tmp_path / "last.pt"))
    [record] = [record for record in run.records if record.name == "optimizer_non_finite"]
    assert (record.probe, record.layer, record.value, record.status) == ("weights", None, 7, "ok")
    assert record.note == "12 tensors of the optimizer's state; worst: exp_avg_sq of parameter 2, 6 of 8 values"


def test_a_healthy_optimizer_state_counts_none_and_no_optimizer_has_no_count(trained: Toy, tmp_path: Path) -> None:
    record = examine(_save(trained, tmp_path / "last.pt")).last("weights", "optimizer_non_finite")
    assert (record.value, record.note) == (0, "12 tensors of the optimizer's state")
    bare = tmp_path / "bare.pt"
    torch.save(trained.model.state_dict(), bare)
    assert examine(bare).last("weights", "optimizer_non_finite") is None
    stateless = Toy()
    record = examine(_save(stateless, tmp_path / "sgd.pt")).last("weights", "optimizer_non_finite")
    assert (record.value, record.note) == (0, "0 tensors of the optimizer's state")


def test_buffers_are_not_parameters_and_the_step_is_only_what_the_file_says(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    torch.save({"model": model.state_dict(), "step": 7}, tmp_path / "counted.pt")
    header = examine(tmp_path / "bare.pt").header
    assert header["step"] is None
    assert header["model"]["parameters"] == 3 * 4 + 4 + 4 + 4
    assert list(header["model"]["shapes"]) == list(model.state_dict())
    assert examine(tmp_path / "counted.pt").header["step"] == 7


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
    assert list(stages(task, only)) == told


def test_progress_is_told_as_often_as_was_said(trained: Toy, tmp_path: Path, task: str) -> None:
    path = _save(trained, tmp_path / "last.pt")
    for chosen in (None, task):
        told: list[str] = []
        examine(path, task=chosen, progress=told.append)
        assert told == list(stages(chosen, None))


def test_a_task_that_fails_is_one_error(trained: Toy, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def build(checkpoint):\n    return checkpoint['nothing']\n")
    with pytest.raises(DiagnosticsError, match=r"KeyError: 'nothing' \(bad.py, line 2\)"):
        examine(_save(trained, tmp_path / "last.pt"), task=str(tmp_path / "bad.py"))


def test_examining_draws_no_random_numbers_and_is_repeatable(trained: Toy, task: str, tmp_path: Path) -> None:
    path = _save(trained, tmp_path / "last.pt")
    before = torch.get_rng_state()
    runs = [examine(path, task=f"{task}:adam") for _ in range(2)]
    # The build makes its model's first weights from the global generator, which is put back.
    assert torch.equal(torch.get_rng_state(), before)
    values = [[(record.probe, record.name, record.layer, record.value) for record in run.records] for run in runs]
    assert values[0] == values[1]
