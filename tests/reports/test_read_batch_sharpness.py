"""The verdict on stability under mini-batches: batch sharpness decides, λmax is context, errors count."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace

import pytest
from matplotlib.figure import Figure as Canvas
from runs import Key, run_of

from probes.run import Record, Run
from reports.finding import Finding
from reports.stability import batch_sharpness, gradient_curvature, sharpness

TERMS = {"objective": {"loss_terms": 1000}}


def run_with(
    batch: list[float],
    whole: list[float] | None = None,
    *,
    losses: list[float] | None = None,
    size: float | None = 32.0,
    error: float = 0.01,
    rule: str = "sgd: 2/η",
    probe: str = "batch_sharpness",
    header: Mapping[str, object] | None = None,
) -> Run:
    quantities: dict[Key, list[float]] = {("batch_sharpness", "ratio"): batch} if batch else {}
    quantities[probe, "threshold"] = [20.0] * max(len(batch), len(whole or ()))
    quantities["sharpness", "loss"] = losses or [1.0] * len(quantities[probe, "threshold"])
    if whole is not None:
        quantities["sharpness", "ratio"] = whole
    if size is not None:
        quantities["batch_sharpness", "batch_size"] = [size]
    run = run_of(quantities, {**TERMS, **(header or {})}, error=error)
    return Run(run.header, [replace(one, note=rule) if one.name == "threshold" else one for one in run.records])


def verdict(run: Run) -> Finding:
    finding = sharpness.read(run).findings[0]
    assert finding.id == "sharpness/regime"
    return finding


@pytest.mark.parametrize(
    ("level", "words", "batch", "losses"),
    [
        ("ok", "edge of stochastic stability", [0.4, 0.8, 1.0, 1.02, 1.01, 0.99, 1.0], None),
        ("ok", "rising towards the edge", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], None),
        ("ok", "Steps are within", [0.1, 0.11, 0.1, 0.1], None),
        ("fail", "too long for the curvature of the batches", [0.9, 1.5, 1.6, 1.7, 1.8, 1.9], None),
        ("warn", "thrown to a flatter region", [1.6, 1.8, 1.1, 0.9, 0.9, 0.9, 0.9], [1.0, 3.0, 2, 0.5, 0.4, 0.3, 0.2]),
        ("fail", "diverged", [0.9, 1.5, 2.0], [1.0, 5.0, 50.0]),
    ],
)
def test_batch_sharpness_decides_whatever_lambda_max_says(
    level: str, words: str, batch: list[float], losses: list[float] | None
) -> None:
    """λmax stays at 0.3 in all of them: from it alone every one would be called stable."""
    finding = verdict(run_with(batch, [0.3] * len(batch), losses=losses))
    assert finding.level == level
    assert words in finding.claim
    assert "batch sharpness" in finding.claim
    assert "2412.20553" in finding.citation
    if level in ("fail", "warn"):
        assert finding.advice
    if "diverged" not in words:
        assert "λmax alone stands at 0.30" in finding.meaning
        assert "stays below 1" in finding.meaning or "do not point along" in finding.meaning


def test_a_high_lambda_max_is_context_too_and_no_verdict() -> None:
    finding = verdict(run_with([0.3, 0.3, 0.3], [1.6, 1.6, 1.6]))
    assert finding.level == "ok"
    assert "its direction overshoots" in finding.meaning
    assert "nearly like the whole data" in verdict(run_with([0.85] * 3, [0.95] * 3)).meaning
    assert "do not point along" in verdict(run_with([0.3] * 3, [0.5] * 3)).meaning


@pytest.mark.parametrize(
    ("size", "named"), [(32.0, "batch sharpness"), (None, "batch sharpness"), (1000.0, "stability")]
)
def test_only_batches_smaller_than_the_data_make_a_run_stochastic(size: float | None, named: str) -> None:
    finding = verdict(run_with([1.0, 1.0, 1.0], [0.4, 0.4, 0.4], size=size))
    assert named in finding.claim
    assert ("edge of stochastic" in finding.claim) == (named == "batch sharpness")


def test_lambda_max_alone_keeps_its_caveat_with_the_remedy() -> None:
    finding = verdict(run_with([], [0.4, 0.4, 0.4], probe="sharpness"))
    assert "does not decide alone" in finding.meaning
    assert "BatchSharpness(batch_size=...)" in finding.meaning


def test_the_edge_needs_an_interval_that_reaches_it() -> None:
    def regime(level: float, error: float) -> Finding:
        return verdict(run_with([level] * 6, error=error))

    assert "edge of stochastic" in regime(0.85, 0.03).claim, "0.85 ± 0.06 at 95 %"
    assert "edge of stochastic" not in regime(0.85, 0.01).claim
    wide = regime(0.5, 0.3)
    assert "edge of stochastic" not in wide.claim, "a wide error makes no edge"
    assert "the edge is not excluded" in wide.meaning


def test_a_high_ratio_with_a_wide_error_is_no_verdict() -> None:
    unsure, sure = verdict(run_with([1.6] * 6, error=0.4)), verdict(run_with([1.6] * 6, error=0.05))
    assert (unsure.level, sure.level) == ("unmeasured", "fail")
    assert "more batches" in unsure.advice[0]


def test_noise_does_not_look_like_sharpening() -> None:
    assert "rising" not in verdict(run_with([0.3, 0.31, 0.38], error=0.1)).claim
    assert "rising" in verdict(run_with([0.3, 0.31, 0.38], error=0.001)).claim
    # Measured: SGD on batches of 64, level for 2,000 of 2,400 steps, is not on its way to anything.
    assert "rising" not in verdict(run_with([0.4, 0.8, 0.85, 0.84, 0.86, 0.85, 0.84, 0.85], error=0.01)).claim


def test_with_momentum_there_is_no_single_edge() -> None:
    header = {"optimizer": {"class": "SGD", "groups": [{"lr": 0.1, "momentum": 0.9}]}}
    between = verdict(run_with([0.2] * 6, rule="sgd: (2+2β)/η", header=header))
    below = verdict(run_with([0.01] * 6, rule="sgd: (2+2β)/η", header=header))
    assert "between the edges of small and of large batches" in between.claim
    assert "2604.14108" in between.meaning
    assert "Steps are within" in below.claim


def test_with_momentum_a_run_that_lost_all_was_thrown_from_below_one() -> None:
    """Measured: SGD with β = .9 on batches of 16; the ratio was 0.87 when the loss jumped from 0.94 to 5.7."""
    header = {"optimizer": {"class": "SGD", "groups": [{"lr": 0.3, "momentum": 0.9}]}}
    ratios, losses = [0.01, 0.6, 0.87, 0.8, *([0.01] * 6)], [2.3, 0.94, 5.7, 2.9, *([2.34] * 6)]
    finding = verdict(run_with(ratios, losses=losses, rule="sgd: (2+2β)/η", header=header))
    plain = verdict(run_with(ratios, losses=losses))
    assert (finding.level, plain.level) == ("fail", "ok")
    assert "has not come back" in finding.claim


def test_an_adaptive_optimizer_is_told_by_analogy_and_never_failed_on_it() -> None:
    adam = "adam: (2+2β1)/((1−β1)η)"
    assert "analogue" in verdict(run_with([1.0] * 6, rule=adam)).meaning
    assert verdict(run_with([1.8] * 6, rule=adam)).level == "warn"


REALISED = "realised update of Lion: ΔᵀHΔ / (−g·Δ) against 2"


@pytest.mark.parametrize(
    ("ratios", "losses", "level", "words"),
    [
        ([0.4, 0.5, 0.4], [1.0, 1.2, 1.4], "ok", "still lower the loss"),
        ([1.05, 1.02, 1.04], [1.0, 1.2, 1.4], "ok", "no longer lower the loss in the quadratic model"),
        ([3.0], [1.4], "ok", "no longer lower the loss in the quadratic model"),
        ([1.6, 1.7, 1.6], [1.0, 1.2, 1.4], "warn", "no longer lower the loss in the quadratic model, and it has risen"),
        # Steps of a fixed size around a minimum: the ratio is high, and nothing is lost.
        ([1.6, 1.7, 1.8], [1e-2, 1e-5, 1e-8], "ok", "no longer lower the loss in the quadratic model"),
    ],
)
def test_a_realised_update_claims_no_edge(ratios: list[float], losses: list[float], level: str, words: str) -> None:
    finding = verdict(run_with([], ratios, losses=losses, rule=REALISED, probe="sharpness"))
    assert finding.level == level
    assert words in finding.claim
    assert "edge of stability" not in finding.claim
    assert "beyond" not in finding.claim
    assert "lower bound" in finding.meaning or "from below" in finding.meaning


def test_a_realised_update_does_not_hide_a_divergence() -> None:
    run = run_with([], [0.4, 2.0, 3.0], rule=REALISED, probe="sharpness", losses=[1.0, 5.0, 50.0])
    assert verdict(run).level == "fail"


def test_caveats_stand_where_they_apply() -> None:
    fell = run_with([], [0.1, 0.6, 0.9, 0.5, 0.3, 0.2, 0.2], probe="sharpness")
    assert "With cross-entropy" in verdict(fell).meaning
    assert "With cross-entropy" not in verdict(run_with([], [0.1] * 6, probe="sharpness")).meaning

    def at_edge(thresholds: list[float]) -> str:
        steps = len(thresholds)
        return verdict(
            run_of({("sharpness", "ratio"): [1.0] * steps, ("sharpness", "threshold"): thresholds}, TERMS)
        ).meaning

    assert "during a warm-up" in at_edge([200.0, 100.0, 66.0, 50.0, 40.0])
    assert "The schedule moves the threshold" in at_edge([20.0, 30.0, 40.0, 80.0, 100.0])
    fixed = at_edge([20.0] * 5)
    assert "during a warm-up" not in fixed
    assert "The schedule" not in fixed
    assert "clipped" in verdict(run_with([1.8] * 6)).meaning


def test_directions_at_the_edge_are_counted() -> None:
    run = run_of({("sharpness", "ratio"): [1.0, 1.0], ("sharpness", "directions"): [2.0, 3.0]})
    assert verdict(run).claim.endswith("in 3 directions.")


def test_the_chapter_tells_the_number_and_draws_once() -> None:
    run = run_of(
        {
            ("batch_sharpness", "value"): [8.0, 18.0],
            ("batch_sharpness", "ratio"): [0.4, 0.9],
            ("batch_sharpness", "batch_size"): [32.0, 32.0],
            ("batch_sharpness", "noise_interaction"): [30.0, 40.0],
            ("sharpness", "ratio"): [0.2, 0.3],
            ("sharpness", "sharpness"): [4.0, 6.0],
        }
    )
    chapter = batch_sharpness.read(run)
    (finding,), (figure,) = chapter.findings, chapter.figures
    assert finding.level == "ok"
    assert "18.00 ± 0.01 for batches of 32" in finding.claim
    assert "3 times λmax" in finding.claim
    assert finding.evidence == (figure.id,)
    assert figure.table.rows[-1] == (10, 0.9, 0.01, 0.3)
    canvas = Canvas()
    figure.draw(canvas)
    assert {line.get_label() for line in canvas.axes[0].get_lines()} == {"batch sharpness", "λmax", "edge of stability"}


def test_nothing_measured_says_why_and_nothing_asked_says_nothing() -> None:
    assert batch_sharpness.read(Run({}, [])).findings == ()
    failed = Record(step=0, time=0.0, probe="batch_sharpness", name="measurement", status="failed", note="RuntimeError")
    (finding,) = batch_sharpness.read(Run({}, [failed])).findings
    assert finding.level == "unmeasured"


@pytest.mark.parametrize(
    "values", [[], [math.nan], [math.nan, math.inf], [0.0], [-1.0, -2.0], [1e30, 1e-30], [1.0, math.nan, 2.0]]
)
@pytest.mark.parametrize("error", [None, math.nan, math.inf, 0.1])
def test_strange_numbers_break_nothing(values: list[float], error: float | None) -> None:
    names = {
        "sharpness": ("ratio", "loss", "sharpness", "threshold", "curvature", "directions"),
        "batch_sharpness": ("value", "ratio", "threshold", "batch_size", "noise_interaction", "momentum"),
        "gradient_curvature": ("alignment", "subspace_share", "critical_lr", "trace_ratio"),
        "spectrum": ("trace", "largest"),
    }
    run = run_of({(probe, name): values for probe, some in names.items() for name in some}, error=error)
    for read in (sharpness.read, batch_sharpness.read, gradient_curvature.read):
        chapter = read(run)
        with warnings.catch_warnings():
            # A band with an infinite edge is matplotlib's to warn about.
            warnings.simplefilter("ignore", RuntimeWarning)
            for figure in chapter.figures:
                canvas = Canvas()
                figure.draw(canvas)
                canvas.draw_without_rendering()
    chapters = [read(run) for read in (sharpness.read, batch_sharpness.read, gradient_curvature.read)]
    cited = {name for chapter in chapters for finding in chapter.findings for name in finding.evidence}
    assert cited <= {figure.id for chapter in chapters for figure in chapter.figures}


def test_what_steps_with_momentum_meet_is_told_where_it_was_measured() -> None:
    value: dict[Key, list[float]] = {("batch_sharpness", "value"): [4.0]}
    told = batch_sharpness.read(run_of({**value, ("batch_sharpness", "momentum"): [9.0]})).findings[0].meaning
    assert "E[sᵀH_Bs/(s·g_B)] is 9.00 ± 0.01" in told
    assert "momentum" not in batch_sharpness.read(run_of(value)).findings[0].meaning
