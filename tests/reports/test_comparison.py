"""Two runs that differ in a known way are told apart, two that differ by noise are not, and strange runs are borne."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy
import pytest
from runs import Key, Values, run_of

from diagnostics import DiagnosticsError
from probes.run import Record, Run
from probes.run.reader import Series
from reports import Report
from reports.comparison.contender import contenders
from reports.comparison.differences import Difference, differences, judged
from reports.comparison.estimating import ENOUGH, closing, on_line, within
from reports.comparison.quantities import compared
from reports.document import Document, Sheet

STEPS = numpy.arange(0, 1000, 20)


def header(lr: float = 0.1, **changes: object) -> dict[str, object]:
    return {"optimizer": {"class": "SGD", "groups": [{"lr": lr, "momentum": 0.9, **changes}]}}


def planted(
    scale: float, seed: int, *, lr: float = 0.1, dead: float = 0.0, noise: float = 0.03, lowest: float = 0.05
) -> Run:
    """An exponential loss with noise, a stability ratio that goes to 0.5, and so many of 64 units dead at the end."""
    draw = numpy.random.default_rng(seed).standard_normal
    loss = (numpy.exp(-STEPS / scale) + lowest) * (1 + noise * draw(len(STEPS)))
    ratio = 0.5 * (1 - numpy.exp(-STEPS / 200)) + noise * draw(len(STEPS))
    quantities: dict[Key, Values] = {
        ("sharpness", "loss"): loss.tolist(),
        ("sharpness", "ratio"): ratio.tolist(),
        ("units", "units", "0"): [64.0] * len(STEPS),
        ("units", "dead", "0"): [dead] * len(STEPS),
        ("units", "dormant", "0"): [5.0] * len(STEPS),
        ("learning_rate", "relative_update", "w"): (1e-3 * (1 + noise * draw(len(STEPS)))).tolist(),
    }
    return run_of(quantities, header(lr), error=None, every=20)


def sheet(document: Document, id: str) -> Sheet:
    return next(one for one in document.sheets if one.id == id)


def found(*runs: Run) -> dict[str, Difference]:
    named = contenders(runs)
    return {one.name: one for one in differences(named, compared([one.run for one in named]))}


def test_a_planted_difference_is_found_and_named_with_the_run_that_is_worse_off() -> None:
    report = Report.from_runs(planted(150, 0), planted(150, 1, lr=0.3, dead=20, lowest=0.2))
    verdicts = {one.name: one.verdict for one in found(*report.runs).values()}
    assert verdicts == {
        "loss": "worse",
        "stability ratio": "unclear",
        "relative update": "unclear",
        "share of dead units": "worse",
        "share of dormant units": "equal",
    }
    assert "run 2 is worse off" in report.document.diagnosis
    assert "in loss (0.2" in report.document.diagnosis
    assert sheet(report.document, "settings").table.rows == (("lr", "0.1", "0.3"),)
    rows = {row[0]: row for row in sheet(report.document, "differences").table.rows}
    assert rows["loss"][4] == "✗ worse"
    assert str(rows["share of dead units"][3]).startswith("+0.31")


def test_the_other_way_round_the_verdicts_turn() -> None:
    turned = found(planted(150, 1, dead=20, lowest=0.2), planted(150, 0))
    assert turned["loss"].verdict == turned["share of dead units"].verdict == "better"


@pytest.mark.parametrize("first", range(0, 60, 2))
def test_nothing_separates_runs_that_differ_by_noise(first: int) -> None:
    both = found(planted(150, first), planted(150, first + 1))
    assert {one.verdict for one in both.values()} <= {"unclear", "equal"}


def test_the_sentence_on_equal_runs_says_so() -> None:
    diagnosis = Report.from_runs(planted(150, 0), planted(150, 1)).document.diagnosis
    assert "nothing puts one of run 1 and run 2 above the other" in diagnosis


def test_what_has_no_better_direction_is_different_and_no_more() -> None:
    low, high = (run_of({("ranks", "effective_rank", "a"): [value] * 20}) for value in (5.0, 9.0))
    assert found(low, high)["effective rank of features"].verdict == "different"
    assert "though they differ in effective rank" in Report.from_runs(low, high).document.diagnosis


def test_checks_of_different_spacing_are_compared_at_the_same_steps() -> None:
    often = run_of({("sharpness", "sharpness"): (2.0 + 0.01 * numpy.arange(0, 400, 5)).tolist()}, every=5, error=None)
    seldom = run_of(
        {("sharpness", "sharpness"): (2.0 + 0.01 * numpy.arange(0, 900, 18)).tolist()}, every=18, error=None
    )
    one = found(often, seldom)["sharpness λmax"]
    assert one.before is not None
    assert one.value is not None
    assert one.before.value == pytest.approx(one.value.value, rel=1e-3)
    assert one.where == "steps 198 to 395"


def test_a_line_gives_back_a_line_and_its_error_is_that_of_one_more_check() -> None:
    steps = numpy.arange(0, 100, 10)
    values = 3.0 - 0.02 * steps + numpy.array([1.0, -1.0] * 5)
    found = on_line(Series(steps, values, numpy.full(10, 0.5)), 45.0)
    fit, residual, *_ = numpy.polyfit(steps, values, 1, full=True)
    assert found.value == pytest.approx(numpy.polyval(fit, 45.0))
    assert found.error == pytest.approx(math.sqrt(residual[0] / 8 * (1 + 1 / 10) + 0.25))
    exponential = Series(steps, numpy.exp(-0.1 * steps), numpy.full(10, math.nan))
    assert on_line(exponential, 33.0, log=True).value == pytest.approx(math.exp(-3.3), rel=1e-12)


def test_the_last_half_of_the_common_steps_is_used_if_all_have_enough_checks_in_it() -> None:
    def series(every: int, last: int) -> Series:
        steps = numpy.arange(0, last, every)
        return Series(steps, numpy.ones(len(steps)), numpy.ones(len(steps)))

    assert closing([series(5, 1000), series(5, 2000)]) == (497.5, 995.0)
    assert closing([series(5, 1000), series(100, 1200)]) is None
    assert closing([series(5, 1000), series(5, 5 * (ENOUGH - 1))]) is None


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
def test_runs_that_wander_alike_are_not_told_apart(alike: float) -> None:
    """Autoregressive noise about one value: of 200 pairs hardly any is called better or worse."""
    draw = numpy.random.default_rng(0).standard_normal((200, 2, 60))
    walks = numpy.zeros_like(draw)
    for place in range(60):
        before = walks[..., place - 1] if place else draw[..., 0]
        walks[..., place] = alike * before + math.sqrt(1 - alike**2) * draw[..., place]
    steps, nothing = numpy.arange(60), numpy.full(60, math.nan)
    alarms = 0
    for pair in walks:
        series = [Series(steps, walk, nothing) for walk in pair]
        start, end = closing(series) or (0.0, 0.0)
        ends = [on_line(within(one, start, end), (start + end) / 2) for one in series]
        alarms += judged(*ends, "lower") in ("better", "worse")
    assert alarms <= 2


def test_a_loss_that_ran_away_is_worse_without_a_number() -> None:
    gone = planted(150, 1)
    loss = [Record(1000 + step, 0.0, "sharpness", "loss", value=math.nan) for step in (0, 20)]
    one = found(planted(150, 0), Run(gone.header, [*gone.records, *loss]))["loss"]
    assert (one.verdict, one.value) == ("worse", None)
    assert one.where == "not a number in run 2 from step 1000 on"


def test_a_loss_that_is_running_away_is_worse_whatever_its_scatter() -> None:
    wild = run_of({("sharpness", "loss"): [1e3 ** (place + place % 2) for place in range(12)]}, error=None)
    calm = run_of({("sharpness", "loss"): [0.9**place for place in range(12)]}, error=None)
    assert found(calm, wild)["loss"].verdict == "worse"


def test_losses_of_other_examples_are_different_and_never_better() -> None:
    runs = [planted(150, 0), planted(150, 1, lowest=0.5)]
    for run, terms in zip(runs, (100.0, 200.0), strict=True):
        run.header["objective"] = {"loss_terms": terms, "mode": "eval", "batches": 1, "parameters": 10}
    assert found(*runs)["loss"].verdict == "different"
    document = Report.from_runs(*runs).document
    assert "of other examples" in sheet(document, "matched").otherwise


def test_one_run_given_twice_is_named_and_separated_by_nothing(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", planted(150, 0))
    shutil.copytree(folder, tmp_path / "copy")
    for other, name in ((folder, "a (2)"), (tmp_path / "copy", "copy")):
        report = Report.from_runs(folder, other)
        assert report.document.diagnosis == "a was given twice: nothing can separate a run from itself."
        assert [row[0] for row in sheet(report.document, "runs").table.rows] == ["a", name]
        assert {str(row[4]) for row in sheet(report.document, "differences").table.rows} == {"= equal"}


def saved(folder: Path, run: Run) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"schema_version": 1, "id": folder.name, **run.header}))
    (folder / "records.jsonl").write_text("".join(one.line() for one in run.records))
    return folder


def test_a_torn_run_is_compared_over_the_steps_that_it_has(tmp_path: Path) -> None:
    whole, torn = (saved(tmp_path / name, planted(150, seed)) for seed, name in enumerate(("whole", "torn")))
    lines = (torn / "records.jsonl").read_bytes().splitlines(keepends=True)
    (torn / "records.jsonl").write_bytes(b"".join(lines[:40]) + lines[40][:25])
    one = next(iter(found(Run.open(whole), Run.open(torn)).values()))
    assert one.value is not None
    assert one.where.endswith("to 780")


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([Run({}, []), Run({}, [])], "no quantity in common"),
        ([planted(150, 0), Run({}, [])], "no quantity in common"),
        ([run_of({("ranks", "spread", "a"): [1.0]}), run_of({("churn", "changed"): [0.1]})], "no quantity in common"),
        ([run_of({("sharpness", "loss"): [math.nan] * 20})] * 2, "given twice"),
        (
            [run_of({("sharpness", "loss"): [math.nan] * 20}), planted(150, 0)],
            "run 1 is worse off: training has diverged; it is behind",
        ),
        ([run_of({("sharpness", "loss"): [0.9] * 7})] + [run_of({("loop", "loss"): [0.9]})] * 11, "too few checks"),
    ],
    ids=["empty", "one empty", "nothing in common", "nan twice", "nan", "twelve"],
)
def test_strange_runs_still_give_every_kind_of_report(runs: list[Run], said: str, tmp_path: Path) -> None:
    report = Report.from_runs(*runs)
    assert any(said in text for text in (report.document.diagnosis, *(one.claim for one in report.findings)))
    for ending in ("html", "pdf", "json"):
        assert report.save(tmp_path / f"report.{ending}").stat().st_size > 500
    assert len(str(report)) > 20


@pytest.mark.parametrize("number", [0, 1, 13])
def test_too_few_and_too_many_runs_are_one_clear_error(number: int) -> None:
    with pytest.raises(DiagnosticsError, match=f"given: {number}; expected: 2 to 12"):
        Report.from_runs(*[Run({}, [])] * number)


def test_a_folder_without_a_run_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DiagnosticsError, match="is not a run folder"):
        Report.from_runs(tmp_path, tmp_path / "none")


def test_each_run_has_one_colour_and_one_name_in_every_figure() -> None:
    runs = contenders([planted(150, seed) for seed in range(8)])
    assert len({(one.color, one.dashed) for one in runs}) == 8
    document = Report.from_runs(*(one.run for one in runs)).document
    for figure in document.figures:
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas()
        figure.draw(canvas)
        for axes in canvas.get_axes():
            drawn = {str(line.get_label()): line for line in axes.get_lines() if line.get_label()[0] != "_"}
            for one in runs:
                assert drawn[one.name].get_color() == one.color
                assert drawn[one.name].is_dashed() == one.dashed


def test_only_some_chapters_and_always_the_loss() -> None:
    report = Report.from_runs(planted(150, 0), planted(150, 1), only=("units",))
    names = {row[0] for row in sheet(report.document, "differences").table.rows}
    assert names == {"loss", "share of dead units", "share of dormant units"}


def test_runs_that_were_set_alike_and_fared_differently_are_named() -> None:
    runs = {name: planted(150, seed) for seed, name in enumerate("abc")}
    assert "comparison/set_alike" not in {one.id for one in Report.from_runs(*runs.values()).findings}, "all are well"
    runs["b"] = planted(150, 1, dead=40.0)
    runs["c"].header["optimizer"] = {"class": "Adam", "groups": [{"lr": 0.1}]}
    for name, run in runs.items():
        run.header["argv"] = [f"{name}.py"]
    found = {one.id: one for one in Report.from_runs(*runs.values()).findings}["comparison/set_alike"]
    assert found.claim == "run 1 and run 2 were set alike and fared differently: run 1 OK and run 2 Fail."
    assert "40 of 64 units" in found.advice[0]


def test_settings_come_last_and_only_those_that_differ() -> None:
    one, other = planted(150, 0), planted(150, 1)
    one.header["versions"], other.header["versions"] = {"torch": "2.10"}, {"torch": "2.13"}
    other.header["optimizer"] = {"class": "Adam", "groups": [{"lr": 0.1, "betas": [0.9, 0.999], "amsgrad": False}]}
    sheets = Report.from_runs(one, other).document.sheets
    assert [one.id for one in sheets] == ["runs", "differences", "matched", "settings"]
    assert sheets[-1].table.rows == (
        ("optimizer", "SGD", "Adam"),
        ("betas", None, "[0.9, 0.999]"),
        ("momentum", "0.9", None),
        ("version of torch", "2.10", "2.13"),
    )
