"""Curvature against the gradient: growth, none, and all the runs of which nothing can be said; the quadratic model."""

from __future__ import annotations

import math

import numpy
import pytest
from matplotlib.figure import Figure as Canvas
from runs import Key, run_of

from reports.stability import gradient_curvature
from reports.stability.smoothness import smoothness

NORM, TOP = ("gradient_curvature", "gradient_norm"), ("sharpness", "sharpness")
NOISE = numpy.random.default_rng(0)


def falling(points: int) -> list[float]:
    return [float(norm) for norm in numpy.linspace(4.0, 0.5, points)]


def test_growth_is_told_with_what_clipping_does() -> None:
    norms = falling(30)
    bends = [2 + 3 * norm + 0.05 * float(NOISE.standard_normal()) for norm in norms]
    chapter = smoothness(run_of({NORM: norms, TOP: bends}))
    (finding,) = chapter.findings
    assert (finding.id, finding.level, finding.advice) == ("gradient_curvature/smoothness", "ok", ())
    assert finding.claim.startswith("Curvature grows with the gradient: λmax is about 2.0")
    assert "30 checks" in finding.claim
    assert "Clipping" in finding.meaning
    assert finding.value is not None
    assert float(finding.value) == pytest.approx(3.0, abs=0.1)
    (figure,) = chapter.figures
    assert figure.table.rows[0] == (0, 4.0, bends[0])
    canvas = Canvas()
    figure.draw(canvas)
    assert canvas.axes[0].get_xlabel().startswith("gradient norm")


def test_curvature_that_stays_is_told_as_no_growth() -> None:
    bends = [5 + 0.05 * float(NOISE.standard_normal()) for _ in range(40)]
    (finding,) = smoothness(run_of({NORM: falling(40), TOP: bends})).findings
    assert finding.claim.startswith("Curvature does not grow with the gradient")
    assert "nothing speaks for clipping" in finding.meaning


RANDOM = [float(value) for value in 1 + 20 * NOISE.random(30)]


@pytest.mark.parametrize(
    ("norms", "bends"),
    [
        (falling(9), falling(9)),  # too few
        ([1.0] * 30, falling(30)),  # gradients alike
        (falling(30), [3.0] * 30),  # curvature constant: nothing to explain
        ([0.0] * 30, [0.0] * 30),
        (falling(30), [-1.0] * 30),
        ([math.nan] * 30, falling(30)),
        (falling(30), [math.inf] * 30),
        (falling(30), RANDOM),  # scatter that has nothing to do with the gradient, and too wide to exclude growth
        ([], []),
    ],
)
def test_nothing_is_said_where_a_line_means_nothing(norms: list[float], bends: list[float]) -> None:
    chapter = smoothness(run_of({NORM: norms, TOP: bends}))
    assert (chapter.findings, chapter.figures) == ((), ())


def test_checks_are_matched_by_step_and_broken_ones_left_out() -> None:
    norms = falling(30)
    bends = [2 + 3 * norm for norm in norms]
    bends[3], norms[7], bends[9] = math.nan, math.nan, -4.0
    run = run_of({NORM: norms, TOP: bends[:20]})
    (finding,) = smoothness(run).findings
    assert "17 checks" in finding.claim


def test_the_chapter_holds_it_beside_the_rest_but_not_of_another_function() -> None:
    quantities: dict[Key, list[float]] = {NORM: falling(30), TOP: [2 + 3 * norm for norm in falling(30)]}
    ids = {finding.id for finding in gradient_curvature.read(run_of(quantities)).findings}
    assert ids == {"gradient_curvature/smoothness"}
    header = {"objective": {"mode": "eval", "batch_norm": 1}}
    critical: dict[Key, list[float]] = {("gradient_curvature", "critical_lr"): [0.1]}
    (finding,) = gradient_curvature.read(run_of({**quantities, **critical}, header)).findings
    assert finding.level == "unmeasured"


def test_the_step_ratio_is_drawn_as_the_rate_that_the_quadratic_model_allows() -> None:
    quantities: dict[Key, list[float]] = {
        ("gradient_curvature", "critical_lr"): [0.3, 0.2, 0.2],
        ("gradient_curvature", "step_ratio"): [0.5, 0.25, -1.0],
        ("learning_rate", "lr", "w"): [0.1] * 3,
    }
    figure = next(one for one in gradient_curvature.read(run_of(quantities)).figures if one.id == "critical-rate")
    assert figure.table.columns == ("step", "critical learning rate", "learning rate", "of the quadratic model")
    assert figure.table.rows[:2] == ((0, 0.3, 0.1, 0.2), (10, 0.2, 0.1, 0.4))
    assert figure.table.rows[2] == (20, 0.2, 0.1, None), "downward curvature: the model has no such rate"
