"""Readings of ranks: inputs that become one are named where they do; networks that learn are accused of nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import run_of
from torch import nn

from diagnostics import Objective
from probes import FeatureRank, Monitor
from probes.run import Record, Run
from reports import Report, ranks
from reports.demo.digits import digits
from reports.finding import Finding

PLACES = ("1", "3", "5")
Values = dict[str, list[float]]


def run_with(spread: Values, srank: Values | None = None, classes: float | None = 10.0, units: float = 64.0) -> Run:
    """Healthy but for what is given: features of rank 30 that differ by half their norm."""
    checks = len(next(iter(spread.values())))
    quantities: dict[tuple[str, ...], list[float]] = {}
    for place in PLACES:
        quantities["ranks", "samples", place] = [500.0] * checks
        quantities["ranks", "units", place] = [units] * checks
        quantities["ranks", "effective_rank", place] = [16.0] * checks
        quantities["ranks", "srank", place] = (srank or {}).get(place, [30.0] * checks)
        quantities["ranks", "spread", place] = spread.get(place, [0.5] * checks)
    if classes is not None:
        quantities["ranks", "classes"] = [classes] * checks
    return run_of(quantities)


def only(run: Run) -> Finding:
    (finding,) = ranks.read(run).findings
    return finding


def test_features_that_become_the_same_are_named_from_where_on_and_since_when() -> None:
    finding = only(run_with({"3": [0.5, 0.5, 1e-4], "5": [0.5, 1e-4, 1e-5]}))
    assert (finding.id, finding.level) == ("ranks/collapse", "fail")
    assert "the same up to 1e-05 of their norm for every input from 3 to the last of 3 places, since step 10" in (
        finding.claim
    )
    assert finding.evidence == ("ranks-effective",)
    assert finding.advice


def test_a_gate_on_the_way_that_stands_still_is_no_collapse() -> None:
    assert only(run_with({"3": [1e-4, 1e-4]})).level == "ok"


def test_what_has_recovered_is_no_collapse() -> None:
    assert only(run_with({"5": [1e-4, 1e-4, 0.3]})).level == "ok"


def test_the_start_alone_warns_and_the_start_that_lasts_fails_both_with_advice_on_initialisation() -> None:
    for checks, level in ((1, "warn"), (3, "fail")):
        finding = only(run_with({"5": [1e-4] * checks}))
        assert (finding.id, finding.level) == ("ranks/collapse_at_start", level)
        assert "initial weights" in finding.advice[0]


def test_features_that_are_zero_are_the_same_too() -> None:
    run = run_with({"1": [0.5, 0.5]})
    records = [r for r in run.records if not (r.layer == "5" and r.name == "spread" and r.step == 10)]
    note = "undetermined: the features are all zero, and zero has no rank"
    records.append(Record(step=10, time=0.0, probe="ranks", name="spread", layer="5", status="skipped", note=note))
    finding = only(Run({}, records))
    assert (finding.id, finding.value) == ("ranks/collapse", None)
    assert "Features are zero for every input from 5" in finding.claim


@pytest.mark.parametrize(("classes", "rank", "told"), [(10, 8, True), (10, 9, False), (100, 8, True), (2, 1, False)])
def test_fewer_directions_than_classes_warn_where_there_were_more(classes: int, rank: int, told: bool) -> None:
    finding = only(run_with({"1": [0.5, 0.5]}, {"5": [30.0, float(rank)]}, classes=float(classes)))
    assert (finding.id, finding.level) == (("ranks/low", "warn") if told else ("ranks/features", "ok"))
    if told:
        assert f"{rank} directions at 5, fewer than {classes} classes differ in, and it was 30" in finding.claim


@pytest.mark.parametrize(
    "run",
    [
        run_with({"1": [0.5, 0.5]}, {"5": [3.0, 3.0]}),
        run_with({"1": [0.5, 0.5]}, {"3": [30.0, 3.0]}),
        run_with({"1": [0.5, 0.5]}, {"5": [30.0, 3.0]}, classes=None),
        run_with({"1": [0.5, 0.5]}, {"5": [30.0, 3.0]}, units=12.0),
    ],
    ids=["low from the start", "on the way only", "no classes", "a narrow layer"],
)
def test_a_low_rank_is_no_fault_by_itself(run: Run) -> None:
    assert only(run).level == "ok"


def test_tokens_that_have_become_one_warn() -> None:
    run = run_with({"1": [0.5, 0.5]})
    for values, id in (([0.5, 0.2], "ranks/features"), ([0.5, 1e-4], "ranks/tokens")):
        tokens = run_of({("ranks", "token_residual", "layers.1"): values})
        finding = only(Run({}, [*run.records, *tokens.records]))
        assert finding.id == id
    assert finding.level == "warn"


def test_the_figure_is_a_share_of_the_units_and_needs_two_checks() -> None:
    chapter = ranks.read(run_with({"1": [0.5, 0.5]}))
    assert [figure.id for figure in chapter.figures] == ["ranks-effective"]
    assert chapter.figures[0].table.rows[0] == ("1", 64, 16.0, 16.0, 0, 16.0)
    assert "25.0%" in chapter.figures[0].alt
    assert ranks.read(run_with({"1": [0.5]})).figures == ()


def test_nothing_measured_is_unmeasured_and_nothing_asked_is_silence() -> None:
    skipped = Record(step=0, time=0.0, probe="ranks", name="samples", status="skipped", note="ran no non-linearity")
    finding = only(Run({}, [skipped]))
    assert (finding.level, "ran no non-linearity" in finding.claim) == ("unmeasured", True)
    assert ranks.read(Run({}, [])).findings == ()


def trained(model: nn.Sequential, out: Path, classes: int = 10, steps: int = 150, **settings: float) -> Report:
    """SGD on the digits, watched."""
    images, labels = digits(300)
    labels = labels % classes
    optimizer = torch.optim.SGD(model.parameters(), **{"lr": 0.1, **settings})
    objective = Objective(model, nn.CrossEntropyLoss(), (images, labels))
    with Monitor(model, optimizer, objective, out=out, probes=[FeatureRank()], every=50, budget=None):
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return Report.from_run(out)


def layers(depth: int, classes: int = 10, norm: bool = False) -> nn.Sequential:
    parts: list[nn.Module] = []
    for index in range(depth):
        parts += [nn.Linear(64 if index == 0 else 48, 48), *([nn.LayerNorm(48)] if norm else []), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(48, classes))


def of_ranks(report: Report) -> list[tuple[str, str]]:
    return [(finding.id, finding.level) for finding in report.findings if finding.id.startswith("ranks/")]


def test_decay_that_outweighs_the_gradient_collapses_the_features(tmp_path: Path) -> None:
    report = trained(layers(4), tmp_path / "run", weight_decay=0.3)
    assert of_ranks(report) == [("ranks/collapse", "fail")]
    report.save(tmp_path / "report.html")


def test_a_deep_network_that_begins_collapsed_does_not_train(tmp_path: Path) -> None:
    assert of_ranks(trained(layers(16), tmp_path / "run")) == [("ranks/collapse_at_start", "fail")]


@pytest.mark.parametrize("kind", ["plain", "two classes", "normalised and deep", "gentle decay"])
def test_networks_that_learn_are_accused_of_nothing(kind: str, tmp_path: Path) -> None:
    classes = 2 if kind == "two classes" else 10
    model = layers(8, norm=True) if kind == "normalised and deep" else layers(2, classes)
    decay = {"plain": 0.0, "two classes": 1e-2, "normalised and deep": 0.0, "gentle decay": 5e-3}[kind]
    report = trained(model, tmp_path / "run", classes, steps=300, momentum=0.9, weight_decay=decay)
    assert of_ranks(report) == [("ranks/features", "ok")]
