"""Each regime of stability is told from its sick case, and the healthy ones raise nothing."""

from __future__ import annotations

import math

import pytest
from runs import run_of

from probes.run import Record, Run
from reports import sharpness
from reports.regime import judge


def chapter_of(ratios: list[float], losses: list[float] | None = None) -> tuple[str, str, str]:
    run = run_of({("sharpness", "ratio"): ratios, ("sharpness", "loss"): losses or [1.0] * len(ratios)})
    verdict = judge(run.series("sharpness", "ratio"), run.series("sharpness", "loss"))
    assert verdict is not None
    finding = sharpness.read(run).findings[0]
    assert finding.id == "sharpness/regime"
    return verdict.regime, finding.level, finding.claim


@pytest.mark.parametrize(
    ("regime", "level", "ratios", "losses"),
    [
        ("edge", "ok", [0.55, 0.7, 0.9, 1.02, 1.05, 1.03, 1.04, 1.02], None),
        ("edge", "ok", [1.04], None),
        # An overshoot on the way, without a spike in the loss, is no catapult.
        ("edge", "ok", [0.6, 0.9, 1.34, 1.1, 1.05, 1.06, 1.04, 1.03], [1.0, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15]),
        ("catapult", "warn", [1.5, 1.8, 1.1, 0.9, 0.9, 0.9, 0.9], [1.0, 3.0, 2.0, 0.5, 0.4, 0.3, 0.2]),
        ("beyond", "fail", [0.9, 1.5, 1.6, 1.7, 1.8, 1.9], [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]),
        ("beyond", "fail", [1.6], None),
        ("diverged", "fail", [0.9, 1.5, 2.0], [1.0, 5.0, 50.0]),
        ("diverged", "fail", [0.9, 1.5, 2.0], [1.0, 5.0, math.nan]),
        ("sharpening", "ok", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], None),
        ("stable", "ok", [0.1, 0.11, 0.1, 0.1], None),
        # Sharpness that rose and fell again (cross-entropy, late) is not sharpening.
        ("stable", "ok", [0.1, 0.3, 0.6, 0.5, 0.3, 0.2, 0.2, 0.2], None),
        ("stable", "ok", [0.0], None),
    ],
)
def test_the_regime_is_told(regime: str, level: str, ratios: list[float], losses: list[float] | None) -> None:
    told, its_level, claim = chapter_of(ratios, losses)
    assert (told, its_level) == (regime, level)
    assert f"at step {10 * (len(ratios) - 1)}" in claim


def test_a_claim_carries_its_error() -> None:
    assert "1.04 ± 0.01" in chapter_of([0.5, 1.04])[2]


def test_nothing_measured_is_unmeasured_and_says_why() -> None:
    record = Record(step=0, time=0.0, probe="sharpness", name="measurement", status="failed", note="RuntimeError: no")
    (finding,) = sharpness.read(Run({}, [record])).findings
    assert (finding.level, finding.value) == ("unmeasured", None)
    assert "RuntimeError: no" in finding.claim


def test_a_loss_that_is_nan_from_the_start_is_a_failure_not_a_gap() -> None:
    run = run_of({("sharpness", "loss"): [math.nan]})
    assert sharpness.read(run).findings[0].level == "fail"


def test_ratios_that_are_not_finite_do_not_decide() -> None:
    regime, level, _ = chapter_of([0.3, math.nan, 0.3])
    assert (regime, level) == ("stable", "ok")


def test_figures_need_two_points_and_hold_the_values() -> None:
    one = run_of({("sharpness", "ratio"): [0.5], ("sharpness", "sharpness"): [2.0]})
    assert sharpness.read(one).figures == ()
    two = run_of({("sharpness", "ratio"): [0.5, 0.6], ("sharpness", "sharpness"): [2.0, 3.0]})
    figures = {figure.id: figure for figure in sharpness.read(two).figures}
    assert figures["sharpness-ratio"].table.rows == ((0, 0.5, None), (10, 0.6, None))
    cited = {name for finding in sharpness.read(two).findings for name in finding.evidence}
    assert cited <= figures.keys()
