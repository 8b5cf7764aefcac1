"""A real Ctrl-C, and a budget that runs out: what was measured stands in a whole report, the rest says why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from reports.command_line import main

TASK = """
import time
import torch
from pathlib import Path
from torch import nn
from diagnostics import Objective

CALLS = Path(__file__).with_name("calls")

class Slow(nn.Module):
    def forward(self, x):
        with CALLS.open("a") as calls:
            calls.write(".")
        time.sleep({seconds} if CALLS.stat().st_size > {after} else 0)
        return x

def build(checkpoint):
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), Slow(), nn.Linear(8, 1))
    model.load_state_dict(checkpoint["model"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(32, 3)
    return Objective(model, nn.MSELoss(), (x, x.sum(1, keepdim=True))), optimizer
"""
# A process started in the background of a script inherits that Ctrl-C is ignored; at a terminal it is not.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from reports.command_line import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Identity(), nn.Linear(8, 1))
    torch.save({"model": model.state_dict(), "step": 7}, tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


def slow_task(folder: Path, seconds: float, after: int = 0) -> str:
    path = folder / "task.py"
    path.write_text(TASK.format(seconds=seconds, after=after), encoding="utf-8")
    return str(path)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_keeps_what_was_measured_and_still_writes_the_report(tmp_path: Path, checkpoint: Path) -> None:
    page, task = tmp_path / "report.json", slow_task(tmp_path, seconds=60.0, after=5)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(checkpoint), "--task", task, "-o", str(page), "--json", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    calls, patience = tmp_path / "calls", time.monotonic() + 120
    while not (calls.exists() and calls.stat().st_size > 5) and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted while measuring" in " ".join(err.split())
    report = json.loads(out)
    assert report == json.loads(page.read_text(encoding="utf-8"))
    levels = {finding["id"]: finding["level"] for finding in report["findings"]}
    assert levels["weights/finite"] == "ok"
    assert levels["units/activity"] == "unmeasured"
    assert any("interrupted while measuring" in fact["value"] for fact in report["facts"] if fact["name"] == "end")


def test_a_budget_that_runs_out_leaves_the_rest_with_that_reason(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGALRM)
    arguments = [str(checkpoint), "--task", slow_task(tmp_path, seconds=60.0), "--budget", "1.5s", "--json", "-"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    levels = {finding["id"]: finding["level"] for finding in report["findings"]}
    assert levels["weights/finite"] == "ok"
    assert levels["units/activity"] == levels["sharpness/regime"] == "unmeasured"
    regime = next(finding for finding in report["findings"] if finding["id"] == "sharpness/regime")
    assert regime["advice"] == ["Give it more time: a larger --budget, or none."]
    facts = {fact["name"]: fact["value"] for fact in report["facts"]}
    assert facts["budget"].startswith("1.5 s for measuring, of which ")
    reasons = [row[-1] for row in report["skipped"]["rows"]]
    assert any("the budget of 1.5 s was spent" in reason for reason in reasons)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_was_asked_for_and_not_reached_is_code_3(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = slow_task(tmp_path, seconds=60.0)
    assert main([str(checkpoint), "--task", task, "--budget", "0.5", "--probes", "sharpness,units"]) == 3
    assert "units: the budget of 0.5 s was spent" in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def path(tmp_path: Path, checkpoint: Path) -> list[str]:
    """Two checkpoints of one run."""
    torch.manual_seed(1)
    later = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Identity(), nn.Linear(8, 1)).state_dict()
    torch.save({"model": later, "step": 9}, tmp_path / "later.pt")
    return [str(checkpoint), str(tmp_path / "later.pt")]


def test_a_budget_bounds_a_path_too(tmp_path: Path, path: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    # The loss of the first checkpoint is had, that of the second is waited for.
    arguments = [*path, "--task", slow_task(tmp_path, seconds=60.0, after=1), "--budget", "2s", "--json", "-"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    reasons = {row[0]: row[-1] for row in report["skipped"]["rows"]}
    assert any("spent while measuring the losses" in reason for reason in reasons.values())
    assert any("sharpness" in what for what in reasons)
    facts = {fact["name"]: fact["value"] for fact in report["facts"]}
    assert facts["budget"].startswith("2 s for measuring, of which 2")
    levels = {finding["id"]: finding["level"] for finding in report["findings"]}
    assert levels["weights/finite"] == "ok"
    assert levels["sharpness/regime"] == "unmeasured"
    assert "trajectory-steps" in [figure["id"] for figure in report["figures"]], "the weights come first"


@pytest.mark.parametrize(("calls", "stage"), [(1, "measuring the losses"), (2, "measuring the barrier")])
def test_ctrl_c_on_a_path_keeps_what_was_read_along_it(
    calls: int, stage: str, tmp_path: Path, path: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    task = Path(slow_task(tmp_path, seconds=0.0))
    stop = f"        if CALLS.stat().st_size > {calls}:\n            raise KeyboardInterrupt\n        return x"
    task.write_text(task.read_text(encoding="utf-8").replace("        return x", stop), encoding="utf-8")
    assert main([*path, "--task", str(task), "--json", "-"]) == 130
    out, err = capsys.readouterr()
    assert f"interrupted while {stage}" in " ".join(err.split())
    report = json.loads(out)
    levels = {finding["id"]: finding["level"] for finding in report["findings"]}
    assert levels["weights/finite"] == "ok"
    assert levels["sharpness/regime"] == "unmeasured"
    assert ("trajectory-loss" in [figure["id"] for figure in report["figures"]]) == (calls == 2)
    assert any(f"interrupted while {stage}" in row[-1] for row in report["skipped"]["rows"])


def test_a_seed_repeats_what_a_task_draws(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = slow_task(tmp_path, seconds=0.0)

    def sharpness(seed: str) -> float:
        main([str(checkpoint), "--task", task, "--probes", "sharpness", "--seed", seed, "--json", "-"])
        findings = json.loads(capsys.readouterr().out)["findings"]
        return next(finding["value"] for finding in findings if finding["id"] == "sharpness/curvature")

    state = torch.get_rng_state()
    assert sharpness("1") == sharpness("1") != sharpness("2")
    assert torch.equal(torch.get_rng_state(), state), "nobody else's numbers are moved"


def test_a_seed_is_that_of_a_path_too(tmp_path: Path, path: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    task = slow_task(tmp_path, seconds=0.0)

    def losses(seed: str) -> list[object]:
        main([*path, "--task", task, "--probes", "trajectory", "--seed", seed, "--json", "-", "--fail-on", "never"])
        figures = json.loads(capsys.readouterr().out)["figures"]
        return [figure["table"]["rows"] for figure in figures if "loss" in str(figure["table"]["columns"])]

    assert losses("1") == losses("1") != losses("2")


@pytest.mark.parametrize("budget", ["0", "-1", "5 m", "m", "1e3", "nan", "inf", "5d", ""])
def test_no_length_of_time_is_a_usage_error(budget: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(checkpoint), f"--budget={budget}"]) == 2
    assert "no length of time" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", "9" * 5000, "4294967296"])
def test_no_seed_is_a_usage_error(seed: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(checkpoint), f"--seed={seed}"]) == 2
    assert "no seed" in capsys.readouterr().err
