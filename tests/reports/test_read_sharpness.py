"""Each regime of stability is told from its sick case, and the healthy ones raise nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy
import pytest
from matplotlib.figure import Figure as Canvas
from runs import Key, run_of

from probes.run import Record, Run
from probes.run.records import parse
from reports.finding import Finding
from reports.stability import sharpness
from reports.stability.regime import judge


def chapter_of(ratios: list[float], losses: list[float] | None = None) -> tuple[str, str, str]:
    run = run_of({("sharpness", "ratio"): ratios, ("sharpness", "loss"): losses or [1.0] * len(ratios)})
    verdict = judge(run.series("sharpness", "ratio"), run.series("sharpness", "loss"))
    assert verdict is not None
    finding = sharpness.read(run).findings[0]
    assert finding.id == "sharpness/regime"
    return verdict.regime, finding.level, finding.claim


@pytest.mark.parametrize(
    ("regime", "level", "ratios", "losses"),
    [
        ("edge", "ok", [0.55, 0.7, 0.9, 1.02, 1.05, 1.03, 1.04, 1.02], None),
        ("edge", "ok", [1.04], None),
        # An overshoot on the way, without a spike in the loss, is no catapult.
        ("edge", "ok", [0.6, 0.9, 1.34, 1.1, 1.05, 1.06, 1.04, 1.03], [1.0, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15]),
        ("catapult", "warn", [1.5, 1.8, 1.1, 0.9, 0.9, 0.9, 0.9], [1.0, 3.0, 2.0, 0.5, 0.4, 0.3, 0.2]),
        # A little above 1 is enough where the loss goes far above that of the first state,
        ("catapult", "warn", [1.25, 1.2, 0.7, 0.64, 0.64, 0.64, 0.64], [1.0, 25.0, 2.0, 0.5, 0.1, 0.01, 0.0]),
        # and not where a small loss only swings, as at the edge.
        ("edge", "ok", [0.5, 0.9, 1.2, 1.1, 1.05, 1.1, 1.05], [1.0, 0.5, 0.02, 0.05, 0.01, 0.03, 0.01]),
        # Where the loss is far above its lowest, and has stayed there, the edge is not the usual state.
        ("edge", "warn", [0.5, 0.9, 1.1, 1.0, 1.05, 1.1, 1.05], [2.3, 0.5, 0.3, 0.3, 1.2, 1.4, 1.3]),
        ("edge", "ok", [0.5, 0.9, 1.1, 1.0, 1.05, 1.1, 1.05], [2.3, 0.5, 0.3, 0.3, 0.3, 0.3, 1.3]),
        ("beyond", "fail", [0.9, 1.5, 1.6, 1.7, 1.8, 1.9], [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]),
        # Thrown so far that the network is flat and dead: a low ratio then is no recovery.
        ("blown up", "fail", [1.1, 3.5e7, 0.4, 0.4, 0.4, 0.4, 0.4], [2.3, 1e4, 2.3, 2.3, 2.3, 2.3, 2.3]),
        # Come down again, but most of what had been learnt is gone.
        ("blown up", "fail", [0.9, 5.0, 0.8, 0.8, 0.8, 0.8, 0.8], [2.3, 0.4, 3.0, 1.8, 1.8, 1.8, 1.8]),
        # Far beyond the edge for a while, back below it, and next to nothing learnt: measured, AdamW at 0.3,
        ("stalled", "warn", [0.2, 8.4, 39.0, 0.9, 0.1, 0.1, 0.02, 0.02], [2.3, 2.2, 1.9, 1.8, 1.9, 1.8, 2.0, 2.0]),
        # and a language model that is left with the frequencies of its tokens.
        ("stalled", "warn", [0.1, 0.5, 1.8, 1.1, 0.4, 0.3, 0.2, 0.1], [4.3, 3.24, 3.14, 3.1, 3.08, 3.0, 2.97, 2.94]),
        # A loss that fell well is no stall, nor is one without a long step, nor one at the end of a run that learnt.
        ("stable", "ok", [0.2, 8.4, 39.0, 0.9, 0.1, 0.1, 0.02, 0.02], [2.3, 2.2, 1.9, 1.8, 1.5, 1.2, 1.0, 0.9]),
        ("stable", "ok", [0.5, 0.6, 0.7, 0.5, 0.3, 0.2, 0.2, 0.2], [2.3, 2.2, 2.1, 2.1, 2.1, 2.0, 2.0, 2.0]),
        ("stable", "ok", [0.3, 0.3, 0.3, 0.3, 1.5, 0.3, 0.3, 0.3], [4.3, 3.9, 3.6, 3.3, 3.0, 2.9, 2.8, 2.8]),
        ("stable", "ok", [1.8, 0.6, 0.5, 0.4, 0.3, 0.3, 0.3, 0.3], [2.3, 2.2, 2.1, 2.1, 2.1, 2.0, 2.0, 2.0]),
        # Over and over again, and the median is just where an edge would be: measured, Adam at 0.1.
        ("swinging", "fail", [4.8, 0.2, 2.6, 1.24, 0.005, 4.0, 0.02], [2.3, 1.0, 1.5, 0.9, 0.8, 1.0, 0.6]),
        ("swinging", "fail", [4.8, 0.2, 2.6, 0.3, 0.005, 4.0, 0.02], [2.3, 1.0, 1.5, 0.9, 0.8, 1.0, 0.6]),
        # Once is no swinging, nor are swings around the edge that do not go far.
        ("edge", "ok", [0.5, 0.9, 0.95, 1.24, 0.4, 1.4, 1.0], [2.3, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5]),
        ("edge", "ok", [0.5, 0.9, 0.7, 1.35, 0.8, 1.35, 1.0], [2.3, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5]),
        ("beyond", "fail", [1.6], None),
        ("diverged", "fail", [0.9, 1.5, 2.0], [1.0, 5.0, 50.0]),
        ("diverged", "fail", [0.9, 1.5, 2.0], [1.0, 5.0, math.nan]),
        ("sharpening", "ok", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], None),
        ("stable", "ok", [0.1, 0.11, 0.1, 0.1], None),
        # Sharpness that rose and fell again (cross-entropy, late) is not sharpening.
        ("stable", "ok", [0.1, 0.3, 0.6, 0.5, 0.3, 0.2, 0.2, 0.2], None),
        ("stable", "ok", [0.0], None),
        # A rise far below the edge is not a rise towards it.
        ("stable", "ok", [0.002, 0.004, 0.006], None),
    ],
)
def test_the_regime_is_told(regime: str, level: str, ratios: list[float], losses: list[float] | None) -> None:
    told, its_level, claim = chapter_of(ratios, losses)
    assert (told, its_level) == (regime, level)
    assert f"step {10 * (len(ratios) - 1)}" in claim


def test_a_claim_carries_its_error() -> None:
    assert "1.04 ± 0.01" in chapter_of([0.5, 1.04])[2]


def test_nothing_measured_is_unmeasured_and_says_why() -> None:
    record = Record(step=0, time=0.0, probe="sharpness", name="measurement", status="failed", note="RuntimeError: no")
    (finding,) = sharpness.read(Run({}, [record])).findings
    assert (finding.level, finding.value) == ("unmeasured", None)
    assert "RuntimeError: no" in finding.claim


def test_a_loss_that_is_nan_from_the_start_is_a_failure_not_a_gap() -> None:
    run = run_of({("sharpness", "loss"): [math.nan]})
    assert sharpness.read(run).findings[0].level == "fail"


def test_ratios_that_are_not_finite_do_not_decide() -> None:
    regime, level, _ = chapter_of([0.3, math.nan, 0.3])
    assert (regime, level) == ("stable", "ok")


def test_figures_need_two_points_and_hold_the_values() -> None:
    one = run_of({("sharpness", "ratio"): [0.5], ("sharpness", "sharpness"): [2.0]})
    assert sharpness.read(one).figures == ()
    two = run_of({("sharpness", "ratio"): [0.5, 0.6], ("sharpness", "sharpness"): [2.0, 3.0]})
    figures = {figure.id: figure for figure in sharpness.read(two).figures}
    assert figures["sharpness-ratio"].table.rows == ((0, 0.5, None), (10, 0.6, None))
    cited = {name for finding in sharpness.read(two).findings for name in finding.evidence}
    assert cited <= figures.keys()


def test_a_divergence_is_put_down_to_the_step_only_where_the_ratio_says_so() -> None:
    def finding_of(ratios: list[float]) -> Finding:
        return sharpness.read(
            run_of({("sharpness", "ratio"): ratios, ("sharpness", "loss"): [1.0, 0.9, math.nan]})
        ).findings[0]

    by_step, by_data = finding_of([0.9, 1.6, 2.5]), finding_of([0.009, 0.01, 0.01])
    assert by_step.level == by_data.level == "fail"
    assert "not a number" in by_data.claim
    assert any("learning rate" in advice for advice in by_step.advice)
    assert not any("learning rate" in advice for advice in by_data.advice)
    assert any("data" in advice for advice in by_data.advice)


@pytest.mark.parametrize(
    ("mode", "layers", "level"), [("eval", 3, "unmeasured"), ("train", 3, "ok"), ("eval", 0, "ok")]
)
def test_a_batch_normalised_model_in_evaluation_mode_gets_no_verdict(mode: str, layers: int, level: str) -> None:
    """It is another function than the one that trains, by an order of magnitude."""
    header = {"objective": {"mode": mode, "batch_norm": layers}}
    run = run_of({("sharpness", "ratio"): [0.5, 1.0, 1.0], ("sharpness", "loss"): [1.0, 0.5, 0.4]}, header)
    finding = sharpness.read(run).findings[0]
    assert finding.level == level
    assert ('mode="train"' in " ".join(finding.advice)) == (level == "unmeasured")


def test_a_ratio_that_explodes_is_drawn_on_a_log_axis_and_another_is_not() -> None:
    for peak, scale in ((3e7, "log"), (1.3, "linear")):
        run = run_of({("sharpness", "ratio"): [0.5, peak, 0.4], ("sharpness", "loss"): [1.0, 2.0, 1.0]})
        canvas = Canvas()
        sharpness.read(run).figures[0].draw(canvas)
        assert canvas.axes[0].get_yscale() == scale


SCHEDULED: dict[Key, list[float]] = {
    ("sharpness", "ratio"): [0.3, 0.5, 0.4, 0.0, 0.0],
    ("sharpness", "loss"): [2.0, 1.0, 0.5, 0.4, 0.4],
    ("sharpness", "sharpness"): [3.0, 5.0, 8.0, 8.0, 8.0],
    ("sharpness", "curvature"): [3.0, 5.0, 8.0, 8.0, 8.0],
    ("sharpness", "threshold"): [10.0, 10.0, 20.0, math.inf, math.inf],
}


def written(quantities: Mapping[Key, list[float]]) -> Run:
    """As a folder gives it: no number that is not finite, and a note that says what it was."""
    records = [replace(one, note="sgd: 2/η") if one.name == "threshold" else one for one in run_of(quantities).records]
    return Run({}, [parse(one.line()) for one in records])


def test_a_rate_of_zero_at_the_end_of_a_schedule_says_nothing_about_stability() -> None:
    rates: dict[Key, list[float]] = {("learning_rate", "lr", "w"): [0.2, 0.2, 0.1, 0.0, 0.0]}
    without_threshold = {key: values for key, values in SCHEDULED.items() if key[1] != "threshold"}
    for run in (run_of(SCHEDULED), written(SCHEDULED), written({**without_threshold, **rates})):
        finding = sharpness.read(run).findings[0]
        assert "stability ratio 0.40 ± 0.01 at step 20" in finding.claim
        assert "the learning rate is 0 since step 30" in finding.claim
        assert "value was" not in finding.threshold + finding.claim
    assert sharpness.read(written(SCHEDULED)).findings[0].threshold.endswith("curvature 20 (sgd: 2/η)")
    running = sharpness.read(written({key: values[:3] for key, values in SCHEDULED.items()})).findings[0]
    assert "learning rate is 0" not in running.claim


def test_a_warm_up_that_begins_at_zero_is_no_end() -> None:
    run = run_of({("sharpness", "ratio"): [0.0, 0.5, 0.4], ("learning_rate", "lr", "w"): [0.0, 0.1, 0.1]})
    claim = sharpness.read(run).findings[0].claim
    assert "0.40 ± 0.01 at step 20, down from 0.5" in claim
    assert "learning rate is 0" not in claim


def test_a_run_that_was_only_seen_at_rest_has_no_verdict() -> None:
    only = {key: values[-1:] for key, values in SCHEDULED.items()}
    finding = sharpness.read(written(only)).findings[0]
    assert finding.level == "unmeasured"
    assert "learning rate was 0" in finding.claim


def test_the_threshold_is_drawn_where_it_is_finite_and_without_an_empty_name() -> None:
    figures = {figure.id: figure for figure in sharpness.read(written(SCHEDULED)).figures}
    assert [row[0] for row in figures["sharpness-ratio"].table.rows if row[1] is not None] == [0, 10, 20]
    canvas = Canvas()
    figures["sharpness-curvature"].draw(canvas)
    drawn = {line.get_label(): line.get_xdata() for line in canvas.axes[0].get_lines()}
    assert list(drawn) == ["sharpness λmax", "threshold"]
    assert numpy.asarray(drawn["threshold"]).tolist() == [0, 10, 20]
    empty = {**SCHEDULED, ("sharpness", "curvature"): [math.nan] * 5, ("sharpness", "threshold"): [math.inf] * 5}
    sharpness.read(written(empty)).figures[-1].draw(canvas := Canvas())
    assert [line.get_label() for line in canvas.axes[0].get_lines()] == ["sharpness λmax"]


@pytest.mark.parametrize("rule", ["realised update of Lion: ΔᵀHΔ / (−g·Δ) against 2", "sgd: 2/η"])
def test_a_trial_step_is_drawn_as_one_and_not_against_a_threshold_of_λmax(rule: str) -> None:
    quantities: dict[Key, list[float]] = {
        ("sharpness", "ratio"): [0.3, 0.5, 0.4],
        ("sharpness", "sharpness"): [3.0, 5.0, 8.0],
        ("sharpness", "curvature"): [0.6, 1.0, 0.8],
        ("sharpness", "threshold"): [2.0, 2.0, 2.0],
    }
    records = run_of(quantities).records
    run = Run({}, [replace(one, note=rule) if one.name == "threshold" else one for one in records])
    ratio, curvature = sharpness.read(run).figures
    texts, names, axes = [], [], []
    for figure in (ratio, curvature):
        canvas = Canvas()
        figure.draw(canvas)
        texts += [text.get_text() for text in canvas.axes[0].texts]
        axes += [canvas.axes[0].get_ylabel()]
        names += [line.get_label() for line in canvas.axes[0].get_lines()]
    trial = "realised" in rule
    assert texts == ["a step no longer lowers the loss" if trial else "edge of stability"]
    assert axes == ["ratio of a trial step" if trial else "stability ratio", "curvature"]
    assert ("threshold" in names, "preconditioned" in names) == (not trial, not trial)
    assert ("Stability" in ratio.title, "threshold" in curvature.title) == (not trial, not trial)
    assert ("no threshold" in curvature.caption) == trial


def test_two_checks_have_not_seen_the_run() -> None:
    def claims(number: int) -> list[str]:
        values = [0.3, 0.6, 0.5][-number:]
        run = run_of({("sharpness", "ratio"): values, ("sharpness", "sharpness"): [10 * value for value in values]})
        return [finding.claim for finding in sharpness.read(run).findings]

    assert all("from 2 checks" in claim and "highest" not in claim for claim in claims(2))
    assert not any("checks" in claim for claim in (*claims(3), *claims(1)))
    early = run_of({("sharpness", "ratio"): [0.5], ("sharpness", "loss"): [1.0, 0.5]})
    assert "from 1 check)" in sharpness.read(early).findings[0].claim


def test_the_first_number_that_is_none_is_named() -> None:
    gone: dict[Key, list[float | None]] = {
        ("sharpness", "ratio"): [2.0],
        ("sharpness", "loss"): [1.0, math.nan, math.nan, math.nan],
    }
    assert "not a number by step 10;" in sharpness.read(run_of(gone)).findings[0].claim
    training = [replace(one, step=one.step + 3) for one in run_of({("loop", "loss"): [math.nan]}).records]
    known = Run({}, [*run_of(gone).records, *training])
    assert "not a number by step 3;" in sharpness.read(known).findings[0].claim
    assert "curvature at step 0" in sharpness.read(known).findings[0].meaning
