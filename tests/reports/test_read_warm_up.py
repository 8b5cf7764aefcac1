"""A warm-up that was too short is named, with by how much; a calm or lucky beginning is not."""

from __future__ import annotations

import math

import pytest
from runs import Key, run_of

from probes.run import Run
from reports.finding import Finding
from reports.stability import sharpness

CALM = [0.5] * 18


def reading(ratios: list[float], losses: list[float], error: float = 0.01) -> list[Finding]:
    run = run_of({("sharpness", "ratio"): ratios, ("sharpness", "loss"): losses}, error=error)
    return [finding for finding in sharpness.read(run).findings if finding.id == "sharpness/warm_up"]


def test_a_ratio_above_one_with_a_rising_loss_is_too_short_a_warm_up() -> None:
    (finding,) = reading([0.8, 2.5, *CALM], [2.3, 2.4, 6.0, *([1.0] * 17)])
    assert finding.level == "warn"
    assert "2.5 times too high" in finding.claim
    assert "at step 10" in finding.claim
    assert "40%" in finding.advice[0]
    assert "Start with a warm-up, or lengthen it" in finding.advice[0], "nothing shows that there was one"


def test_a_loss_that_is_no_number_has_risen() -> None:
    (finding,) = reading([2.5, *CALM], [2.3, math.nan, *([1.0] * 17)])
    assert "not a number" in finding.claim


@pytest.mark.parametrize(
    ("ratios", "losses"),
    [
        ([0.8, 0.9, *CALM], [2.3, 6.0, *([1.0] * 18)]),  # the loss rose, but not for want of stability
        ([0.8, 2.5, *CALM], [2.3, 2.2, *([1.0] * 18)]),  # an overshoot that did no harm
        # Measured in the demonstration: sharpened into the edge within a tenth of the run, and a little over it.
        ([0.59, 1.18, 1.33, *([1.05] * 17)], [0.55, 0.11, 0.13, *([0.1] * 17)]),
        ([*CALM[:10], 2.5, *CALM[:9]], [*([1.0] * 10), 6.0, *([1.0] * 9)]),  # late: no matter of the warm-up
        ([2.5], [2.3]),  # a single check has no beginning
        ([math.nan, math.nan], [math.nan, math.nan]),
        ([], []),
    ],
)
def test_anything_else_is_not(ratios: list[float], losses: list[float]) -> None:
    assert reading(ratios, losses) == []


def test_a_ratio_above_one_within_its_error_is_not() -> None:
    ratios, losses = [0.8, 1.6, *CALM], [2.3, 2.4, 6.0, *([1.0] * 17)]
    assert len(reading(ratios, losses, error=0.1)) == 1
    assert reading(ratios, losses, error=0.5) == []


def test_another_function_than_the_one_that_trains_tells_nothing() -> None:
    header = {"objective": {"mode": "eval", "batch_norm": 2}}
    quantities: dict[Key, list[float]] = {
        ("sharpness", "ratio"): [0.8, 2.5, *CALM],
        ("sharpness", "loss"): [2.3, 2.4, 6.0, *([1.0] * 17)],
    }
    run: Run = run_of(quantities, header)
    assert "sharpness/warm_up" not in {finding.id for finding in sharpness.read(run).findings}
