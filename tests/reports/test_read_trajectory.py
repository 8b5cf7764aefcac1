"""Several checkpoints read as a path: a layer that never moves and a last step that undid the others are warned of,
a run that trains is not; and what orders the files is said.
"""

import os
import shutil

import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError
from reports import Report
from reports.document import Figure

TASK = """
import torch
from torch import nn
from diagnostics import Objective

def build(checkpoint):
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 2))
    model.load_state_dict(checkpoint["model"] if "model" in checkpoint else checkpoint)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator)
    return Objective(model, nn.MSELoss(), (x, x[:, :2].sin()))
"""


def _model():
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 2))


def _trained(folder, fault="", content=lambda model, step: {"model": model.state_dict(), "step": step}):
    """Six checkpoints of a short run."""
    torch.manual_seed(0)
    model, generator = _model(), torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator)
    trained = [tensor for name, tensor in model.named_parameters() if fault != "frozen" or not name.startswith("2.")]
    optimizer, paths, begun = torch.optim.SGD(trained, lr=0.1), [], {}
    for step in range(101):
        if step == 4:
            begun = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if step % 20 == 0:
            if fault == "undone" and step == 100:
                model.load_state_dict(begun)
            if fault == "too far" and step == 100:
                with torch.no_grad():
                    for tensor in model.parameters():
                        tensor.mul_(3.0)
            paths.append(folder / f"at-{step}.pt")
            torch.save(content(model, step), paths[-1])
        optimizer.zero_grad()
        (model(x) - x[:, :2].sin()).square().mean().backward()
        optimizer.step()
    return paths


@pytest.fixture
def task(tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    return str(tmp_path / "task.py")


def _findings(paths, **options):
    report = Report.from_checkpoints(paths, only=("trajectory",), **options)
    return report, {finding.id: finding for finding in report.findings}


def _note(report):
    return report.run.header["notes"][0]


def test_a_run_that_trains_has_nothing_to_warn_of(tmp_path, task):
    report, findings = _findings(_trained(tmp_path)[::-1], task=task)
    assert {finding.level for finding in findings.values()} == {"ok"}
    assert set(findings) == {f"trajectory/{name}" for name in ("unchanged", "turned_back", "loss", "barrier")}
    assert "ordered by the step that each checkpoint holds" in _note(report)
    assert report.run.series("trajectory", "loss").steps.tolist() == [0, 20, 40, 60, 80, 100]
    assert {figure.id for figure in report.document.figures} == {
        f"trajectory-{name}" for name in ("path", "steps", "layers", "spectra", "plane", "loss", "line")
    }


def test_a_layer_that_never_moves_is_named(tmp_path):
    _, findings = _findings(_trained(tmp_path, "frozen"))
    assert findings["trajectory/unchanged"].level == "warn"
    assert "2.weight" in findings["trajectory/unchanged"].claim
    assert "0.weight" not in findings["trajectory/unchanged"].claim
    assert findings["trajectory/turned_back"].level == "ok"


def test_a_layer_that_the_task_says_is_frozen_is_not_warned_of(tmp_path):
    frozen = TASK.replace("    generator", "    model[2].requires_grad_(False)\n    generator", 1)
    (tmp_path / "task.py").write_text(frozen)
    _, findings = _findings(_trained(tmp_path, "frozen"), task=str(tmp_path / "task.py"))
    assert findings["trajectory/unchanged"].level == "ok"


def test_a_last_step_that_undid_the_others_is_warned_of(tmp_path):
    _, findings = _findings(_trained(tmp_path, "undone"))
    assert findings["trajectory/turned_back"].level == "warn"
    assert "from 80 to 100" in findings["trajectory/turned_back"].claim
    assert findings["trajectory/unchanged"].level == "ok"


def test_an_earlier_checkpoint_that_is_better_is_named(tmp_path, task):
    _, findings = _findings(_trained(tmp_path, "too far"), task=task)
    assert findings["trajectory/loss"].level == "warn"
    assert "at 80 has a lower loss" in findings["trajectory/loss"].claim


def test_copies_of_one_checkpoint_are_no_training(tmp_path):
    first = _trained(tmp_path)[0]
    copies = [shutil.copy(first, tmp_path / f"copy{place}.pt") for place in range(3)]
    report, findings = _findings(copies)
    assert findings["trajectory/unchanged"].level == "warn"
    assert "bit for bit" in findings["trajectory/unchanged"].claim
    assert "number in each name" in _note(report)


def test_without_steps_names_order_them_and_without_numbers_times(tmp_path):
    paths = _trained(tmp_path, content=lambda model, step: model.state_dict())
    report, _ = _findings([paths[3], paths[0], paths[5]])
    assert "by the number in each name" in _note(report)
    assert report.run.series("trajectory", "displacement").steps.tolist() == [0, 60, 100]
    named = [shutil.copy(path, tmp_path / f"{word}.pt") for path, word in zip(paths, ("b", "c", "a"), strict=False)]
    for place, path in enumerate(named):
        os.utime(path, (1000 + place, 1000 + place))
    report, _ = _findings([tmp_path / f"{word}.pt" for word in "abc"])
    assert "by the times" in _note(report)
    assert report.run.header["last"].endswith("a.pt")
    assert report.run.series("trajectory", "displacement").steps.tolist() == [0, 1, 2]


def test_a_renamed_network_has_a_barrier_and_none_when_its_units_are_matched(tmp_path, task):
    torch.manual_seed(3)
    model = _model()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_()
    state = model.state_dict()
    order = torch.randperm(16)
    other = {**state, "0.weight": state["0.weight"][order], "0.bias": state["0.bias"][order]}
    other["2.weight"] = state["2.weight"][:, order]
    for step, content in enumerate((state, other)):
        torch.save({"model": content, "step": step}, tmp_path / f"{step}.pt")
    report, findings = _findings([tmp_path / "0.pt", tmp_path / "1.pt"], task=task)
    assert "stands a loss barrier" in findings["trajectory/barrier"].claim
    assert report.run.last("trajectory", "matched_barrier").value == pytest.approx(0.0, abs=1e-6)
    (line,) = [figure for figure in report.document.figures if figure.id == "trajectory-line"]
    assert line.table.columns == ("place on the line", "as they are", "units matched")


def test_a_task_with_other_data_for_each_checkpoint_gets_no_losses(tmp_path):
    (tmp_path / "task.py").write_text(TASK.replace("manual_seed(0)", "manual_seed(checkpoint['step'])"))
    _, findings = _findings(_trained(tmp_path), task=str(tmp_path / "task.py"))
    assert findings["trajectory/loss"].level == "unmeasured"
    assert "other batches for each checkpoint" in findings["trajectory/loss"].claim


def test_the_loss_is_drawn_on_the_plane_of_the_path(tmp_path, task):
    paths = _trained(tmp_path)
    report, _ = _findings(paths, task=task)
    (figure,) = [figure for figure in report.document.figures if figure.id == "trajectory-plane"]
    assert figure.table.columns == ("first direction", "second direction", "loss")
    assert len(figure.table.rows) == 121
    explained = [report.run.last("trajectory", f"explained_{name}").value for name in ("first", "second")]
    assert report.run.last("trajectory", "plane").value == pytest.approx(sum(explained), rel=1e-5)
    assert report.save(tmp_path / "report.html").exists()
    assert report.save(tmp_path / "report.pdf").exists()
    few, _ = _findings(paths[:2], task=task)
    assert "trajectory-plane" not in [figure.id for figure in few.document.figures]


def test_a_path_that_is_a_line_has_no_plane_and_says_so(tmp_path, task):
    state = _model().state_dict()
    for step in range(3):
        torch.save(
            {"model": {name: tensor * (1 + step) for name, tensor in state.items()}, "step": step},
            tmp_path / f"{step}.pt",
        )
    report, _ = _findings([tmp_path / f"{step}.pt" for step in range(3)], task=task)
    [record] = report.run.of("trajectory", "plane")
    assert record.status == "skipped"
    assert "straight line" in record.note


def test_the_last_checkpoint_is_examined_as_by_itself_and_everything_renders(tmp_path):
    report = Report.from_checkpoints(_trained(tmp_path))
    assert "weights/finite" in {finding.id for finding in report.findings}
    assert report.save(tmp_path / "report.html").stat().st_size < 2_000_000
    assert report.save(tmp_path / "report.pdf").exists()


def test_two_checkpoints_are_a_line_and_one_is_none(tmp_path):
    paths = _trained(tmp_path)
    report, findings = _findings(paths[:2])
    assert set(findings) == {"trajectory/unchanged"}
    assert all(isinstance(figure, Figure) for figure in report.document.figures)
    with pytest.raises(DiagnosticsError, match="no trajectory"):
        Report.from_checkpoints([paths[0], paths[0]])
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(DiagnosticsError, match="no weights in common"):
        Report.from_checkpoints([paths[0], tmp_path / "other.pt"])
