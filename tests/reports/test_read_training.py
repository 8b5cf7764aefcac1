"""Readings of the run as a whole: loss, end, budget, failures."""

from __future__ import annotations

import pytest
from runs import run_of

from probes.run import Record, Run
from reports import training


def found(run: Run) -> dict[str, str]:
    return {finding.id: finding.level for finding in training.read(run).findings}


@pytest.mark.parametrize(
    ("losses", "level", "words"),
    [
        ([2.3, 1.0, 0.5, 0.2], "ok", "progress"),
        ([2.302, 2.302, 2.302, 2.302, 2.302, 2.302, 2.301], "warn", "ln(classes)"),
        ([2.302, 2.302], "ok", "ln(classes)"),
        ([2.3, 2.0, 2.6], "warn", "higher loss"),
    ],
)
def test_the_loss_is_judged(losses: list[float], level: str, words: str) -> None:
    """Stuck at chance is named once there were steps enough to move."""
    (finding,) = training.read(run_of({("sharpness", "loss"): losses})).findings
    assert finding.level == level
    assert words in finding.meaning


def test_a_loop_that_was_cut_short_is_named_and_one_that_ended_is_not() -> None:
    def ended(note: str) -> Run:
        return Run({}, [Record(step=7, time=0.0, probe="monitor", name="ended", value=7.0, note=note)])

    assert found(ended("completed")) == {}
    assert found(ended("ValueError: bad batch")) == {"training/ended": "warn"}
    assert "ValueError: bad batch, at step 7" in training.read(ended("ValueError: bad batch")).findings[0].claim


@pytest.mark.parametrize(("measured", "told"), [(2, True), (12, False)])
def test_a_run_that_was_hardly_measured_says_so(measured: int, told: bool) -> None:
    run = run_of({("sharpness", "ratio"): [0.5] * measured})
    wait = Record(step=10, time=0.0, probe="sharpness", name="measurement", status="skipped", note="waits: budget")
    assert ("training/budget" in found(Run({}, [*run.records, wait]))) is told


def test_failed_measurements_are_counted() -> None:
    failed = [
        Record(step=step, time=0.0, probe="units", name="measurement", status="failed", note="RuntimeError: no.")
        for step in (0, 1)
    ]
    (finding,) = training.read(Run({}, failed)).findings
    assert (finding.level, finding.claim) == (
        "unmeasured",
        "2 measurements failed (units); the last: RuntimeError: no.",
    )


def test_what_the_loop_logged_is_shown() -> None:
    run = run_of({("loop", "loss"): [2.0, 1.0], ("loop", "lr"): [0.1, 0.05], ("loop", "once"): [1.0]})
    (figure,) = training.read(run).figures
    assert figure.table.columns == ("step", "loss", "lr")
    assert figure.table.rows[1] == (10, 1.0, 0.05)
