"""The rise of the loss within ρ: told as a lower bound, never as a verdict."""

from __future__ import annotations

from matplotlib.figure import Figure as Canvas
from runs import run_of

from probes.run import Record, Run
from reports.stability import ascent

RISE, LOSS, RHO, SLOPE = (("ascent", name) for name in ("rise", "loss", "rho", "first_order"))


def test_the_rise_is_a_lower_bound_that_says_nothing_about_generalisation() -> None:
    (finding,) = ascent.read(
        run_of({RISE: [0.02, 0.5], LOSS: [2.0, 1.25], RHO: [0.05] * 2, SLOPE: [0.02, 0.3]})
    ).findings
    assert (finding.id, finding.level) == ("ascent/rise", "ok")
    assert finding.claim == "The loss rises by at least 0.5 within ρ = 0.05, from 1.25, at step 10."
    assert "from below" in finding.meaning
    assert "slope alone would give 0.3; the rest is curvature" in finding.meaning
    assert "nothing about generalisation" in finding.meaning
    assert "2010.01412" in finding.citation
    assert finding.advice == ()


def test_a_step_that_leads_down_found_no_rise() -> None:
    """One step of ρ may pass over the top: the maximum is above zero all the same, and nothing is claimed of it."""
    (finding,) = ascent.read(run_of({RISE: [-0.1], RHO: [5.0], SLOPE: [0.3]})).findings
    assert finding.level == "ok"
    assert finding.claim.startswith("One step up the gradient found no rise of the loss within ρ = 5")
    assert "curvature" not in finding.meaning


def test_a_slope_from_another_check_is_not_told_beside_it() -> None:
    (finding,) = ascent.read(run_of({RISE: [0.2, 0.5], SLOPE: [0.1], LOSS: [3.0]})).findings
    assert "slope alone" not in finding.meaning
    assert "from 3" not in finding.claim


def test_the_adaptive_form_has_another_unit() -> None:
    note = "one step along the gradient, adaptive, a lower bound of the maximum"
    record = Record(step=0, time=0.0, probe="ascent", name="rise", value=0.5, note=note)
    (finding,) = ascent.read(Run({}, [record])).findings
    assert "of each weight's size" in finding.claim


def test_what_could_not_be_measured_says_why_and_nobody_asked_means_nothing() -> None:
    note = "undetermined: the gradient is zero"
    record = Record(step=0, time=0.0, probe="ascent", name="rise", status="skipped", note=note)
    (finding,) = ascent.read(Run({}, [record])).findings
    assert finding.level == "unmeasured"
    assert "the gradient is zero" in finding.claim
    assert ascent.read(Run({}, [])) == ascent.Chapter()


def test_the_figure_holds_the_rise_beside_the_loss() -> None:
    (figure,) = ascent.read(run_of({RISE: [0.02, 0.5], LOSS: [2.0, 1.25]})).figures
    assert figure.table.rows == ((0, 0.02, 2.0), (10, 0.5, 1.25))
    canvas = Canvas()
    figure.draw(canvas)
    assert len(canvas.axes) == 2
    assert ascent.read(run_of({RISE: [0.02]})).figures == ()
