"""Rotation against its equilibrium, and the timescale of decay."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure as Canvas
from runs import Key, run_of

from probes.run import Run
from reports.finding import Finding
from reports.learning_rate import chapter as learning_rate

NAMES = tuple(f"layers.{index}.weight" for index in range(6))
HEADER = {"model": {"shapes": {**{name: [8, 8] for name in NAMES}, "gain": [8]}}}


def run_with(
    turned: dict[str, float], predicted: float | None = 1e-3, timescale: float | None = 100.0, checks: int = 50
) -> Run:
    quantities: dict[Key, list[float]] = {}
    for name, angle in turned.items():
        quantities["learning_rate", "rotation", name] = [angle] * checks
        if predicted is not None:
            quantities["learning_rate", "rotation_predicted", name] = [predicted] * checks
        if timescale is not None:
            quantities["learning_rate", "timescale", name] = [timescale] * checks
    return run_of(quantities, HEADER)


def finding(run: Run, id: str = "rotation") -> Finding | None:
    found = [one for one in learning_rate.read(run).findings if one.id == f"learning_rate/{id}"]
    return found[0] if found else None


def test_balance_and_the_way_there_are_told_apart() -> None:
    """Balance is due after 3/(2ηλ): 150 steps at a timescale of 100, of 490 in the run; 15,000 at one of 10,000."""
    balanced = finding(run_with(dict.fromkeys(NAMES, 1.1e-3)))
    moving = finding(run_with(dict.fromkeys(NAMES, 5e-3), timescale=1e4))
    late = finding(run_with(dict.fromkeys(NAMES, 5e-3)))
    assert balanced is not None
    assert moving is not None
    assert late is not None
    assert "1.1 times" in balanced.claim
    assert "balanced" in balanced.claim
    assert "still on the way" in moving.claim
    assert "15,000 steps" in moving.meaning
    assert "though 150 steps" in late.claim
    assert {balanced.level, moving.level, late.level} == {"ok"}


def test_one_matrix_far_off_the_others_is_reported_once_balance_was_due() -> None:
    odd = {**dict.fromkeys(NAMES, 1e-3), NAMES[2]: 5e-2}
    sick, early = finding(run_with(odd)), finding(run_with(odd, timescale=1e4))
    mild = finding(run_with({**dict.fromkeys(NAMES, 1e-3), NAMES[2]: 4e-3}))
    assert sick is not None
    assert early is not None
    assert mild is not None
    assert (sick.level, early.level, mild.level) == ("warn", "ok", "ok")
    assert "layers.2.weight turns 50 times as fast" in sick.claim
    assert sick.advice


def test_a_matrix_as_predicted_among_others_that_are_not_is_no_outlier() -> None:
    turned = {**dict.fromkeys(NAMES, 5e-2), NAMES[2]: 1e-3}
    found = finding(run_with(turned))
    assert found is not None
    assert found.level == "ok"


def test_without_decay_no_balance_is_predicted_and_gains_do_not_count() -> None:
    alone = run_with({NAMES[0]: 1e-3, "gain": 1.0}, predicted=None, timescale=None)
    invariant = run_of({("learning_rate", "effective", NAMES[0]): [0.1] * 50})
    found = finding(Run(alone.header, [*alone.records, *invariant.records]))
    assert found is not None
    assert "0.001 rad (median of 1" in found.claim
    assert "equilibrium" not in found.claim


def test_without_decay_and_scale_invariance_rotation_says_no_more_than_the_size_of_steps() -> None:
    chapter = learning_rate.read(run_with(dict.fromkeys(NAMES, 1e-3), predicted=None, timescale=None))
    assert not [finding for finding in chapter.findings if finding.id == "learning_rate/rotation"]
    assert not [figure for figure in chapter.figures if figure.id == "rotation"]


@pytest.mark.parametrize(("timescale", "level"), [(50.0, "warn"), (1000.0, None), (1e5, "ok")])
def test_decay_that_is_too_fast_or_has_no_time_is_told(timescale: float, level: str | None) -> None:
    found = finding(run_with(dict.fromkeys(NAMES, 1e-3), timescale=timescale), "timescale")
    assert (None if found is None else found.level) == level
    if level == "ok" and found is not None:
        assert "has had no time to act" in found.claim


def test_the_schedule_at_its_end_does_not_lengthen_the_timescale() -> None:
    run = run_of({("learning_rate", "timescale", NAMES[0]): [1000.0, 1000.0, 1e9]}, HEADER, every=500)
    assert finding(run, "timescale") is None


def test_both_panels_are_drawn_in_the_same_colours() -> None:
    run = run_with({NAMES[0]: 1e-3, NAMES[1]: 3e-3})
    figure = next(one for one in learning_rate.read(run).figures if one.id == "rotation")
    canvas = Canvas()
    figure.draw(canvas)
    top, bottom = (
        {line.get_label(): line.get_color() for line in axes.get_lines() if line.get_label() in NAMES}
        for axes in canvas.axes
    )
    assert top == bottom
    assert len(top) == 2
    assert figure.table.rows[0] == (0, 1e-3, 3e-3, 1.0, 3.0)
