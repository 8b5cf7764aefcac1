"""The command line as a person meets it: one clear message, the right exit code, never a traceback."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from runs import run_of
from torch import nn

from diagnostics import Objective
from probes import Monitor
from probes.run.writer import RunWriter
from reports.command_line import main

TASK = """
import torch
from torch import nn
from diagnostics import Objective

def build(checkpoint):
    model = nn.Sequential(nn.Linear(3, 8), nn.{activation}(), nn.Linear(8, 1))
    model.load_state_dict(checkpoint["model"])
    optimizer = torch.optim.SGD(model.parameters(), lr={lr})
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 3, generator=generator)
    return Objective(model, nn.MSELoss(), (x, x.sum(1, keepdim=True))), optimizer
"""


class Payload:
    """A pickle that would run code."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, (f"open({str(self.target)!r}, 'w').close()",))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": model.state_dict(), "step": 7}, path)
    return path


def task(folder: Path, activation: str = "Tanh", lr: float = 0.1) -> str:
    path = folder / "task.py"
    path.write_text(TASK.format(activation=activation, lr=lr), encoding="utf-8")
    return str(path)


def bad_files(folder: Path, checkpoint: Path) -> dict[str, Path]:
    files = {
        name: folder / name
        for name in ("nonsense.bin", "empty.pt", "truncated.pt", "evil.pt", "evil-zip.pt", "gone.pt")
    }
    files["nonsense.bin"].write_bytes(bytes(range(256)) * 4)
    files["empty.pt"].touch()
    files["truncated.pt"].write_bytes(checkpoint.read_bytes()[:-200])
    files["evil.pt"].write_bytes(pickle.dumps(Payload(folder / "ran")))
    torch.save({"model": Payload(folder / "ran")}, files["evil-zip.pt"])
    return files


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nonsense.bin", 2, "not a checkpoint"),
        ("empty.pt", 2, "empty"),
        ("truncated.pt", 2, "truncated.pt"),
        ("gone.pt", 2, "does not exist"),
        ("evil.pt", 4, "--trust"),
        ("evil-zip.pt", 4, "--trust"),
    ],
)
def test_a_bad_file_is_one_message_and_a_code(
    name: str, code: int, words: str, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bad_files(tmp_path, checkpoint)[name]
    assert main([str(path)]) == code
    out, err = capsys.readouterr()
    assert words in " ".join(err.split())
    assert err.startswith("diagnose: ")
    assert out == ""
    assert "Traceback" not in err
    # A path is never broken, so that it can be copied; all else fits a terminal.
    assert all(len(line.replace(str(path), "path")) <= 80 for line in err.splitlines())
    assert not (tmp_path / "ran").exists()


def test_weights_with_nan_are_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nan.pt"
    torch.save({"a.weight": torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]])}, path)
    assert main([str(path)]) == 1
    assert "2 of 4 numbers are NaN or infinite" in " ".join(capsys.readouterr().out.split())
    assert main([str(path), "--fail-on", "never"]) == 0


def test_bytes_only_says_what_a_task_would_add(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(checkpoint)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "All 41 numbers in 4 tensors are finite" in out
    assert "--task" in out


def test_a_task_gives_curvature_rates_and_units(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(checkpoint), "--task", task(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in ("stability ratio", "at step 7", "Sharpness", "Units are at work: of 8"):
        assert words in out


def test_steps_too_long_fail_and_the_ratio_scales_with_the_rate(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ratio(lr: float) -> tuple[int, float]:
        code = main([str(checkpoint), "--task", task(tmp_path, lr=lr), "--json", "-"])
        findings = json.loads(capsys.readouterr().out)["findings"]
        return code, next(finding["value"] for finding in findings if finding["id"] == "sharpness/regime")

    (calm, small), (wild, large) = ratio(0.1), ratio(100.0)
    assert (calm, wild) == (0, 1)
    assert large == pytest.approx(1000 * small, rel=1e-2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def build(checkpoint):\n    return checkpoint['nothing']\n", "KeyError: 'nothing' (task.py, line 2)"),
        ("def build(checkpoint):\n    return 3\n", "returned something else"),
        ("build = 3\n", "has no function 'build'"),
        ("def build(:\n", "SyntaxError"),
        ("import nowhere_to_be_found\n", "nowhere_to_be_found"),
    ],
)
def test_a_bad_task_is_one_message(
    text: str, words: str, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "task.py"
    path.write_text(text, encoding="utf-8")
    assert main([str(checkpoint), "--task", str(path)]) == 2
    err = capsys.readouterr().err
    assert words in " ".join(err.split())
    assert "Traceback" not in err


def test_a_measure_that_was_asked_for_and_failed_is_code_3(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(checkpoint), "--task", task(tmp_path, activation="Identity"), "--probes", "units"]) == 3
    assert "units" in capsys.readouterr().err
    assert main([str(checkpoint), "--probes", "sharpness"]) == 3


def test_json_on_stdout_is_json_and_nothing_else(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(checkpoint), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["schema_version"] == 1


def test_a_run_folder_is_reported_into_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of({("sharpness", "ratio"): [0.5, 0.6], ("sharpness", "loss"): [1.0, 0.5]})
    writer = RunWriter(tmp_path / "run", {"schema_version": 1}, None)
    writer.append(run.records)
    writer.close()
    files = [tmp_path / name for name in ("a.html", "b.pdf", "c.json")]
    assert main([str(tmp_path / "run"), "-o", str(files[0]), "--pdf", str(files[1]), "--json", str(files[2])]) == 0
    assert all(file.stat().st_size > 1000 for file in files)
    assert files[1].read_bytes().startswith(b"%PDF")
    assert "stability ratio 0.60 ± 0.01" in " ".join(capsys.readouterr().out.split())
    assert main([str(tmp_path / "run"), "--fail-on", "warn"]) == 0
    assert main([str(tmp_path / "run"), "--task", "task.py"]) == 2
    assert main([str(tmp_path)]) == 2
    assert "one of the runs inside" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "arguments", [[], ["--nonsense"], ["x.pt", "--probes", "everything"], ["x.pt", "--fail-on", "maybe"], ["demo", "x"]]
)
def test_usage_errors_are_code_2_and_point_to_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "--help" in capsys.readouterr().err


def test_help_and_a_mistyped_path_do_not_wait_for_torch() -> None:
    program = (
        "import sys; from reports.command_line import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    for argument, code in (("--help", 0), ("no-such-file.pt", 2)):
        done = subprocess.run([sys.executable, "-c", program, argument], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr


def test_an_interrupt_is_code_130(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "task.py"
    path.write_text("def build(checkpoint):\n    raise KeyboardInterrupt\n", encoding="utf-8")
    assert main([str(checkpoint), "--task", str(path)]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_memory_that_runs_out_is_one_message(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def greedy(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("reports.diagnosing.diagnose", greedy)
    assert main([str(checkpoint)]) == 3
    assert capsys.readouterr().err.startswith("diagnose: memory ran out")


def test_a_run_that_is_still_being_written_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, optimizer, out=tmp_path / "run") as monitor:
        monitor.log(loss=1.0)
        assert main([str(tmp_path / "run")]) == 0
    assert "no objective was given" in " ".join(capsys.readouterr().out.split())


HOSTILE = "<img src=x onerror=alert(1)>'\"&"


def test_hostile_names_are_shown_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A layer's name, a file's name and the command of the run, through every format."""
    monkeypatch.setattr(sys, "argv", ["train.py", HOSTILE])
    model = nn.ModuleDict({HOSTILE.replace(".", ""): nn.Linear(2, 1)})
    folder = tmp_path / f"run {HOSTILE}"
    with Monitor(model, torch.optim.SGD(model.parameters(), lr=0.1), out=folder) as monitor:
        monitor.log(**{HOSTILE: 1.0})
    path = tmp_path / f"{HOSTILE}.pt"
    torch.save({HOSTILE: torch.tensor([[float("nan"), 1.0]])}, path)
    for place, name in ((folder, "run"), (path, "checkpoint")):
        files = {ending: tmp_path / f"{name}{ending}" for ending in (".html", ".md", ".xml", ".json")}
        outputs = ["-o", str(files[".html"]), "--markdown", str(files[".md"]), "--junit", str(files[".xml"])]
        main([str(place), *outputs, "--json", str(files[".json"])])
        page = files[".html"].read_text(encoding="utf-8")
        assert "&lt;img src=x" in page
        assert "<img" not in page
        assert "<img" not in files[".md"].read_text(encoding="utf-8").replace("\\<img", "")
        assert ElementTree.parse(files[".xml"]).getroot().tag == "testsuites"
        assert HOSTILE in json.loads(files[".json"].read_text(encoding="utf-8"))["title"]
    assert "train.py &#39;&lt;img" in (tmp_path / "run.html").read_text(encoding="utf-8").replace("<wbr>", "")


def test_a_name_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "\x1b[31mred\x07.pt"
    path.write_bytes(b"no checkpoint at all")
    assert main([str(path)]) == 2
    assert main([str(path) + "gone"]) == 2
    assert not {"\x1b", "\x07"} & set(capsys.readouterr().err)


def test_several_runs_are_compared_and_several_checkpoints_are_a_path(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, rate in enumerate((0.02, 0.1)):
        model, data = nn.Linear(3, 1), (torch.randn(20, 3), torch.randn(20, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        objective = Objective(model, nn.MSELoss(), data)
        with Monitor(model, optimizer, objective, out=tmp_path / f"run{place}", every=5, budget=None) as monitor:
            for _ in range(10):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(data[0]), data[1])
                loss.backward()
                optimizer.step()
                monitor.log(loss=loss.item())
        torch.save({"model": model.state_dict(), "step": 10 * place}, tmp_path / f"step{place}.pt")
    runs, files = ([str(tmp_path / name) for name in names] for names in (("run0", "run1"), ("step0.pt", "step1.pt")))
    assert main([*runs, "--fail-on", "never", "--json", str(tmp_path / "both.json")]) == 0
    found = json.loads((tmp_path / "both.json").read_text())
    assert {"run0", "run1"} <= set(str(found).replace("/", " ").replace("'", " ").split())
    assert main([*files, "--fail-on", "never", "--probes", "trajectory", "--json", str(tmp_path / "path.json")]) == 0
    found = json.loads((tmp_path / "path.json").read_text())
    assert any(finding["id"].startswith("trajectory/") for finding in found["findings"])
    capsys.readouterr()
    for given, words in (
        ([runs[0], files[0]], "not compared with each other"),
        ([*runs, "--task", "task.py"], "--task goes with a checkpoint"),
        ([*runs, "--text", "corpus.txt"], "--text goes with a checkpoint"),
        ([files[0], "--probes", "trajectory"], "one checkpoint is no path"),
        ([runs[0], str(tmp_path / "gone")], "gone does not exist"),
    ):
        assert main(given) == 2
        assert words in " ".join(capsys.readouterr().err.split())


def test_stdout_belongs_to_one_format(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(checkpoint), "--json", "-", "--markdown", "-"]) == 2
    assert capsys.readouterr().out == ""
    assert main([str(checkpoint), "--markdown", "-"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("## ✓ OK: ")
    assert out.endswith("\n")
    assert "wrote" not in err


def test_a_budget_does_not_go_with_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunWriter(tmp_path / "run", {"schema_version": 1}, None).close()
    assert main([str(tmp_path / "run"), "--budget", "5m"]) == 2
    assert "Monitor(..., budget=0.05)" in " ".join(capsys.readouterr().err.split())


def test_a_text_goes_with_a_folder_of_hugging_face_and_no_task(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text("some text", encoding="utf-8")
    for arguments, words in (
        ([checkpoint, "--text", text], "a text needs a folder of Hugging Face"),
        ([checkpoint, "--text", tmp_path / "gone.txt"], "cannot be read"),
        ([checkpoint, "--text", text, "--task", task(tmp_path)], "give one"),
    ):
        assert main([str(argument) for argument in arguments]) == 2
        assert words in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_asks_for_its_own_code_is_code_4(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, text = tmp_path / "model", tmp_path / "corpus.txt"
    folder.mkdir()
    checkpoint.rename(folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "theirs.Model"}}', encoding="utf-8")
    text.write_text("some text", encoding="utf-8")
    assert main([str(folder), "--text", str(text), "--trust"]) == 4
    assert "auto_map: theirs.Model" in " ".join(capsys.readouterr().err.split())
    # Without a text nothing of it is needed.
    assert main([str(folder)]) == 0
