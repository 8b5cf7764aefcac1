"""Completion scripts know every command and every option, and bash completes with them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from reports.arguments import SHELLS, main_parser
from reports.command_line import main

TRY = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); COMPREPLY=()
_diagnose
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_knows_every_command_and_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for action in main_parser()._actions:
        for name in action.option_strings:
            assert (f"-l {name[2:]}" if shell == "fish" and name.startswith("--") else name.lstrip("-")) in script
    for word in ("demo", "explain", "doctor", "completion", "units/dead", "gradient_curvature"):
        assert word in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["diagnose", "de"], ["demo"]),
        (["diagnose", "run", "--fail-on", ""], ["warn", "fail", "never"]),
        (["diagnose", "run", "--probes", "sh"], ["sharpness", "sharpening"]),
        (["diagnose", "explain", "units/de"], ["units/dead", "units/dead_at_start"]),
        (["diagnose", "doctor", "--"], ["--help", "--json"]),
        (["diagnose", "run", "--task", "a ta"], ["a task.py"]),
        (["diagnose", "a t"], ["a task.py"]),
    ],
)
def test_bash_offers(words: list[str], offered: list[str], tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out, encoding="utf-8")
    (tmp_path / "a task.py").touch()
    done = subprocess.run(
        ["bash", "--norc", "-c", TRY, "bash", str(tmp_path / "script"), *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.stdout.splitlines() == offered, done.stderr


def test_an_unknown_shell_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "csh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err
