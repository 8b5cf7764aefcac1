"""Steps that were too long come with the number to lower the rate to, held against the edge that counted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from matplotlib.figure import Figure as Canvas
from runs import Key, run_of

from probes.run import Run
from reports.finding import Finding
from reports.stability import batch_sharpness, sharpness

ADAM = "adamw: (1+β1)(2−ηλ)/((1−β1)η)"
MOMENTUM = {"optimizer": {"class": "SGD", "groups": [{"lr": 2.0, "momentum": 0.9}]}}
STUCK = [2.3, 2.2, 1.9, 1.8, 1.9, 1.8, 2.0, 2.0]


def batches(
    ratios: list[float],
    losses: list[float],
    *,
    rule: str = "sgd: (2+2β)/η",
    header: Mapping[str, Any] | None = None,
    rates: list[float] | None = None,
    every: int = 10,
    error: float = 0.001,
) -> Run:
    quantities: dict[Key, list[float]] = {
        ("batch_sharpness", "ratio"): ratios,
        ("batch_sharpness", "value"): [ratio * 1.9 for ratio in ratios],
        ("batch_sharpness", "threshold"): [1.9] * len(ratios),
        ("sharpness", "loss"): losses,
    }
    if rates is not None:
        quantities["learning_rate", "lr", "w"] = rates
    run = run_of(quantities, header, error, every)
    return Run(run.header, [replace(one, note=rule) if one.name == "threshold" else one for one in run.records])


def verdict(run: Run) -> Finding:
    return sharpness.read(run).findings[0]


def test_a_stalled_run_is_told_how_far_to_lower_the_rate() -> None:
    ratios = [0.2, 8.0, 40.0, 0.9, 0.1, 0.1, 0.02, 0.02]
    finding = verdict(batches(ratios, STUCK, rule=ADAM, rates=[0.3] * 8))
    assert finding.level == "warn"
    assert (
        "batch sharpness stood at 40 times the edge at step 20, and at 0.020 ± 0.001 of it at step 70" in finding.claim
    )
    assert "from 2.3 to 2" in finding.claim
    assert "no recovery" in finding.meaning
    assert "at most η ≈ 0.0075," in finding.advice[0]
    fallen = verdict(batches(ratios, [*STUCK[:4], 1.2, 1.0, 0.8, 0.6], rule=ADAM, rates=[0.3] * 8))
    assert (fallen.level, fallen.advice) == ("ok", ())


def test_the_young_second_moment_of_an_adaptive_optimizer_is_no_long_step() -> None:
    """The same ratios at steps 0, 3, 6 ... and 0, 10, 20, ...; SGD has no such excuse."""
    ratios = [0.2, 8.0, 40.0, 0.9, 0.1, 0.1, 0.02, 0.02]
    levels = [
        verdict(batches(ratios, STUCK, rule=rule, every=every)).level
        for rule in (ADAM, "sgd: 2/η")
        for every in (3, 10)
    ]
    assert levels == ["ok", "warn", "warn", "warn"]


def test_a_ratio_above_the_edge_within_its_error_is_no_stall() -> None:
    ratios = [0.2, 0.8, 1.6, 0.6, 0.3, 0.3, 0.3, 0.3]
    levels = [verdict(batches(ratios, STUCK, rule=ADAM, error=error)).level for error in (0.01, 0.4)]
    assert levels == ["warn", "ok"]


THROWN = ([0.03, 0.6, 0.05, 0.05, 0.05, 0.05, 0.05], [2.3, 3.6, 2.4, 2.4, 2.4, 2.4, 2.4])


def test_with_momentum_the_lower_edge_is_named_drawn_and_reckoned_with() -> None:
    run = batches(*THROWN, header=MOMENTUM)
    finding = verdict(run)
    assert finding.level == "fail"
    assert "highest, 0.6, at step 10, 11 times the edge of small batches (0.053)" in finding.claim
    assert finding.threshold.startswith("0.053, the edge of small batches under momentum, (1−β)/(1+β): curvature 0.1;")
    assert "η ≈ 0.18," in finding.advice[0]
    assert "2604.14108" in finding.meaning
    assert "edge of small batches" in finding.advice[0]
    assert any("Start with a warm-up, or lengthen it" in advice for advice in finding.advice)

    def edges(run: Run) -> list[str]:
        (figure,) = batch_sharpness.read(run).figures
        figure.draw(canvas := Canvas())
        return [str(line.get_label()) for line in canvas.axes[0].get_lines()][1:]

    assert edges(run) == ["edge of stability", "edge of small\nbatches, 0.053"]
    assert edges(batches(*THROWN, rule="sgd: 2/η")) == ["edge of stability"]


def test_a_divergence_between_the_two_edges_of_momentum_is_put_down_to_neither_alone() -> None:
    gone = [2.3, 2.0, 1.8, math.nan]
    between = verdict(batches([0.1, 0.3, 0.3], gone, header=MOMENTUM))
    below = verdict(batches([0.01, 0.01, 0.01], gone, header=MOMENTUM))
    assert "may have" in between.meaning
    assert any("learning rate" in advice for advice in between.advice)
    assert any("data" in advice for advice in between.advice)
    assert not any("learning rate" in advice for advice in below.advice)


@pytest.mark.parametrize(
    ("header", "rates", "number"),
    [
        (None, [0.3, 0.2, 0.1, 0.1, 0.1, 0.1], "η ≈ 0.05,"),
        ({"optimizer": {"groups": [{"lr": 0.1}]}}, None, "η ≈ 0.05,"),
        (None, None, "to a third"),
        # The rate of the one check that matters was not taken, and the others differ.
        (None, [0.3, 0.2], "to a third"),
    ],
)
def test_the_number_needs_the_rate_of_that_step(
    header: Mapping[str, Any] | None, rates: list[float] | None, number: str
) -> None:
    ratios = [1.5, 1.7, 1.8, 1.8, 1.8, 2.0]
    finding = verdict(batches(ratios, [1.0] * 6, rule="sgd: 2/η", header=header, rates=rates))
    assert finding.level == "fail"
    assert number in finding.advice[0]


def test_the_rate_of_the_header_is_not_believed_where_thresholds_moved() -> None:
    run = batches([1.5, 1.7, 2.0], [1.0] * 3, rule="sgd: 2/η", header={"optimizer": {"groups": [{"lr": 0.1}]}})
    moved = [replace(one, value=one.step + 1.0) if one.name == "threshold" else one for one in run.records]
    assert "η ≈" in verdict(run).advice[0]
    assert "to a third" in verdict(Run(run.header, moved)).advice[0]


def test_the_ratio_and_the_curvature_have_two_names() -> None:
    run = batches([3.2], [2.3, math.nan], header=MOMENTUM)
    assert "batch sharpness over the edge was 3.2 at step 0" in verdict(run).claim
    (curvature,) = batch_sharpness.read(run).findings
    assert curvature.claim.startswith("Batch sharpness is 6.080")


def test_a_beginning_that_was_not_seen_is_said_to_be_so() -> None:
    unseen = "The first steps were not measured"

    def meaning(ratios: list[float]) -> str:
        return verdict(batches(ratios, [2.3, *([0.5] * (len(ratios) - 1))], rule=ADAM)).meaning

    assert unseen in meaning([*([math.nan] * 4), *([0.3] * 16)])
    assert unseen not in meaning([math.nan, *([0.3] * 19)])
    assert unseen not in meaning([0.3] * 20)
    assert unseen not in meaning([0.3])
    records = batches([0.3], [1.0], rule=ADAM).records
    checkpoint = Run({}, [replace(one, step=500) for one in records])
    assert unseen not in verdict(checkpoint).meaning
