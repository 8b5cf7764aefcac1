"""Gradients that outgrow their second moments are an alarm when they stay, or come before a spike."""

from __future__ import annotations

import math

import pytest
from matplotlib.figure import Figure as Canvas
from runs import Key, run_of

from probes.run.reader import Series
from reports.finding import Finding
from reports.learning_rate import chapter as learning_rate
from reports.learning_rate.moments import spike_steps

HEADER = {"model": {"shapes": {"a.weight": [4, 4], "b.weight": [4, 4], "a.bias": [4]}}}
CALM = [1.0] * 20
FALLING = [2.0 * 0.9**step for step in range(20)]


def reading(a: list[float], losses: list[float], tensor: str = "a.weight") -> tuple[list[Finding], int]:
    quantities: dict[Key, list[float]] = {
        ("learning_rate", "gradient_over_moment", tensor): a,
        ("learning_rate", "gradient_over_moment", "b.weight"): CALM[: len(a)],
        ("sharpness", "loss"): losses,
    }
    chapter = learning_rate.read(run_of(quantities, HEADER))
    found = [one for one in chapter.findings if one.id == "learning_rate/outgrown_moments"]
    for figure in chapter.figures:
        figure.draw(Canvas())
    return found, len(chapter.figures)


def test_a_rise_before_a_spike_is_the_alarm() -> None:
    losses = [*FALLING[:11], 5.0, *FALLING[12:]]
    (finding,), figures = reading([*CALM[:10], 6.0, *CALM[11:]], losses)
    assert finding.level == "warn"
    assert "at step 100, and the loss spiked by step 110" in finding.claim
    assert "a.weight" in finding.claim
    assert "b.weight" not in finding.claim
    assert "β2" in finding.advice[0]
    assert figures == 1


def test_a_state_late_in_the_run_is_the_alarm_without_a_spike() -> None:
    (finding,), _ = reading([*CALM[:16], 3.0, 1.0, 3.5, 1.0], FALLING)
    assert "2 of the last checks, 3.5 at most" in finding.claim


@pytest.mark.parametrize(
    ("a", "losses"),
    [
        (CALM, FALLING),
        ([*CALM[:18], 3.0, 1.0], FALLING),  # one rare batch
        ([6.0, 6.0, *CALM[2:]], FALLING),  # at the start, and nothing came of it
        (CALM, [*FALLING[:10], 9.0, *FALLING[11:]]),  # a spike for another reason
        ([*CALM[:14], 6.0, *CALM[15:]], [*FALLING[:10], 9.0, *FALLING[11:]]),  # after the spike
        ([math.nan] * 20, FALLING),
        ([5.0], [1.0]),
        ([], []),
    ],
)
def test_calm_training_raises_none(a: list[float], losses: list[float]) -> None:
    assert reading(a, losses)[0] == []


def test_biases_of_a_few_numbers_are_left_out() -> None:
    assert reading([9.0] * 20, FALLING, tensor="a.bias")[0] == []


def test_a_spike_is_the_first_check_above_the_lowest_or_no_number() -> None:
    run = run_of({("sharpness", "loss"): [1.0, 0.5, 2.0, 0.4, math.nan]})
    assert spike_steps(run.series("sharpness", "loss")) == [(10, 20), (30, 40)]
    assert spike_steps(Series(*(one[:0] for one in (run.series("sharpness", "loss").steps,) * 3))) == []
