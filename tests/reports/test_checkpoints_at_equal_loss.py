"""Checkpoints of several runs: one of each where the losses are equal, and a plain word where they never are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError
from probes.checkpoint.folder import checkpoints_in
from probes.checkpoint.matched import apart, nearest
from reports import Report
from reports.command_line import main

TASK = """
import torch
from torch import nn
from diagnostics import Objective

def build(checkpoint):
    model = nn.Linear(3, 1, bias=False)
    model.load_state_dict(checkpoint["model"])
    x = torch.eye(3).repeat(4, 1){noise}
    return Objective(model, nn.MSELoss(), (x, torch.zeros(12, 1)))
"""


@pytest.fixture
def task(tmp_path: Path) -> str:
    path = tmp_path / "task.py"
    path.write_text(TASK.format(noise=""), encoding="utf-8")
    return str(path)


def saved(folder: Path, losses: Sequence[float], turned: bool = False) -> Path:
    """Checkpoints of given losses: the loss is ‖w‖²/3, along one axis or along all."""
    folder.mkdir()
    direction = torch.ones(1, 3) / 3**0.5 if turned else torch.tensor([[1.0, 0.0, 0.0]])
    for step, loss in enumerate(losses):
        weight = direction * (3 * loss) ** 0.5
        torch.save({"model": {"weight": weight}, "step": 10 * step}, folder / f"step{10 * step}.pt")
    return folder


def brute(one: Sequence[float], other: Sequence[float]) -> tuple[int, int]:
    pairs = [(place, min(range(len(other)), key=lambda o: apart(one[place], other[o]))) for place in range(len(one))]
    equal = [pair for pair in pairs if apart(one[pair[0]], other[pair[1]]) < 0.05]
    if equal:
        return min(equal, key=lambda pair: one[pair[0]])
    return min(pairs, key=lambda pair: apart(one[pair[0]], other[pair[1]]))


def test_the_lowest_of_the_equal_and_else_the_nearest_are_chosen() -> None:
    assert nearest([[1.0, 0.5, 0.3], [0.9, 0.51, 0.1]]) == (1, 1)
    # The start is equal to the bit, and not what is asked for.
    assert nearest([[2.0, 1.0], [2.0, 1.04]]) == (1, 1)
    assert nearest([[1.0], [0.5], [0.2, 0.9]]) == (0, 0, 1)
    assert nearest([[1.0, float("nan")], [float("inf"), 0.5]]) == (0, 1)
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        one, other = (torch.rand(5, generator=generator).tolist() for _ in range(2))
        assert nearest([one, other]) == brute(one, other)


def test_what_differs_at_equal_loss_is_told_and_what_does_not_is_not(tmp_path: Path, task: str) -> None:
    one = saved(tmp_path / "one", [1.0, 0.5, 0.25])
    other = saved(tmp_path / "other", [1.0, 0.26, 0.249], turned=True)
    report = Report.at_matched_loss(
        {"one": checkpoints_in(one), "other": checkpoints_in(other)}, task=task, only=["weights", "sharpness"]
    )
    [sheet] = [sheet for sheet in report.document.sheets if sheet.id == "matched"]
    rows = {str(row[0]): row for row in sheet.table.rows}
    assert float(str(rows["loss"][1])) == pytest.approx(0.25)
    assert rows["steps to that loss"][1:3] == ("20 ± 5", "20 ± 5")
    # A quadratic loss has one curvature everywhere; the norm is that of the loss.
    assert rows["sharpness λmax"][4] in ("= equal", "? unclear")
    assert rows["norm of all weights"][4] == "? unclear"
    finding = next(finding for finding in report.findings if finding.id == "comparison/matched_loss")
    assert finding.level == "ok"
    assert "nothing else is told apart" in finding.claim
    assert len(report.runs) == 2


def test_a_difference_that_the_losses_do_not_explain_is_told(tmp_path: Path) -> None:
    """The loss does not see the last weight, so that it makes another norm at the same loss."""
    blind = tmp_path / "task.py"
    blind.write_text(TASK.format(noise=" * torch.tensor([1.0, 1.0, 0.0])"), encoding="utf-8")
    runs = {}
    for name, unseen in (("one", 0.0), ("near", 0.02), ("other", 1.0)):
        (tmp_path / name).mkdir()
        torch.save({"model": {"weight": torch.tensor([[0.7, 0.7, unseen]])}}, tmp_path / name / "step7.pt")
        runs[name] = checkpoints_in(tmp_path / name)
    report = Report.at_matched_loss(runs, task=str(blind), only=["weights"])
    [sheet] = [sheet for sheet in report.document.sheets if sheet.id == "matched"]
    [row] = [row for row in sheet.table.rows if row[0] == "norm of all weights"]
    assert [str(cell)[0] for cell in row[2:]] == ["≠", "≠"]
    finding = next(finding for finding in report.findings if finding.id == "comparison/matched_loss")
    assert "they differ there in norm of all weights" in finding.claim


def test_a_run_that_is_there_sooner_is_better_in_that(tmp_path: Path, task: str) -> None:
    one, other = saved(tmp_path / "one", [1.0, 0.8, 0.6, 0.25]), saved(tmp_path / "other", [1.0, 0.25], turned=True)
    report = Report.at_matched_loss({"one": checkpoints_in(one), "other": checkpoints_in(other)}, task=task)
    [sheet] = [sheet for sheet in report.document.sheets if sheet.id == "matched"]
    rows = {str(row[0]): row for row in sheet.table.rows}
    assert rows["steps to that loss"][4] == "✓ better"
    assert rows["norm of all weights"][4] in ("= equal", "? unclear")


def test_losses_that_never_meet_are_said_to_and_nothing_is_called_different(tmp_path: Path, task: str) -> None:
    one, other = saved(tmp_path / "one", [4.0, 2.0]), saved(tmp_path / "other", [1.0, 0.5], turned=True)
    report = Report.at_matched_loss({"one": checkpoints_in(one), "other": checkpoints_in(other)}, task=task)
    finding = next(finding for finding in report.findings if finding.id == "comparison/matched_loss")
    assert finding.level == "unmeasured"
    assert "no checkpoints of equal loss: one has a loss of 2" in finding.claim
    assert "50% apart" in finding.claim
    [sheet] = [sheet for sheet in report.document.sheets if sheet.id == "matched"]
    verdicts = {row[0]: row[4] for row in sheet.table.rows}
    assert "steps to that loss" not in verdicts
    assert verdicts["norm of all weights"] == "? unclear"


def _no_loss(folder: Path) -> None:
    for path in folder.glob("*/*.pt"):
        torch.save({"model": {"weight": torch.full((1, 3), float("nan"))}, "step": 0}, path)


def _drawn(folder: Path) -> None:
    # Another draw for each: what the checkpoint holds decides it.
    noise = " + torch.full((12, 3), float(checkpoint['step']))"
    (folder / "task.py").write_text(TASK.format(noise=noise), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [(_no_loss, "no checkpoint with a finite loss"), (_drawn, "other batches for other checkpoints")],
)
def test_what_cannot_be_matched_is_one_clear_error(
    change: Callable[[Path], None], words: str, tmp_path: Path, task: str
) -> None:
    runs = {name: checkpoints_in(saved(tmp_path / name, [1.0, 0.5])) for name in ("one", "other")}
    change(tmp_path)
    with pytest.raises(DiagnosticsError, match=words):
        Report.at_matched_loss(runs, task=task)


def test_one_run_or_no_task_is_one_clear_error(tmp_path: Path, task: str) -> None:
    files = checkpoints_in(saved(tmp_path / "one", [1.0]))
    for runs in ({"one": files}, {"one": files, "none": []}):
        with pytest.raises(DiagnosticsError, match="of several runs"):
            Report.at_matched_loss(runs, task=task)
    with pytest.raises(DiagnosticsError, match="have no loss"):
        Report.at_matched_loss({"one": files, "two": files})


def test_folders_of_checkpoints_are_runs_at_the_command_line(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(saved(tmp_path / name, [1.0, 0.5])) for name in ("one", "other")]
    assert (
        main([*folders, "--task", task, "--probes", "sharpness", "-o", str(tmp_path / "page.html"), "--json", "-"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["title"] == "one and other at equal loss"
    assert "checkpoints-loss" in [figure["id"] for figure in report["figures"]]
    assert main(folders) == 2
    assert "--task task.py" in " ".join(capsys.readouterr().err.split())
    assert main([*folders, "--task", task, "--budget", "5m"]) == 2


def test_a_folder_that_is_a_checkpoint_is_no_folder_of_them(tmp_path: Path) -> None:
    assert checkpoints_in(tmp_path / "gone") == []
    model = nn.Linear(2, 2).state_dict()
    for name in ("checkpoint-2", "checkpoint-10"):
        (tmp_path / name).mkdir()
        torch.save(model, tmp_path / name / "pytorch_model.bin")
    assert checkpoints_in(tmp_path / "checkpoint-2") == []
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-10", "checkpoint-2"]
