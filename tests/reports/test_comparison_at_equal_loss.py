"""Where two losses are equal: steps and values against the closed form of exponentials."""

from __future__ import annotations

import math

import numpy
import pytest
from runs import run_of

from probes.run import Run
from probes.run.reader import Series
from reports import Report
from reports.comparison.contender import contenders
from reports.comparison.matched_loss import MARGIN, common_level, first_below, matched, smoothed
from reports.comparison.quantities import compared

STEPS = numpy.arange(0, 1000, 10)


def series(values: numpy.ndarray, steps: numpy.ndarray = STEPS) -> Series:
    return Series(steps, values, numpy.full(len(steps), math.nan))


def test_exponential_losses_are_equal_where_the_closed_form_says() -> None:
    """L = e^(−t/τ) falls to ℓ at τ ln(1/ℓ), whatever the spacing of the checks."""
    coarse = numpy.arange(0, 1200, 37)
    slow, fast = series(numpy.exp(-STEPS / 400)), series(numpy.exp(-coarse / 100), coarse)
    level = common_level(slow, fast)
    assert not isinstance(level, str)
    assert level.loss == pytest.approx(math.exp(-990 / 400 * (1 - MARGIN)), rel=1e-12)
    assert level.steps == pytest.approx((400 * math.log(1 / level.loss), 100 * math.log(1 / level.loss)), rel=1e-12)
    assert level.apart == (5.0, 18.5)


def test_a_loss_below_zero_is_interpolated_along_a_line() -> None:
    assert first_below(series(1.0 - 0.01 * STEPS), -3.333)[0] == pytest.approx(433.3)


def test_a_single_dip_does_not_count_as_reaching_a_level() -> None:
    values = numpy.exp(-STEPS / 400)
    values[7] = 1e-6
    assert smoothed(series(values)).values.min() > 0.05
    assert first_below(smoothed(series(values)), 0.5)[0] == pytest.approx(400 * math.log(2), abs=5)


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (numpy.full(100, 2.0), numpy.exp(-STEPS / 100), "the losses have no level in common"),
        (1 + numpy.exp(-STEPS / 100), 0.5 * numpy.exp(-STEPS / 100), "the losses have no level in common"),
        (numpy.exp(-STEPS / 1e6), numpy.exp(-STEPS / 100), "hardly fallen"),
        (numpy.full(100, math.nan), numpy.exp(-STEPS / 100), "too few checks of the loss (0)"),
    ],
    ids=["never falls", "begins below", "hardly falls", "nan"],
)
def test_without_a_level_in_common_there_is_a_reason(one: numpy.ndarray, other: numpy.ndarray, reason: str) -> None:
    assert reason in str(common_level(series(one), series(other)))


def of_loss(scale: float, offset: float = 0.0) -> Run:
    """A ratio that is a function of the loss alone, and an offset."""
    loss = numpy.exp(-STEPS / scale)
    return run_of(
        {("sharpness", "loss"): loss.tolist(), ("sharpness", "ratio"): (offset + 1 / (1 + loss)).tolist()},
        error=None,
    )


def test_what_only_moves_with_the_loss_is_equal_there_and_different_at_equal_steps() -> None:
    runs = contenders([of_loss(400), of_loss(200)])
    (pair,) = matched(runs, compared([one.run for one in runs]))
    sooner, ratio = pair.differences
    assert sooner.verdict == "better"
    assert ratio.verdict == "unclear"
    assert ratio.before is not None
    assert ratio.value is not None
    assert pair.level is not None
    for found in (ratio.before, ratio.value):
        assert found.value == pytest.approx(1 / (1 + pair.level.loss), rel=2e-3)


def test_what_differs_there_too_is_told() -> None:
    report = Report.from_runs(of_loss(400), of_loss(200, offset=0.3))
    claim = next(one.claim for one in report.findings if one.id == "comparison/matched_loss")
    assert "they differ there in stability ratio" in claim
    assert "run 2 falls to a loss of" in claim


def test_runs_without_a_level_are_said_to_be_not_comparable() -> None:
    flat = run_of({("sharpness", "loss"): [2.0] * 100})
    finding = next(one for one in Report.from_runs(flat, of_loss(200)).findings if one.id == "comparison/matched_loss")
    assert finding.level == "unmeasured"
    assert "not comparable at equal loss" in finding.claim
