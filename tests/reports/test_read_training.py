"""Readings of the run as a whole: loss, end, budget, failures."""

from __future__ import annotations

import pytest
from runs import run_of

import probes
from probes.run import Record, Run
from reports import training
from reports.finding import Finding


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


def held_back(costs: dict[str, float], trained: float, dear_checks: int = 2) -> Finding:
    """Sharpness was measured at the first state and the last, and waited in between; spectrum as often as said."""
    names = ["sharpness"] * 2 + ["spectrum"] * dear_checks
    steps = [0, 400, *range(0, 10 * dear_checks, 10)]
    measured = [Record(step, 0.0, name, "loss", value=1.0) for step, name in zip(steps, names, strict=True)]
    wait = Record(10, 0.0, "sharpness", "measurement", status="skipped", note="waits: more would exceed the budget")
    spent = [Record(400, 0.0, "monitor", "seconds", layer=name, value=value) for name, value in costs.items()]
    whole = Record(400, 0.0, "monitor", "training_seconds", value=trained)
    header = {"probes": [{"name": name} for name in costs], "settings": {"budget": 0.05}}
    run = Run(header, [*measured, wait, *spent, whole] if costs else [*measured, wait])
    [finding] = [one for one in training.read(run).findings if one.id == "training/budget"]
    return finding


def test_the_costliest_probe_is_named_with_what_makes_it_cheaper() -> None:
    short = held_back({"spectrum": 79.2, "sharpness": 0.4}, 4.3)
    assert "waited for the budget from step 10 on." in short.claim
    assert "costliest was spectrum, with 79.2 s in 2 measurements beside 4.3 s of training." in short.claim
    assert "first and last state alone" in short.advice[0]
    assert "Spectrum(steps=16, layers=False)" in short.advice[0]
    often = held_back({"spectrum": 79.2, "sharpness": 0.4}, 400.0, dear_checks=20)
    assert "Give spectrum a rarer schedule of its own" in often.advice[0]
    unknown = held_back({"learning_rate": 5.0, "sharpness": 9.0}, 40.0)
    assert "costliest was sharpness" in unknown.claim, "a probe without a measurement is not blamed"


@pytest.mark.parametrize(
    ("sharpness", "training_seconds", "advice"),
    [
        # Two took 0.4 s: ten more take 2 s, and 4.8 s as one of two probes are 12 % of 40 s.
        (0.4, 40.0, "Monitor(..., budget=0.15) has room for 10 more of each."),
        # More than all of training, and nothing to wait for.
        (0.4, 4.3, "Monitor(..., budget=None): 10 more of each take about 2 s."),
        # No budget that anyone would give.
        (40.0, 4.3, None),
        # There is room already.
        (0.4, 4000.0, None),
    ],
)
def test_a_larger_budget_is_advised_only_where_it_would_help(
    sharpness: float, training_seconds: float, advice: str | None
) -> None:
    finding = held_back({"spectrum": 79.2, "sharpness": sharpness}, training_seconds)
    assert [one for one in finding.advice if "budget=" in one] == ([] if advice is None else [advice])


def test_a_killed_run_has_no_costs_and_advises_none() -> None:
    finding = held_back({}, 0.0)
    assert "costliest" not in finding.claim
    assert finding.advice == ("Measure on fewer examples: Objective(..., limit=1).",)


def test_a_cheaper_setting_that_is_advised_is_one() -> None:
    for name, text in training.CHEAPER.items():
        probe = eval(text.replace("...", "batch_size=8"), dict(vars(probes)))
        assert probe.name == name
