"""The pace of sharpening: rising, falling, at the edge, unknown, and drawn."""

from __future__ import annotations

import math
import warnings

import pytest
from matplotlib.figure import Figure as Canvas
from runs import Key, run_of

from probes.run import Record, Run
from probes.sharpening import MEET
from reports.catalogue import CHAPTERS
from reports.finding import Finding
from reports.stability import sharpening

RATE = ("sharpening", "rate")
LEFT = ("sharpening", "steps_to_edge")
BACK = ("sharpening", "resistance")


def pace(quantities: dict[Key, list[float]], header: dict[str, object] | None = None) -> Finding:
    (finding,) = sharpening.read(run_of(quantities, header)).findings
    assert finding.level == "ok"
    return finding


def test_progressive_sharpening_is_told_with_its_pace_and_the_steps_that_are_left() -> None:
    finding = pace({RATE: [1.0, 2.0, 3.0], LEFT: [900.0, 400.0, 340.0], BACK: [16.0] * 3})
    assert finding.claim.startswith("Curvature is rising by itself: α is 2 ± 1 ")
    assert "edge of stability is some 400 steps away" in finding.claim, "the middle one: single checks are far apart"
    assert "A swing of 0.5, √(2α/β)" in finding.meaning
    assert "2209.15594" in finding.citation


def test_the_latest_checks_count_and_one_alone_keeps_its_own_error() -> None:
    finding = pace({RATE: [-9.0, *[1.0] * 5], LEFT: [math.nan, *[100.0] * 5]})
    assert "rising" in finding.claim
    alone = pace({RATE: [0.5]})
    assert "α is 0.50 ± 0.01 per unit" in alone.claim
    assert alone.value is not None
    assert alone.value.kind == "residual"


def test_without_an_edge_the_pace_is_held_against_the_sharpness_itself() -> None:
    header = {"optimizer": {"class": "AdamW"}}
    finding = pace({RATE: [0.5] * 3, ("sharpening", "sharpness"): [10.0] * 3}, header)
    assert "doubles within 20 of these" in finding.claim
    assert "AdamW descends along another path" in finding.meaning
    assert "another path" not in pace({RATE: [0.5] * 3}, {"optimizer": {"class": "SGD"}}).meaning


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([-1.0, -2.0, -1.5], "falling by itself"),
        ([0.1, -2.0, 0.3], "neither rises nor falls"),
        ([0.005, 0.005, 0.005], "neither rises nor falls"),  # within its error of 0.01
    ],
)
def test_no_steps_to_the_edge_are_told_where_it_does_not_rise(values: list[float], said: str) -> None:
    finding = pace({RATE: values, LEFT: [50.0] * 3})
    assert said in finding.claim
    assert "steps away" not in finding.claim


def test_under_mini_batches_the_edge_is_that_of_whole_batches() -> None:
    header = {"objective": {"loss_terms": 500}}
    batch: dict[Key, list[float]] = {("batch_sharpness", "ratio"): [0.2], ("batch_sharpness", "batch_size"): [16.0]}
    assert "the edge for whole batches is some 70 steps" in pace({RATE: [1.0], LEFT: [70.0], **batch}, header).claim


def unresolved(steps: list[int]) -> list[Record]:
    return [Record(step=step, time=0.0, probe="sharpening", name="rate", status="skipped", note=MEET) for step in steps]


def test_what_is_undetermined_at_the_edge_is_said_once() -> None:
    measured = run_of({RATE: [1.0, 1.0]})
    (finding,) = sharpening.read(Run({}, [*measured.records, *unresolved([20, 30, 40])])).findings
    assert finding.level == "ok"
    assert "to step 10" in finding.claim
    assert finding.meaning.count("usual at the edge of stability") == 1
    assert "Undetermined at 3 of 5 checks" in finding.meaning


def test_where_nothing_was_determined_nothing_is_judged() -> None:
    (finding,) = sharpening.read(Run({}, unresolved([0, 10]))).findings
    assert (finding.level, finding.evidence) == ("unmeasured", ())
    assert "two meet" in finding.claim
    assert sharpening.read(Run({}, [])).findings == ()


def test_evaluation_mode_of_a_batch_normalised_model_is_no_verdict() -> None:
    header = {"objective": {"mode": "eval", "batch_norm": 2}}
    (finding,) = sharpening.read(run_of({RATE: [1.0, 1.0]}, header)).findings
    assert finding.level == "unmeasured"


def test_the_figure_keeps_the_sign_and_spreads_wild_values() -> None:
    (figure,) = sharpening.read(run_of({RATE: [-400.0, *[0.5] * 8]})).figures
    canvas = Canvas()
    figure.draw(canvas)
    assert canvas.axes[0].get_yscale() == "symlog"
    assert figure.table.rows[0] == (0, -400.0, 0.01)
    (calm,) = sharpening.read(run_of({RATE: [-0.1, 0.2, 0.3]})).figures
    canvas = Canvas()
    calm.draw(canvas)
    assert canvas.axes[0].get_yscale() == "linear"
    assert sharpening.read(run_of({RATE: [1.0]})).figures == ()


QUANTITIES: list[Key] = [
    *(("sharpening", name) for name in ("rate", "sharpness", "resistance", "steps_to_edge")),
    *(("ascent", name) for name in ("rise", "first_order", "loss", "rho")),
    *(("gradient_flow", name) for name in ("sharpness", "now", "threshold", "distance", "loss")),
    *(("batch_ladder", name) for name in ("examples", "whole", "slope", "r_squared")),
    *(("batch_ladder", "sharpness", size) for size in ("4", "8", "of no size")),
    *(("gradient_curvature", name) for name in ("gradient_norm", "step_ratio", "critical_lr")),
    *(("sharpness", name) for name in ("sharpness", "ratio", "threshold", "curvature")),
    *(("batch_sharpness", name) for name in ("value", "ratio", "momentum", "batch_size")),
]


@pytest.mark.parametrize(
    "values",
    [
        [],
        [math.nan],
        [math.nan, math.inf],
        [0.0],
        [0.0] * 12,
        [-1.0, -2.0],
        [1e30, 1e-30],
        [1.0, math.nan, 2.0],
        [3.0] * 12,
        [10.0**power for power in range(-6, 6)],
    ],
)
@pytest.mark.parametrize("error", [None, math.inf, 0.1])
def test_strange_numbers_break_no_chapter_about_the_edge(values: list[float], error: float | None) -> None:
    run = run_of(dict.fromkeys(QUANTITIES, values), error=error)
    for name in ("sharpening", "ascent", "gradient_flow", "batch_ladder", "gradient_curvature", "batch_sharpness"):
        chapter = CHAPTERS[name](run)
        cited = {id for finding in chapter.findings for id in finding.evidence}
        assert cited <= {figure.id for figure in chapter.figures} | {"batch-sharpness"}
        assert all(finding.level != "fail" and "nan" not in finding.claim for finding in chapter.findings)
        with warnings.catch_warnings():
            # A band with an infinite edge is matplotlib's to warn about.
            warnings.simplefilter("ignore", RuntimeWarning)
            for figure in chapter.figures:
                canvas = Canvas()
                figure.draw(canvas)
                canvas.draw_without_rendering()
