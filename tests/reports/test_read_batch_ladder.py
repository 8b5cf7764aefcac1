"""λmax against batch size: the ratio, the law where it fits, and the picture."""

from __future__ import annotations

import math

import pytest
from matplotlib.figure import Figure as Canvas
from runs import Key, run_of

from probes.run import Record, Run
from reports.finding import Finding
from reports.stability import batch_ladder

SIZES = (4, 16, 64)


def ladder(c: float = 40.0, whole: float = 5.0, fit: float = 0.99, examples: float = 64.0) -> dict[Key, list[float]]:
    values: dict[Key, list[float]] = {
        ("batch_ladder", "sharpness", str(size)): [whole + c * (1 / size - 1 / examples)] for size in SIZES
    }
    named = {"examples": examples, "whole": whole, "slope": c, "r_squared": fit}
    return {**values, **{("batch_ladder", name): [value] for name, value in named.items()}}


def law(quantities: dict[Key, list[float]]) -> Finding:
    (finding,) = batch_ladder.read(run_of(quantities)).findings
    assert (finding.id, finding.level) == ("batch_ladder/law", "ok")
    return finding


def test_the_smallest_batches_are_compared_with_the_whole() -> None:
    finding = law(ladder())
    assert "λmax of mini-batches of 4 is 2.875 ± 0.006 times that of all 64 examples, at step 0" in finding.claim
    assert "compare sharpness at one batch size only" in finding.claim
    assert "equals λmax of the whole near B = 8" in finding.meaning
    assert "batch sharpness" in finding.meaning
    assert "2006.09092" in finding.citation


def test_without_the_whole_among_the_sizes_the_largest_is_named() -> None:
    assert "times that of batches of 64" in law(ladder(examples=5000.0)).claim


@pytest.mark.parametrize("odd", [{"fit": 0.5}, {"fit": -3.0}, {"c": -2.0}])
def test_a_law_that_does_not_fit_is_not_read(odd: dict[str, float]) -> None:
    finding = law(ladder(**odd))
    assert "describes these sizes poorly" in finding.meaning
    assert "near B" not in finding.meaning


def test_two_sizes_make_a_ratio_and_no_law() -> None:
    finding = law({("batch_ladder", "sharpness", "4"): [8.0], ("batch_ladder", "sharpness", "16"): [4.0]})
    assert "2.000 ± 0.006 times that of batches of 16" in finding.claim
    assert "R²" not in finding.meaning


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf])
def test_sizes_without_positive_curvature_are_left_out(value: float) -> None:
    quantities = {**ladder(), ("batch_ladder", "sharpness", "4"): [value]}
    assert "mini-batches of 16" in law(quantities).claim
    only = {("batch_ladder", "sharpness", "4"): [value], ("batch_ladder", "sharpness", "16"): [4.0]}
    assert batch_ladder.read(run_of(only)).findings == ()


def test_a_ladder_that_could_not_be_measured_says_why() -> None:
    record = Record(step=0, time=0.0, probe="batch_ladder", name="sharpness", status="skipped", note="too large")
    (finding,) = batch_ladder.read(Run({}, [record])).findings
    assert finding.level == "unmeasured"
    assert batch_ladder.read(Run({}, [])).findings == ()


def test_first_and_latest_are_drawn_on_log_axes_with_the_law() -> None:
    quantities = {key: [one, one, 2 * one] for key, (one,) in ladder().items()}
    (figure,) = batch_ladder.read(run_of(quantities)).figures
    assert figure.table.columns == (
        "batch size",
        "λmax at step 0",
        "its error",
        "λmax at step 20",
        "its error",
    )
    assert figure.table.rows[-1] == (64, 5.0, 0.01, 10.0, 0.01)
    canvas = Canvas()
    figure.draw(canvas)
    (axes,) = canvas.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["λ + c (1/B − 1/N)", "step 20", "step 0"]
    canvas.draw_without_rendering()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "16", "64"]
