"""The noise scale is held against the batch in use, errors allowed for; a stuck loss is put down to tiny batches."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure as Canvas
from runs import run_of

from probes.run import Record, Run
from reports.noise import chapter as noise

SIMPLE, WEIGHTED, BATCH = (("noise_scale", name) for name in ("simple", "hessian", "batch_size"))


@pytest.mark.parametrize(
    ("scale", "error", "batch", "said"),
    [
        (1000.0, 50.0, 32.0, "batches of 32 are far below it"),
        (
            1000.0,
            400.0,
            32.0,
            "whether batches of 32 are far from it is not certain",
        ),  # the error reaches within ten times
        (20.0, 2.0, 512.0, "batches of 512 are far above it"),
        (100.0, 10.0, 64.0, "of its order"),
    ],
)
def test_the_batch_is_held_against_it(scale: float, error: float, batch: float, said: str) -> None:
    (finding,) = noise.read(run_of({SIMPLE: [scale], BATCH: [batch]}, error=error)).findings
    assert (finding.id, finding.level) == ("noise_scale/batch", "ok")
    assert said in finding.claim
    assert "proxy" in finding.meaning
    assert finding.advice == ()


def test_without_a_batch_the_scale_is_told_with_where_it_came_from() -> None:
    chapter = noise.read(run_of({SIMPLE: [10.0, 40.0], WEIGHTED: [12.0, 30.0]}, error=2.0))
    (finding,) = chapter.findings
    assert finding.claim.startswith("The gradient noise scale is 40 ± 2 examples at step 10 (30 ± 2 weighted by")
    assert "up from 10" in finding.claim
    (figure,) = chapter.figures
    figure.draw(Canvas())
    assert [str(row[0]) for row in figure.table.rows] == ["0", "10"]


def test_a_scale_that_was_lost_since_says_so() -> None:
    run = run_of({SIMPLE: [10.0, 40.0]}, error=2.0)
    note = "undetermined: the interval of |G|² reaches zero"
    lost = Record(step=20, time=0.0, probe="noise_scale", name="simple", status="skipped", note=note)
    layer = Record(step=30, time=0.0, probe="noise_scale", name="simple", layer="0", status="skipped", note=note)
    (finding,) = noise.read(Run({}, [*run.records, lost, layer])).findings
    assert "at step 10" in finding.claim
    assert "from step 20 on it is not to be told" in finding.claim
    assert finding.advice
    with_batch = run_of({SIMPLE: [10.0, 40.0], BATCH: [512.0, 512.0]}, error=2.0)
    (finding,) = noise.read(Run({}, [*with_batch.records, lost])).findings
    assert "512" not in finding.claim + finding.meaning, "where batches stood then says nothing of now"
    assert "is open" in finding.meaning
    tiny = run_of({SIMPLE: [10.0, 40.0], BATCH: [1.0, 1.0]}, error=2.0)
    (finding,) = noise.read(Run({}, [*tiny.records, lost])).findings
    assert "batches of 1 were far below it before" in finding.claim, "it has only grown since"
    (kept,) = noise.read(Run({}, [*run.records, layer])).findings
    assert "not to be told" not in kept.claim


STUCK = [2.3, 0.6, 0.55, 1.0, 1.4, 1.7, 0.7, 1.3]


@pytest.mark.parametrize(
    ("batch", "loss", "level"),
    [
        (1.0, STUCK, "fail"),
        # No lower than before, and no higher either.
        (1.0, [2.3, 0.6, 0.55, 0.7, 0.6, 0.65, 0.7, 0.6], "warn"),
        # It still falls, or has been learnt and only swings; batches are of the order of the scale; too few checks.
        (1.0, [2.3, 1.6, 1.3, 1.1, 0.9, 0.8, 0.7, 0.65], "ok"),
        (1.0, [2.3, 0.3, 0.05, 0.04, 0.06, 0.05, 0.07, 0.05], "ok"),
        (32.0, STUCK, "ok"),
        (1.0, STUCK[:4], "ok"),
    ],
    ids=["lost", "stuck", "falling", "learnt", "larger", "short"],
)
def test_noise_holds_a_loss_up_only_where_batches_are_far_too_small_and_it_is_stuck(
    batch: float, loss: list[float], level: str
) -> None:
    checks = len(loss)
    run = run_of({SIMPLE: [60.0] * checks, BATCH: [batch] * checks, ("sharpness", "loss"): loss}, error=5.0)
    (finding,) = noise.read(run).findings
    assert (finding.id, finding.level) == ("noise_scale/batch", level)
    if level == "fail":
        assert finding.claim.startswith(
            "Noise holds the loss up: 1.35 in the median since step 40, after 0.55 at step 20"
        )
        assert "batches of 1 are far below" in finding.claim
        assert finding.advice


def test_what_is_undetermined_says_why_and_nobody_asked_means_nothing() -> None:
    note = "undetermined: the interval of |G|² reaches zero"
    record = Record(step=0, time=0.0, probe="noise_scale", name="simple", status="skipped", note=note)
    (finding,) = noise.read(Run({}, [record])).findings
    assert finding.level == "unmeasured"
    assert "reaches zero" in finding.claim + finding.meaning
    assert finding.advice
    assert noise.read(Run({}, [])).findings == ()


def test_the_stream_of_the_run_is_read_alike_beside_the_other() -> None:
    of_steps = ("noise_stream", "simple"), ("noise_stream", "batch_size")
    run = run_of({SIMPLE: [10.0, 40.0], of_steps[0]: [20.0, 30.0, 35.0], of_steps[1]: [2.0, 2.0, 2.0]}, error=2.0)
    chapter = noise.read(run)
    first, second = chapter.findings
    assert (first.id, second.id) == ("noise_scale/batch", "noise_stream/batch")
    assert second.claim.startswith("The gradient noise scale of the run's own steps is 35 ± 2 examples at step 20, up")
    assert "batches of 2 are far below it" in second.claim
    (figure,) = chapter.figures
    figure.draw(Canvas())
    assert figure.table.columns == ("step", "B_simple", "B_simple of the steps")
    assert second.evidence == (figure.id,)


def test_a_stream_alone_has_its_figure_and_without_numbers_its_reason() -> None:
    (figure,) = noise.read(run_of({("noise_stream", "simple"): [20.0, 30.0]})).figures
    assert figure.table.columns == ("step", "B_simple of the steps")
    record = Record(step=5, time=0.0, probe="noise_stream", name="simple", status="skipped", note="one micro-batch")
    other = Record(step=5, time=0.0, probe="noise_stream", name="at_least", status="skipped", note="no bound")
    (finding,) = noise.read(Run({}, [record, other])).findings
    assert (finding.id, finding.level) == ("noise_stream/batch", "unmeasured")
    assert "one micro-batch" in finding.claim
    assert "longer average" in finding.advice[0]


def test_a_first_value_that_was_lost_and_a_batch_of_nothing_are_passed_over() -> None:
    """Folders may be damaged: a record without its value, and a batch size of zero."""
    (finding,) = noise.read(run_of({SIMPLE: [None, 10.0, 40.0], BATCH: [0.0]}, error=2.0)).findings
    assert "up from 10" in finding.claim
    assert "batches" not in finding.claim
