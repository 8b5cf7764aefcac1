"""Readings of learning rates: sick cases are named, healthy ones raise nothing."""

from __future__ import annotations

import math

import pytest
from matplotlib.figure import Figure as Canvas
from runs import run_of

from probes.run import Record, Run
from reports.finding import Finding
from reports.learning_rate import chapter as learning_rate
from reports.learning_rate.tensor_curves import MOST_CURVES

HEADER = {"model": {"shapes": {"a.weight": [4, 4], "b.weight": [4, 4], "a.bias": [4]}}}
UPDATE = ("learning_rate", "relative_update")


def levels(run: Run) -> dict[str, str]:
    return {finding.id: finding.level for finding in learning_rate.read(run).findings}


def test_updates_of_a_usual_size_are_fine_and_biases_do_not_count() -> None:
    run = run_of({(*UPDATE, "a.weight"): [1e-3, 1e-3], (*UPDATE, "a.bias"): [0.9, 0.9]}, HEADER)
    assert levels(run) == {"learning_rate/update_size": "ok"}


def test_updates_too_large_or_too_small_are_reported() -> None:
    large = run_of({(*UPDATE, "a.weight"): [1e-3, 1e-3], (*UPDATE, "b.weight"): [1e-3, 0.4]}, HEADER)
    small = run_of({(*UPDATE, "a.weight"): [1e-3, 1e-8], (*UPDATE, "b.weight"): [1e-3, 1e-8]}, HEADER)
    assert levels(large) == levels(small) == {"learning_rate/update_size": "warn"}
    assert "b.weight by 0.4" in learning_rate.read(large).findings[0].claim


def test_a_tensor_that_never_moves_is_named_and_one_that_paused_is_not() -> None:
    stuck = run_of({(*UPDATE, "a.weight"): [0.0, 0.0, 0.0], (*UPDATE, "b.weight"): [1e-3, 1e-3, 1e-3]}, HEADER)
    paused = run_of({(*UPDATE, "a.weight"): [0.0, 1e-3, 1e-3], (*UPDATE, "b.weight"): [1e-3, 1e-3, 1e-3]}, HEADER)
    findings = {finding.id: finding for finding in learning_rate.read(stuck).findings}
    assert findings["learning_rate/not_moving"].level == "warn"
    assert "a.weight" in findings["learning_rate/not_moving"].claim
    assert "b.weight" not in findings["learning_rate/not_moving"].claim
    assert "learning_rate/not_moving" not in levels(paused)


def test_rate_lost_to_growing_norms_is_told_apart_from_the_schedule() -> None:
    def run(effective: list[float], nominal: list[float]) -> Run:
        return run_of(
            {
                ("learning_rate", "effective", "a.weight"): effective,
                ("learning_rate", "lr", "a.weight"): nominal,
                ("learning_rate", "lr", "b.weight"): nominal,
            },
            HEADER,
        )

    grown = run([1.0, 0.5, 0.2], [0.1, 0.1, 0.1])
    scheduled = run([1.0, 0.5, 0.2], [0.1, 0.05, 0.02])
    assert levels(grown)["learning_rate/effective"] == "warn"
    assert levels(scheduled)["learning_rate/effective"] == "ok"
    assert "20% of its scheduled rate." in learning_rate.read(grown).findings[0].claim


def test_a_schedule_that_passes_through_zero_decides_nothing_wrong() -> None:
    run = run_of(
        {
            ("learning_rate", "effective", "a.weight"): [0.0, 1.0, 1.0],
            ("learning_rate", "lr", "a.weight"): [0.0, 0.1, 0.1],
        },
        HEADER,
    )
    assert levels(run)["learning_rate/effective"] == "ok"


def test_epsilon_that_dominates_is_reported() -> None:
    quantity = ("learning_rate", "epsilon_share")
    sick = run_of({(*quantity, "a.weight"): [0.1, 0.9], (*quantity, "b.weight"): [0.0, 0.0]}, HEADER)
    healthy = run_of({(*quantity, "a.weight"): [0.1, 0.1]}, HEADER)
    assert levels(sick) == {"learning_rate/epsilon": "warn"}
    assert "learning_rate/epsilon" not in levels(healthy)


def test_no_record_at_all_says_nothing_and_a_failed_probe_is_unmeasured() -> None:
    assert learning_rate.read(Run({}, [])).findings == ()
    note = "DiagnosticsError: no"
    failed = Record(step=0, time=0.0, probe="learning_rate", name="measurement", status="failed", note=note)
    assert levels(Run({}, [failed])) == {"learning_rate/rates": "unmeasured"}


def test_many_tensors_make_a_figure_that_can_be_read() -> None:
    run = run_of({(*UPDATE, f"layers.{index}.weight"): [1e-3, 1e-3] for index in range(60)})
    (figure,) = learning_rate.read(run).figures
    assert len(figure.table.columns) == 1 + MOST_CURVES
    assert {"layers.0.weight", "layers.59.weight"} <= set(figure.table.columns)


def test_small_steps_at_the_end_of_a_schedule_are_no_alarm_and_without_one_they_are() -> None:
    updates = {(*UPDATE, name): [1e-3, 1e-3, 1e-8] for name in ("a.weight", "b.weight")}
    ended = run_of({**updates, ("learning_rate", "lr", "a.weight"): [0.1, 0.1, 1e-6]}, HEADER)
    stuck = run_of({**updates, ("learning_rate", "lr", "a.weight"): [0.1, 0.1, 0.1]}, HEADER)
    assert levels(ended)["learning_rate/update_size"] == "ok"
    assert "Step 10 " in learning_rate.read(ended).findings[0].claim
    assert levels(stuck)["learning_rate/update_size"] == "warn"


def test_what_the_optimizer_does_not_hold_is_told_apart_from_what_gets_no_gradient() -> None:
    quantities = {(*UPDATE, "a.weight"): [0.0, 0.0], (*UPDATE, "b.weight"): [0.0, 0.0]}
    header = {"model": {**HEADER["model"], "not_in_optimizer": ["a.weight"]}}
    findings = {finding.id: finding.claim for finding in learning_rate.read(run_of(quantities, header)).findings}
    assert "a.weight" in findings["learning_rate/not_in_optimizer"]
    assert "a.weight" not in findings["learning_rate/not_moving"]
    assert "b.weight" in findings["learning_rate/not_moving"]


def test_a_tensor_that_passed_the_test_of_invariance_once_is_not_called_invariant() -> None:
    rates = {("learning_rate", "lr", "a.weight"): [0.1, 0.1, 0.1, 0.1]}
    once = run_of({**rates, ("learning_rate", "effective", "a.weight"): [1.0]}, HEADER)
    always = run_of({**rates, ("learning_rate", "effective", "a.weight"): [1.0, 1.0, 1.0, 1.0]}, HEADER)
    assert learning_rate.read(once).findings[0].claim.startswith("No tensor is scale-invariant")
    assert learning_rate.read(always).findings[0].claim.startswith("1 of 1 tensor is scale-invariant")


def test_invariance_is_not_judged_where_batch_normalisation_was_switched_off() -> None:
    header = {**HEADER, "objective": {"mode": "eval", "batch_norm": 2}}
    run = run_of({("learning_rate", "lr", "a.weight"): [0.1, 0.1]}, header)
    assert levels(run) == {"learning_rate/effective": "unmeasured"}


def test_rows_that_are_invariant_each_by_itself_lose_rate_too_and_are_drawn_beside_the_schedule() -> None:
    run = run_of(
        {
            ("learning_rate", "row_effective", "a.weight"): [0.0, 1.0, 0.3],
            ("learning_rate", "invariant_rows", "a.weight"): [1.0, 1.0, 0.9],
            ("learning_rate", "lr", "a.weight"): [0.0, 0.1, 0.1],
            ("learning_rate", "row_effective", "b.weight"): [0.0, 1.0, 0.1],
            ("learning_rate", "invariant_rows", "b.weight"): [0.1, 0.1, 0.1],
            ("learning_rate", "lr", "b.weight"): [0.0, 0.1, 0.1],
        },
        HEADER,
    )
    finding = learning_rate.read(run).findings[0]
    assert (finding.id, finding.level) == ("learning_rate/effective", "warn")
    assert "(all row by row)" in finding.claim
    assert "30% of its scheduled rate" in finding.claim
    (figure,) = learning_rate.read(run).figures
    canvas = Canvas()
    figure.draw(canvas)
    labels = [line.get_label() for line in canvas.axes[1].get_lines()]
    assert labels == ["a.weight", "as written"]
    assert figure.table.rows[-1] == (20, 0.3, 1.0, 0.3)


NEW = (
    "rotation",
    "rotation_predicted",
    "update_norm_ratio",
    "operator_norm_ratio",
    "update_stable_rank",
    "drift_stable_rank",
    "distance",
    "trust_ratio",
    "gradient_over_moment",
    "sign_agreement",
    "timescale",
    "row_effective",
    "invariant_rows",
    "effective",
    "lr",
)


@pytest.mark.parametrize(
    "values",
    [[], [math.nan], [math.nan, math.inf], [0.0], [0.0, 0.0], [-1.0, -2.0], [1e30, 1e-30], [1.0, math.nan, 2.0]],
)
def test_strange_numbers_break_nothing(values: list[float]) -> None:
    for names in (["w"], [f"layers.{index}.weight" for index in range(300)]):
        run = run_of({("learning_rate", quantity, name): values for quantity in NEW for name in names}, error=None)
        chapter = learning_rate.read(run)
        for figure in chapter.figures if len(names) == 1 else ():
            figure.draw(Canvas())
        cited = {name for finding in chapter.findings for name in finding.evidence}
        assert cited <= {figure.id for figure in chapter.figures}


def test_a_tensor_that_a_second_optimizer_trains_is_not_said_to_stand_still() -> None:
    """Its step lies outside the one that is watched, or inside where both are taken in one."""
    header = {"model": {**HEADER["model"], "not_in_optimizer": ["a.weight", "b.weight"]}}
    still = {(*UPDATE, "a.weight"): [0.0, 0.0], (*UPDATE, "b.weight"): [0.0, 0.0]}

    def read(quantities: dict[tuple[str, ...], list[float]]) -> dict[str, Finding]:
        run = run_of(quantities, header)  # type: ignore[arg-type]
        return {finding.id: finding for finding in learning_rate.read(run).findings}

    outside = read(still | {("monitor", "moved", "a.weight"): [1.0], ("monitor", "moved", "b.weight"): [0.0]})
    inside = read(still | {(*UPDATE, "a.weight"): [0.0, 1e-3]})
    for found in (outside, inside):
        assert found["learning_rate/other_optimizer"].level == "ok"
        assert "1 trainable tensor moved" in found["learning_rate/other_optimizer"].claim
        assert "a.weight" not in found["learning_rate/not_in_optimizer"].claim
        assert "b.weight" in found["learning_rate/not_in_optimizer"].claim
    assert "they stay as they were initialised" in outside["learning_rate/not_in_optimizer"].meaning
    assert outside["learning_rate/not_in_optimizer"].meaning.startswith("Gradients are computed for them and never")
    # A run that was killed has not said whether they moved.
    assert inside["learning_rate/not_in_optimizer"].meaning.startswith("Unless another optimizer trains them")
