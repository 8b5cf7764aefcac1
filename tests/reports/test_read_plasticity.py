"""Plasticity is alleged lost only where all of the interval says so, with what went along with it; a network that was
trained in the ordinary way raises nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure as Canvas
from runs import run_of
from torch import nn

from diagnostics import Objective
from probes import Churn, Monitor, Plasticity, Units
from probes.run import Record, Run
from reports import Report, churn, plasticity
from reports.demo.digits import digits

P = "plasticity"


def shares(ratio: float, error: float = 0.02, fresh: float = 0.9) -> dict[tuple[str, ...], list[float]]:
    return {
        (P, "ratio"): [1.0, ratio],
        (P, "fitted"): [fresh, ratio * fresh],
        (P, "fresh_fitted"): [fresh, fresh],
    }


def read(quantities: dict[tuple[str, ...], list[float]], error: float = 0.02) -> plasticity.Finding:
    (finding,) = plasticity.read(run_of(quantities, error=error)).findings  # type: ignore[arg-type]
    return finding


@pytest.mark.parametrize(
    ("ratio", "error", "level"),
    [
        (1.1, 0.02, "ok"),
        (0.85, 0.02, "ok"),
        (0.7, 0.02, "warn"),
        (0.7, 0.2, "ok"),  # the interval reaches past the threshold
        (0.3, 0.02, "fail"),
        (0.45, 0.1, "warn"),
        (-0.2, 0.1, "fail"),  # worse than one prediction for all
    ],
)
def test_the_interval_decides(ratio: float, error: float, level: str) -> None:
    finding = read(shares(ratio), error)
    assert (finding.id, finding.level) == ("plasticity/lost", level)
    assert "at step 10" in finding.claim
    assert bool(finding.advice) == (level != "ok")
    assert finding.evidence == ("plasticity",)


def test_a_fresh_network_that_hardly_learns_decides_nothing() -> None:
    finding = read(shares(0.1, fresh=0.1))
    assert finding.level == "unmeasured"
    assert "too little to compare" in finding.claim


DEAD = {("units", "units", "3"): [64.0, 64.0], ("units", "dead", "3"): [0.0, 60.0]}
ALIVE = {("units", "units", "3"): [64.0, 64.0], ("units", "dead", "3"): [0.0, 2.0]}
FALLEN = {("ranks", "effective_rank", "3"): [12.0, 1.0]}
GROWN = {("learning_rate", "weight_norm", "0.weight"): [2.0, 9.0]}
SAME = {("learning_rate", "weight_norm", "0.weight"): [2.0, 2.5]}


def test_the_likely_cause_is_named_from_what_other_probes_saw() -> None:
    everything = read({**shares(0.1), **DEAD, **FALLEN, **GROWN}).meaning
    assert "60 of 64 units at layer 3 are dead" in everything
    assert "effective rank of 1, from 12" in everything
    assert "0.weight has grown 4.5-fold" in everything
    assert "Not measured" not in everything
    some = read({**shares(0.1), **ALIVE, **GROWN}).meaning
    assert "Likely cause: the norm of 0.weight" in some
    assert "dead" not in some.partition("Likely cause")[2]
    assert "Not measured in this run: the rank of features." in some
    none = read({**shares(0.1), **ALIVE, **SAME}).meaning
    assert "does not come from what was looked at: dead units and the size of weights" in none
    nobody = read(shares(0.1)).meaning
    assert "Not measured in this run: dead units, the rank of features, the size of weights." in nobody


def test_a_new_network_that_has_lost_it_is_initialised_otherwise() -> None:
    quantities = {**shares(0.1), (P, "ratio"): [0.3, 0.1]}
    assert "fresh=make_model" in read(quantities).advice[0]
    assert "fresh=" not in read(shares(0.1)).advice[0]


def test_what_was_not_measured_is_not_green_also_after_a_check_that_was_fine() -> None:
    skipped = Record(step=20, time=0.0, probe=P, name="ratio", status="skipped", note="the loss is not finite")
    for before in ([], run_of(shares(1.0)).records):  # type: ignore[arg-type]
        (finding,) = plasticity.read(Run({}, [*before, skipped])).findings
        assert finding.level == "unmeasured"
        assert "not finite" in finding.claim
    assert plasticity.read(Run({}, [])).findings == ()


def test_dead_units_that_fail_stand_before_it() -> None:
    findings = Report.from_run(run_of({**shares(0.1), **DEAD}, error=0.02)).findings  # type: ignore[arg-type]
    assert [finding.id for finding in findings[:2]] == ["units/dead", "plasticity/lost"]
    assert "60 of 64 units" in findings[1].advice[0]


def test_an_ordinary_run_raises_nothing_and_a_killed_one_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images, labels = digits(300)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    objective = Objective(model, nn.CrossEntropyLoss(), (images[:150], labels[:150]))
    probes = [Units(), Plasticity(steps=40, lr=1e-2, draws=2), Churn()]
    with Monitor(model, optimizer, objective, out=tmp_path / "well", probes=probes, every=40, budget=None):
        for step in range(120):
            batch = torch.arange(step * 50, step * 50 + 50) % 300
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    report = Report.from_run(tmp_path / "well")
    levels = {finding.id: finding.level for finding in report.findings}
    assert levels["plasticity/lost"] == levels["churn/changed"] == "ok"
    assert not {"fail", "warn"} & set(levels.values())
    for figure in report.document.figures:
        figure.draw(Canvas())
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    with Monitor(model, optimizer, objective, out=tmp_path / "killed", probes=probes[:2], budget=None):
        pass
    lost = next(one for one in Report.from_run(tmp_path / "killed").findings if one.id == "plasticity/lost")
    assert lost.level == "fail"
    assert "32 of 32 units" in lost.meaning


@pytest.mark.parametrize(
    ("note", "advised"), [("no module initialises p; pass fresh=lambda: make_model()", 0), ("it ran away", 1)]
)
def test_more_steps_are_advised_only_where_they_could_help(note: str, advised: int) -> None:
    skipped = Record(step=0, time=0.0, probe=P, name="ratio", status="skipped", note=f"undetermined: {note}")
    (finding,) = plasticity.read(Run({}, [skipped])).findings
    assert finding.claim == f"Plasticity was not measured: {note}."
    assert len(finding.advice) == advised


def test_churn_is_told_and_never_alleged() -> None:
    run = run_of({("churn", "changed"): [0.9, 0.05], ("churn", "relative_change"): [2.0, 0.1]})
    chapter = churn.read(run)
    (finding,) = chapter.findings
    assert finding.level == "ok"
    assert "changed 5.00% of predictions" in finding.claim
    chapter.figures[0].draw(Canvas())
    (moved,) = churn.read(run_of({("churn", "relative_change"): [0.2]})).findings
    assert "moved outputs by 0.2" in moved.claim
    skipped = Record(step=0, time=0.0, probe="churn", name="changed", status="skipped", note="no update was kept")
    assert churn.read(Run({}, [skipped])).findings[0].level == "unmeasured"
    assert churn.read(Run({}, [])).findings == ()
