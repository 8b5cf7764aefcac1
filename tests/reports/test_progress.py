"""A bar for long work, on a terminal; silence for short work."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

PROGRAM = """
import time
from reports import progress
progress.PATIENCE = 0.2
with progress.progress(4, "working") as bar:
    bar.stage("the first stage")
    bar.stage("a long stage")
    time.sleep({seconds})
"""


def _on_a_terminal(seconds: float, program: str = PROGRAM) -> str:
    """What a terminal of 80 columns is shown on stderr."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    done = subprocess.Popen([sys.executable, "-c", program.format(seconds=seconds)], stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    assert done.wait() == 0
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_long_work_shows_what_is_done_and_the_time_left_also_within_one_stage() -> None:
    shown = _on_a_terminal(1.0)
    assert "a long stage" in shown
    assert " 25%" in shown
    assert "left" in shown
    assert max(len(line) for line in re.split(r"[\r\n]+", shown)) <= 80


def test_a_stage_that_takes_most_of_the_time_has_most_of_the_bar() -> None:
    program = PROGRAM.replace("4,", '{{"the first stage": 1, "a long stage": 9}},').replace(
        "    time.sleep", "    bar.part(0.5)\n    time.sleep"
    )
    assert " 55%" in _on_a_terminal(1.0, program)


def test_short_work_shows_nothing() -> None:
    assert _on_a_terminal(0.0).strip() == ""


def test_a_log_file_gets_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(seconds=0.6)], capture_output=True, text=True, check=True
    )
    assert done.stderr == "working ...\n"
    assert done.stdout == ""
