"""Learning-rate sweeps: a planted parabola's optimum and curvature come back, and transfer across planted widths."""

from __future__ import annotations

import math

import numpy
import pytest
from runs import run_of

from probes.run import Run
from reports import Report
from reports.finding import Finding

BEST, LOWEST, COST = -3.3, 0.2, 0.05
"""log₂ of the rate, loss there, and what a factor of two costs."""


def trained(log_rate: float, *, best: float = BEST, width: int = 0, noise: float = 0.0, **group: object) -> Run:
    """A run whose loss settles where a parabola in log₂ of its rate says."""
    end = LOWEST + COST * (log_rate - best) ** 2
    draw = numpy.random.default_rng(abs(int(100 * log_rate))).standard_normal(30)
    losses = end * (1 + noise * draw)
    losses[:5] = 2.0
    model = {"class": "MLP", "parameters": 10 * width, "shapes": {"w": [width, 10]}, "hash": str(width)}
    header = {"optimizer": {"class": "SGD", "groups": [{"lr": 2.0**log_rate, "momentum": 0.9, **group}]}}
    ratio = [0.5 * 2.0 ** (log_rate + 3)] * 30
    return run_of(
        {("sharpness", "loss"): losses.tolist(), ("sharpness", "ratio"): ratio},
        {**header, **({"model": model} if width else {})},
        error=None,
    )


def findings(*runs: Run) -> dict[str, Finding]:
    return {one.id: one for one in Report.from_runs(*runs).findings if one.id.startswith("comparison/")}


def test_the_planted_optimum_and_its_curvature_come_back() -> None:
    report = Report.from_runs(*(trained(log_rate) for log_rate in (-6, -4, -3, -2, -1)))
    finding = next(one for one in report.findings if one.id == "comparison/sweep/0")
    assert finding.value is not None
    assert finding.value.value == pytest.approx(LOWEST + COST * 0.3**2)
    assert finding.claim.startswith("Of 5 learning rates 0.125 has the lowest late loss")
    assert f"it is at {2.0**BEST:.3g}" in finding.claim
    assert "costs 0.05 in loss (25 %)" in finding.claim
    assert "0.0625 (0.2245), ×2 and 0.25 (0.2845), ×2" in finding.claim
    figure = next(one for one in report.document.figures if one.id == "sweep")
    assert [row[1] for row in figure.table.rows] == [2.0**log_rate for log_rate in (-6, -4, -3, -2, -1)]
    assert figure.table.rows[2][2] == pytest.approx(LOWEST + COST * 0.3**2)
    assert figure.table.rows[2][5] == pytest.approx(0.5)


def test_an_optimum_at_the_end_of_the_grid_is_open() -> None:
    finding = findings(*(trained(log_rate) for log_rate in (-9, -8, -6)))["comparison/sweep/0"]
    assert "at the end of the grid" in finding.claim
    assert finding.advice == ("Extend the grid: try 0.0312.",)


def test_an_optimum_within_noise_is_not_called_sharp() -> None:
    finding = findings(*(trained(log_rate, noise=0.6) for log_rate in (-4, -3, -2)))["comparison/sweep/0"]
    assert "not told apart" in finding.claim
    assert (
        "too flat for its errors" in finding.claim
        or "cannot be said" in finding.claim
        or "end of the grid" in finding.claim
    )


def test_where_no_parabola_fits_the_rise_on_each_side_is_told() -> None:
    runs = [
        run_of({("sharpness", "loss"): [2.0] * 5 + [end] * 25}, trained(rate).header, error=None)
        for rate, end in ((-4, 0.02), (-3, 0.01), (-2, 2.0))
    ]
    assert "by 0.01 below and 1.99 above" in findings(*runs)["comparison/sweep/0"].claim


def test_a_rate_at_which_the_loss_ran_away_has_no_point() -> None:
    gone = run_of({("sharpness", "loss"): [1.0] * 8 + [math.nan] * 22}, trained(1).header, error=None)
    finding = findings(*(trained(log_rate) for log_rate in (-4, -3, -2)), gone)["comparison/sweep/0"]
    assert "No late loss at 2." in finding.meaning
    assert finding.claim.startswith("Of 4 learning rates 0.125 has")


@pytest.mark.parametrize(
    "runs",
    [
        [trained(-4), trained(-3)],
        [trained(-4), trained(-3), trained(-3)],
        [trained(-4), trained(-3), trained(-2, momentum=0.5)],
        [trained(-4), trained(-3), Run({}, trained(-2).records)],
        [trained(log_rate, width=8 * place) for place, log_rate in enumerate((-4, -3, -2), start=1)],
    ],
    ids=["two", "two rates", "another momentum", "no header", "other widths"],
)
def test_what_the_headers_do_not_call_a_sweep_is_none(runs: list[Run]) -> None:
    assert not [id for id in findings(*runs) if "sweep" in id or "transfer" in id]


@pytest.mark.parametrize(("moved", "stays"), [(0.0, True), (-2.0, False)])
def test_whether_the_best_rate_transfers_across_width(moved: float, stays: bool) -> None:
    small = [trained(log_rate, width=8) for log_rate in (-5, -4, -3, -2)]
    large = [trained(log_rate, width=64, best=BEST + moved) for log_rate in (-7, -6, -5, -4, -3, -2)]
    finding = findings(*small, *large)["comparison/transfer/1"]
    assert finding.value is not None
    assert (finding.value.value, finding.value.error) == (moved, 1.0)
    assert ("transfers across width" in finding.claim) == stays


def test_transfer_is_open_where_an_optimum_is_at_the_end_of_the_grid() -> None:
    small = [trained(log_rate, width=8) for log_rate in (-5, -4, -3, -2)]
    large = [trained(log_rate, width=64, best=-9.0) for log_rate in (-5, -4, -3)]
    assert findings(*small, *large)["comparison/transfer/1"].level == "unmeasured"


def test_the_rate_that_a_schedule_starts_from_counts() -> None:
    runs = [trained(log_rate, initial_lr=2.0**log_rate, lr=0.0) for log_rate in (-4, -3, -2)]
    assert "comparison/sweep/0" in findings(*runs)


def test_runs_at_the_same_rate_count_as_repeats() -> None:
    runs = [trained(log_rate) for log_rate in (-4, -3, -2)]
    report = Report.from_runs(*runs, trained(-3, best=BEST + 1.0))
    figure = next(one for one in report.document.figures if one.id == "sweep")
    (twice,) = [row for row in figure.table.rows if "," in str(row[-1])]
    ends = [LOWEST + COST * 0.3**2, LOWEST + COST * 0.7**2]
    assert twice[2] == pytest.approx(numpy.mean(ends))
    assert twice[3] == pytest.approx(numpy.std(ends, ddof=1))
