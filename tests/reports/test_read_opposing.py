"""A few examples that carry a step are told of; it is warned of where they also oppose each other and keep swinging."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from matplotlib.figure import Figure as Canvas
from runs import Key, run_of

from diagnostics import Objective
from probes import Monitor, OpposingSignals
from probes.run import Record, Run
from reports import opposing
from reports.chapter import Chapter
from reports.demo.digits import digits
from reports.finding import Finding

SWINGING = {"carried": 0.8, "gaussian": 0.07, "cosine": -0.95, "alternation": -0.97, "growth": 1.0}


def run_with(*checks: dict[str, float], groups: bool = True) -> Run:
    quantities: dict[Key, list[float | None]] = {
        ("opposing", name): [{**SWINGING, **check}[name] for check in checks] for name in SWINGING
    }
    run = run_of(quantities)
    if not groups:
        return run
    changes = numpy.linspace(-0.1, 0.1, 200)
    changes[[17, 63]], changes[[110, 180]] = 5.0, -4.0
    arrays = {"changes": changes, "rising": numpy.array([17, 63]), "falling": numpy.array([110, 180])}
    records = [
        Record(step=step, time=0.0, probe="opposing", name=name, value=float(len(array)))
        for step in range(0, 10 * len(checks), 10)
        for name, array in arrays.items()
    ]
    stored = {("opposing", name): array for name, array in arrays.items()}
    return Run({}, [*run.records, *records], arrays=stored)


def groups_of(chapter: Chapter) -> Finding:
    (finding,) = chapter.findings
    assert finding.id == "opposing/groups"
    assert "2311.04163" in finding.citation
    return finding


def test_opposing_groups_that_swing_are_warned_of_by_name() -> None:
    finding = groups_of(opposing.read(run_with({}, {})))
    assert finding.level == "warn"
    assert "4 examples of 200 carry 80% of the change of the losses in a step (7% if" in finding.claim
    assert "2 of 2 checks are so" in finding.claim
    assert "17, 63 rise while 110, 180 fall" in finding.advice[0]
    assert "labels" in finding.advice[0]
    assert "lower learning rate" in finding.advice[1]
    assert finding.value is not None
    assert float(finding.value) == 0.8


@pytest.mark.parametrize(
    "healthy",
    [
        {"carried": 0.4},
        {"carried": 0.6, "gaussian": 0.4},
        {"cosine": -0.3},
        {"cosine": math.nan},
        {"alternation": 0.9},
        {"alternation": math.nan},
        {"growth": 0.5},
    ],
    ids=str,
)
def test_any_of_it_alone_is_told_and_not_alleged(healthy: dict[str, float]) -> None:
    finding = groups_of(opposing.read(run_with(healthy)))
    assert (finding.level, finding.advice) == ("ok", ())
    assert "swing from step to step" not in finding.claim
    assert "nan" not in finding.claim


def test_swings_come_and_go_and_those_of_the_last_checks_count() -> None:
    calm = {"alternation": 0.9}
    finding = groups_of(opposing.read(run_with(calm, {}, calm, calm)))
    assert finding.level == "warn"
    assert "at step 10; 1 of 4 checks are so" in finding.claim
    assert groups_of(opposing.read(run_with({}, *[calm] * 5))).level == "ok"


def test_many_examples_that_swing_together_are_the_edge_and_no_few() -> None:
    finding = groups_of(opposing.read(run_with({"carried": 0.1})))
    assert "many examples have part in it" in finding.meaning


def test_the_figure_shows_both_ends_and_lists_the_examples() -> None:
    (figure,) = opposing.read(run_with({})).figures
    assert figure.table.rows == (
        (17, "rising", 5.0),
        (63, "rising", 5.0),
        (110, "falling", -4.0),
        (180, "falling", -4.0),
    )
    canvas = Canvas()
    figure.draw(canvas)
    (axes,) = canvas.axes
    line, rising, falling, _ = axes.lines
    assert len(line.get_xdata()) == 200
    assert sorted(rising.get_xdata()) == [198, 199]
    assert sorted(falling.get_xdata()) == [0, 1]


def test_without_arrays_or_with_damaged_ones_the_numbers_are_still_told() -> None:
    chapter = opposing.read(run_with({}, groups=False))
    assert groups_of(chapter).claim.startswith(
        "Two opposing groups of examples swing from step to step: a few examples"
    )
    assert chapter.figures == ()
    run = run_with({})
    run._arrays["opposing", "rising"] = numpy.array([17, 5000])
    assert opposing.read(run).figures == ()


def test_what_was_not_measured_says_why_and_nobody_asked_means_nothing() -> None:
    record = Record(step=0, time=0.0, probe="opposing", name="carried", status="skipped", note="too few examples")
    finding = groups_of(opposing.read(Run({}, [record])))
    assert finding.level == "unmeasured"
    assert "too few examples" in finding.claim
    assert opposing.read(Run({}, [])) == Chapter()


@pytest.mark.parametrize(("planted", "lr", "level"), [(True, 3.2, "warn"), (True, 0.1, "ok"), (False, 3.2, "ok")])
def test_a_whole_run_from_data_to_verdict(planted: bool, lr: float, level: str, tmp_path: Path) -> None:
    """Logistic regression; 2 % of the examples share a large feature and want opposite answers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    y = (x[:, 0] + torch.randn(200, generator=generator) > 0).float()
    x[:, 5] = 0.0
    if planted:
        x[[17, 63, 110, 180], 5] = 14.0
        y[[17, 63]], y[[110, 180]] = 1.0, 0.0
    model = torch.nn.Linear(6, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    loss = torch.nn.BCEWithLogitsLoss()
    objective = Objective(model, loss, (x, y[:, None]))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    out = tmp_path / "run"
    with Monitor(model, optimizer, objective, out=out, probes=[OpposingSignals()], every=100, budget=None):
        for _ in range(200):
            optimizer.zero_grad()
            loss(model(x), y[:, None]).backward()
            optimizer.step()
    chapter = opposing.read(Run.open(out))
    finding = groups_of(chapter)
    assert finding.level == level
    if level == "warn":
        told = finding.advice[0].partition(".")[0].partition(": ")[2]
        assert {frozenset(half.split()[:2]) for half in told.replace(",", "").split(" while ")} == {
            frozenset({"17", "63"}),
            frozenset({"110", "180"}),
        }


@pytest.mark.parametrize(("optimizer", "lr"), [(torch.optim.SGD, 0.5), (torch.optim.AdamW, 0.01)])
def test_mini_batches_that_throw_a_few_hard_digits_about_are_no_alarm(
    optimizer: Any, lr: float, tmp_path: Path
) -> None:
    """Late in training a few losses are all that is left, and each batch moves them: real steps would seem to swing."""
    torch.manual_seed(0)
    x, y = digits(600)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    loss, steps = torch.nn.CrossEntropyLoss(), optimizer(model.parameters(), lr=lr)
    out = tmp_path / "run"
    with Monitor(
        model, steps, Objective(model, loss, (x, y)), out=out, probes=[OpposingSignals()], every=60, budget=None
    ):
        for _ in range(300):
            batch = torch.randint(len(x), (32,))
            steps.zero_grad()
            loss(model(x[batch]), y[batch]).backward()
            steps.step()
    run = Run.open(out)
    assert run.series("opposing", "carried").values[-1] > 3 * run.series("opposing", "gaussian").values[-1]
    assert groups_of(opposing.read(run)).level == "ok"
