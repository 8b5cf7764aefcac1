"""Steps and weights in natural units, and the distance from where training began."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure as Canvas
from runs import Key, run_of

from reports.finding import Finding
from reports.learning_rate import chapter as learning_rate

HEADER = {"model": {"shapes": {"a.weight": [64, 32], "b.weight": [64, 32], "c.weight": [64, 3, 3, 3], "gain": [64]}}}


def named(quantities: dict[Key, list[float]], id: str) -> Finding | None:
    findings = learning_rate.read(run_of(quantities, HEADER)).findings
    return next((one for one in findings if one.id == f"learning_rate/{id}"), None)


def steps(a: float, b: float, gain: float = 1e-3) -> dict[Key, list[float]]:
    sizes = {"a.weight": a, "b.weight": b, "gain": gain}
    return {("learning_rate", "update_norm_ratio", name): [size, size] for name, size in sizes.items()}


@pytest.mark.parametrize(
    ("a", "b", "level"),
    [(1e-2, 1e-3, "ok"), (1e-2, 5e-5, "warn"), (1.5, 0.5, "warn"), (1e-2, 0.0, "ok"), (1e-2, float("nan"), "ok")],
)
def test_steps_too_large_or_too_unequal_are_reported(a: float, b: float, level: str) -> None:
    finding = named(steps(a, b), "spectral_condition")
    assert finding is not None
    assert finding.level == level
    assert "a.weight" in finding.claim
    assert bool(finding.advice) == (level == "warn")


def test_a_gain_is_no_matrix_and_the_end_of_a_schedule_no_state() -> None:
    finding = named(steps(1e-2, 1e-3, gain=9.0), "spectral_condition")
    assert finding is not None
    assert finding.level == "ok"
    ended: dict[Key, list[float]] = {("learning_rate", "update_norm_ratio", "a.weight"): [1e-2, 1e-2, 1e-9]}
    schedule: dict[Key, list[float]] = {**ended, ("learning_rate", "lr", "a.weight"): [0.1, 0.1, 1e-7]}
    finding = named(schedule, "spectral_condition")
    assert finding is not None
    assert "step 10 was 0.01" in finding.claim


def test_weights_are_named_and_drawn_below() -> None:
    quantities = {**steps(1e-2, 1e-3), ("learning_rate", "operator_norm_ratio", "a.weight"): [1.0, 1.2]}
    finding = named(quantities, "spectral_condition")
    assert finding is not None
    assert "a.weight, 1.2 units" in finding.meaning
    figure = next(
        one for one in learning_rate.read(run_of(quantities, HEADER)).figures if one.id == "spectral-condition"
    )
    canvas = Canvas()
    figure.draw(canvas)
    assert len(canvas.axes) == 2


def test_the_distance_is_one_line_with_the_rank_of_the_change() -> None:
    def distances(rank: float) -> Finding | None:
        return named(
            {
                ("learning_rate", "distance", "a.weight"): [0.0, 0.5],
                ("learning_rate", "distance", "c.weight"): [0.0, 0.7],
                ("learning_rate", "drift_stable_rank", "a.weight"): [rank, rank],
                ("learning_rate", "drift_stable_rank", "c.weight"): [rank, rank],
            },
            "distance",
        )

    low, full = distances(2.0), distances(20.0)
    assert low is not None
    assert full is not None
    assert low.level == full.level == "ok"
    assert "0.6 of their initial norm" in low.claim
    assert "c.weight 0.7" in low.claim
    assert "stable rank 2 of 29.5, so it is low-rank" in low.claim
    assert "low-rank" not in full.claim


def test_weights_that_have_hardly_moved_are_called_lazy() -> None:
    finding = named({("learning_rate", "distance", "a.weight"): [0.0, 1e-3]}, "distance")
    assert finding is not None
    assert "lazy" in finding.meaning
