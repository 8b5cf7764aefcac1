"""Critical learning rates, the gradient among sharp directions, and the trace: sick, healthy, and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from matplotlib.figure import Figure as Canvas
from runs import Key, run_of

from probes.run import Record, Run
from reports.finding import Finding
from reports.stability import gradient_curvature

CRITICAL = ("gradient_curvature", "critical_lr")
LR = ("learning_rate", "lr", "w")


def critical(quantities: dict[Key, list[float]], header: Mapping[str, object] | None = None) -> Finding:
    findings = gradient_curvature.read(run_of(quantities, header)).findings
    return next(finding for finding in findings if finding.id == "gradient_curvature/critical_rate")


def test_a_rate_above_the_critical_one_is_reported_with_what_to_do() -> None:
    finding = critical({CRITICAL: [0.05] * 6, LR: [0.1] * 6})
    assert finding.level == "warn"
    assert "A step raises the loss" in finding.claim
    assert "2 times the critical one" in finding.claim
    assert "0.05" in finding.claim
    assert finding.advice


@pytest.mark.parametrize(
    ("rates", "lr"),
    [
        ([0.2] * 6, [0.1] * 6),
        ([0.095, 0.11, 0.09, 0.105, 0.1, 0.098], [0.1] * 6),  # at the edge it swings about the critical rate
        ([0.2, 0.2, 0.2, 0.05, 0.2, 0.2], [0.1] * 6),  # one odd check
        ([0.06], [0.1]),  # a single check, and not far above
    ],
)
def test_a_healthy_rate_is_not(rates: list[float], lr: list[float]) -> None:
    assert critical({CRITICAL: rates, LR: lr}).level == "ok"


def test_a_rate_above_the_critical_one_is_no_fault_while_the_loss_falls() -> None:
    """Momentum carries the noise of mini-batches: single steps lead astray, and many of them do not."""
    steady = {CRITICAL: [0.05] * 6, LR: [0.1] * 6}
    falling = critical({**steady, ("sharpness", "loss"): [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]})
    standing = critical({**steady, ("sharpness", "loss"): [1.0, 0.5, 0.5, 0.5, 0.5, 0.5]})
    assert (falling.level, standing.level) == ("ok", "warn")


def test_a_single_check_far_above_is_enough_and_a_schedule_that_ended_is_left_out() -> None:
    assert critical({CRITICAL: [0.02], LR: [0.1]}).level == "warn"
    ended = critical({CRITICAL: [0.05] * 8, LR: [0.1, 0.1, 0.1, 0.1, 1e-4, 1e-4, 1e-4, 1e-4]})
    assert ended.level == "warn", "the small rates at the end of a schedule make nothing good"


def test_the_rate_of_the_header_stands_in_and_without_any_there_is_no_verdict() -> None:
    header = {"optimizer": {"groups": [{"lr": 0.1}]}}
    assert critical({CRITICAL: [0.02] * 3}, header).level == "warn"
    alone = critical({CRITICAL: [0.02] * 3})
    assert (alone.level, "times" in alone.claim) == ("ok", False)


def uphill(steps: list[int]) -> list[Record]:
    note = "undetermined: the loss does not fall along the direction given: it rises at a learning rate of 1e-06"
    return [
        Record(step=step, time=0.0, probe=CRITICAL[0], name=CRITICAL[1], status="skipped", note=note) for step in steps
    ]


def test_steps_that_alternate_have_no_critical_rate_and_that_is_no_fault() -> None:
    """An old rate must not be told as if it were the present one."""
    measured = run_of({CRITICAL: [0.01, 0.01], LR: [0.1] * 10})
    (finding,) = gradient_curvature.read(Run({}, [*measured.records, *uphill(list(range(20, 100, 10)))])).findings
    assert finding.level == "ok"
    assert "raise the loss at any rate, at 5 of the last 5 checks" in finding.claim
    assert "0.01" not in finding.claim
    (alone,) = gradient_curvature.read(Run({}, uphill([10, 20]))).findings
    assert (alone.level, alone.evidence) == ("ok", ())


def test_some_checks_uphill_are_counted_beside_the_rate() -> None:
    measured = run_of({CRITICAL: [0.2, 0.2, 0.2], LR: [0.1] * 5})
    (finding,) = gradient_curvature.read(Run({}, [*measured.records, *uphill([30, 40])])).findings
    assert "0.5 times the critical one" in finding.claim
    assert "at 2 of the last 5 checks the loss rose at any rate" in finding.claim


def test_one_rate_among_checks_that_lead_uphill_is_no_alarm() -> None:
    measured = run_of({CRITICAL: [0.02], LR: [0.1] * 5})
    (finding,) = gradient_curvature.read(Run({}, [*measured.records, *uphill([10, 20, 30, 40])])).findings
    assert finding.level == "ok"


def test_the_claim_says_what_its_number_is() -> None:
    several = critical({CRITICAL: [0.2, 0.2, 0.1, 0.1, 0.4], LR: [0.1] * 5}).claim
    assert "0.5 times the critical one, the median of the last 5 checks (0.25 times at step 40" in several
    assert "where the critical one is 0.40 ± 0.01" in several
    assert "0.5 times the critical one at step 0 (0.20 ± 0.01)" in critical({CRITICAL: [0.2], LR: [0.1]}).claim


def test_a_share_that_is_not_resolved_is_called_so() -> None:
    run = run_of({("gradient_curvature", "subspace_share"): [0.7, 0.7]}, error=0.6)
    (finding,) = gradient_curvature.read(run).findings
    assert finding.level == "ok"
    assert "is not resolved: 70 ± 60 %" in finding.claim


def test_the_share_of_the_gradient_is_told_unless_the_spectrum_tells_it() -> None:
    share: dict[Key, list[float]] = {("gradient_curvature", "subspace_share"): [0.2, 0.9]}
    (finding,) = gradient_curvature.read(run_of(share)).findings
    assert (finding.id, finding.level) == ("gradient_curvature/subspace", "ok")
    assert "90 ± 1 %" in finding.claim
    assert "happens in the bulk" in finding.meaning
    assert gradient_curvature.read(run_of({**share, ("spectrum", "gradient_share"): [0.9]})).findings == ()


def test_evaluation_mode_of_a_batch_normalised_model_is_no_verdict() -> None:
    header = {"objective": {"mode": "eval", "batch_norm": 2}}
    (finding,) = gradient_curvature.read(run_of({CRITICAL: [0.02] * 6, LR: [0.1] * 6}, header)).findings
    assert finding.level == "unmeasured"


def test_a_probe_that_failed_says_why() -> None:
    failed = Record(step=0, time=0.0, probe="gradient_curvature", name="measurement", status="failed", note="no")
    assert gradient_curvature.read(Run({}, [failed])).findings[0].level == "unmeasured"
    assert gradient_curvature.read(Run({}, [])).findings == ()


def test_figures_are_drawn_and_hold_the_values() -> None:
    run = run_of(
        {
            CRITICAL: [0.2, 0.1, math.nan],
            LR: [0.1, 0.1, 0.1],
            ("gradient_curvature", "subspace_share"): [0.2, 0.9],
            ("gradient_curvature", "alignment"): [-0.1, 0.5],
            ("gradient_curvature", "trace_ratio"): [3.0, 2.0, -1.0],
            ("sharpness", "ratio"): [0.1, 0.2, 0.3],
        }
    )
    figures = {figure.id: figure for figure in gradient_curvature.read(run).figures}
    assert set(figures) == {"critical-rate", "gradient-alignment", "trace-bound"}
    assert figures["critical-rate"].table.rows[1] == (10, 0.1, 0.1)
    assert figures["trace-bound"].table.rows[0] == (0, 3.0, 0.1)
    for figure in figures.values():
        canvas = Canvas()
        figure.draw(canvas)
        assert canvas.axes


def test_the_trace_of_the_spectrum_is_held_against_the_threshold_of_its_step() -> None:
    quantities: dict[Key, list[float]] = {
        ("spectrum", "trace"): [40.0, 40.0],
        ("spectrum", "largest"): [10.0, 10.0],
        ("sharpness", "threshold"): [20.0, 40.0],
        ("sharpness", "curvature"): [10.0, 10.0],
        ("sharpness", "sharpness"): [10.0, 10.0],
    }
    (figure,) = gradient_curvature.read(run_of(quantities)).figures
    assert figure.table.rows == ((0, 2.0, 0.5), (10, 1.0, 0.25))
    preconditioned = {**quantities, ("sharpness", "curvature"): [900.0, 900.0]}
    assert gradient_curvature.read(run_of(preconditioned)).figures == (), "no threshold on plain curvature"
