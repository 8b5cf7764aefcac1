"""Where gradient flow would end: above the threshold, at it, below it, not resolved, and drawn."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure as Canvas
from runs import Key, run_of

from probes.run import Record, Run
from reports.finding import Finding
from reports.stability import gradient_flow

END, NOW, EDGE = (("gradient_flow", name) for name in ("sharpness", "now", "threshold"))


def end(quantities: dict[Key, list[float]], header: dict[str, object] | None = None, error: float = 0.01) -> Finding:
    (finding,) = gradient_flow.read(run_of(quantities, header, error=error)).findings
    assert (finding.id, finding.level) == ("gradient_flow/end", "ok")
    return finding


@pytest.mark.parametrize(
    ("value", "said"),
    [(15.0, "has to flatten it first"), (5.05, "about the threshold"), (4.9, "about the threshold"), (2.0, "follow")],
)
def test_the_end_is_held_against_the_threshold_of_gradient_descent(value: float, said: str) -> None:
    finding = end({END: [value], NOW: [5.2], EDGE: [5.0]})
    assert said in finding.meaning
    assert f"{value / 5:.3g} times the threshold by hand = 5; now it is 5.20 ± 0.01" in finding.claim
    assert "2305.13064" in finding.citation


def test_without_a_threshold_there_is_only_the_number() -> None:
    finding = end({END: [15.0]})
    assert "times the threshold" not in finding.claim
    assert "no threshold of plain SGD" in finding.meaning


def test_an_end_that_was_not_reached_is_not_compared() -> None:
    finding = end({END: [35.0, 15.0], EDGE: [5.0, 5.0]}, error=9.0)
    assert "not resolved" in finding.claim
    assert "fallen" not in finding.meaning
    assert "flatten" not in finding.meaning
    assert "separable" in finding.meaning


def test_how_it_has_moved_is_told_and_under_mini_batches_what_moves_it() -> None:
    finding = end({END: [15.0, 8.0], EDGE: [5.0, 5.0]})
    assert "fallen from 15 to 8" in finding.meaning
    assert "noise" not in finding.meaning
    assert "Over the run" not in end({END: [15.005, 15.0]}).meaning, "within the errors"
    batch: dict[Key, list[float]] = {("batch_sharpness", "ratio"): [0.2], ("batch_sharpness", "batch_size"): [16.0]}
    assert "noise of mini-batches" in end({END: [15.0], **batch}, {"objective": {"loss_terms": 500}}).meaning


def test_a_threshold_of_another_check_is_none() -> None:
    assert "threshold by hand" not in end({END: [15.0, 8.0], EDGE: [5.0]}).claim


def test_a_flow_that_was_given_up_says_why() -> None:
    note = "NOT CONVERGED: after 971 gradients; GradientFlow(max_gradients=...) allows more than 2000"
    record = Record(step=0, time=0.0, probe="gradient_flow", name="sharpness", status="skipped", note=note)
    (finding,) = gradient_flow.read(Run({}, [record])).findings
    assert finding.level == "unmeasured"
    assert "NOT CONVERGED" in finding.claim
    assert gradient_flow.read(Run({}, [])).findings == ()


def test_evaluation_mode_of_a_batch_normalised_model_is_no_verdict() -> None:
    header = {"objective": {"mode": "eval", "batch_norm": 2}}
    (finding,) = gradient_flow.read(run_of({END: [15.0]}, header)).findings
    assert finding.level == "unmeasured"


def test_the_figure_shows_the_end_beside_the_sharpness_of_every_check() -> None:
    quantities: dict[Key, list[float]] = {
        END: [15.0, 8.0],
        NOW: [2.0, 5.0],
        EDGE: [5.0, 5.0],
        ("sharpness", "sharpness"): [2.0, 5.0, 5.5],
    }
    (figure,) = gradient_flow.read(run_of(quantities)).figures
    assert figure.table.columns == ("step", "end of the flow", "λmax now", "threshold")
    assert figure.table.rows == ((0, 15.0, 2.0, 5.0), (10, 8.0, 5.0, 5.0), (20, None, 5.5, None))
    canvas = Canvas()
    figure.draw(canvas)
    assert len(canvas.axes[0].lines) == 3
    assert gradient_flow.read(run_of({END: [15.0]})).figures == ()
