"""From records to a Document, and from there to files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from runs import Key, run_of

from diagnostics import DiagnosticsError
from probes.run import Record, Run
from reports import Report
from reports.finding import LEVELS

HEALTHY = run_of(
    {
        ("sharpness", "ratio"): [0.5, 0.6],
        ("sharpness", "loss"): [1.0, 0.5],
        ("sharpness", "sharpness"): [2.0, 2.4],
        ("monitor", "training_seconds"): [10.0],
        ("monitor", "seconds", "sharpness"): [1.0],
    }
)


def test_findings_come_worst_first_and_the_worst_is_the_diagnosis() -> None:
    run = Run({}, [*HEALTHY.records, *run_of({("units", "units", "3"): [10.0], ("units", "dead", "3"): [9.0]}).records])
    report = Report.from_run(run)
    ranks = [LEVELS.index(finding.level) for finding in report.findings]
    assert ranks == sorted(ranks)
    assert report.document.level == "fail"
    assert report.document.diagnosis.startswith("9 of 10 units at layer 3")


def test_a_healthy_run_is_told_to_be_one() -> None:
    report = Report.from_run(HEALTHY)
    assert report.document.level == "ok"
    assert report.document.diagnosis.startswith("Nothing calls for action.")
    assert dict(report.document.facts)["cost of measuring"] == "1.0 s beside 10.0 s of training"


def test_an_empty_run_claims_nothing() -> None:
    document = Report.from_run(Run({}, [])).document
    assert document.level == "unmeasured"
    assert "Nothing" in document.diagnosis


def test_what_was_not_measured_never_looks_green_and_is_listed() -> None:
    failures = [
        Record(step=step, time=0.0, probe="sharpness", name="measurement", status="failed", note="RuntimeError: no")
        for step in (0, 10, 20)
    ]
    report = Report.from_run(Run({}, failures))
    assert report.document.level == "unmeasured"
    assert report.document.skipped.rows == (("sharpness", "failed", "3 times, steps 0 to 20", "RuntimeError: no"),)


@pytest.mark.parametrize("values", [[], [math.nan], [math.nan, math.inf], [0.0], [-1.0, -2.0], [1e30, 1e-30]])
def test_strange_runs_still_give_every_kind_of_report(values: list[float], tmp_path: Path) -> None:
    names = ("ratio", "loss", "sharpness", "threshold", "curvature")
    quantities: dict[Key, list[float]] = {("sharpness", name): values for name in names}
    for name in ("units", "dead", "dormant", "saturated", "linearised"):
        quantities["units", name, "$layer<1>"] = values
    for name in ("relative_update", "lr", "effective", "epsilon_share"):
        quantities["learning_rate", name, "w"] = values
    report = Report.from_run(run_of(quantities, error=None))
    for ending in ("html", "pdf", "json"):
        assert report.save(tmp_path / f"report.{ending}").stat().st_size > 500
    assert len(str(report)) > 20
    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))


def test_only_some_chapters() -> None:
    assert Report.from_run(HEALTHY, only=("units",)).findings == ()
    assert {finding.id.split("/")[0] for finding in Report.from_run(HEALTHY, only=("sharpness",)).findings} == {
        "sharpness"
    }


def test_bad_targets_are_one_clear_error(tmp_path: Path) -> None:
    report = Report.from_run(HEALTHY)
    with pytest.raises(DiagnosticsError, match=r"\.html, \.pdf or \.json"):
        report.save(tmp_path / "report.docx")
    (tmp_path / "file").touch()
    with pytest.raises(DiagnosticsError, match="cannot be written"):
        report.save(tmp_path / "file" / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_long_run_stays_small_and_keeps_its_spike(tmp_path: Path) -> None:
    """500 checks of 60 layers: under 2 MB, with the one extreme value still in the page."""
    checks, layers = 500, 60
    quantities: dict[Key, list[float]] = {
        ("sharpness", "ratio"): [0.5] * 317 + [1.2345] + [0.5] * (checks - 318),
        ("sharpness", "loss"): [1.0] * checks,
    }
    for layer in range(layers):
        quantities["learning_rate", "relative_update", f"blocks.{layer}.weight"] = [1e-3] * checks
        for name, value in (("units", 64.0), ("dead", 20.0)):
            quantities["units", name, f"blocks.{layer}.act"] = [value] * checks
    page = Report.from_run(run_of(quantities, every=100)).save(tmp_path / "report.html")
    assert page.stat().st_size < 2_000_000
    assert "1.23" in page.read_text(encoding="utf-8")


def test_what_could_not_be_measured_before_the_first_step_is_no_gap_unless_it_stays_one() -> None:
    skip = Record(step=0, time=0.0, probe="sharpness", name="ratio", status="skipped", note="no preconditioner yet")
    later = Record(step=5, time=0.0, probe="sharpness", name="ratio", value=0.5)
    assert Report.from_run(Run({}, [skip, later])).document.skipped.rows == ()
    assert len(Report.from_run(Run({}, [skip])).document.skipped.rows) == 1


def test_one_reason_stands_once_and_short_with_all_that_it_kept_from_being_measured() -> None:
    note = "Muon has no curvature threshold; given: a step of fixed length; expected: one in proportion"
    off = f"{note} (switched off after 3 failures in a row)"

    def record(step: int, probe: str, name: str, note: str, layer: str | None = None) -> Record:
        return Record(step=step, time=0.0, probe=probe, name=name, layer=layer, status="skipped", note=note)

    records = [
        *(record(step, "learning_rate", "effective", note) for step in (10, 20)),
        *(record(step, "batch_sharpness", "ratio", note) for step in (10, 30)),
        record(40, "units", "measurement", off),
        *(record(50, "learning_rate", "relative_update", "not finite", layer) for layer in ("a_b", *"bcde")),
    ]
    update = "learning rate relative update"
    assert Report.from_run(Run({}, records)).document.skipped.rows == (
        ("learning rate effective, batch sharpness ratio", "skipped", "3 times, steps 10 to 30", note[:31]),
        ("units", "skipped", "at step 40", f"{note[:31]} (switched off after 3 failures in a row)"),
        (f"{update} a_b, {update} b, {update} c and 2 more", "skipped", "at step 50", "not finite"),
    )


def test_a_scheduled_rate_is_shown_with_what_became_of_it_and_a_fixed_one_as_itself() -> None:
    header = {"optimizer": {"class": "AdamW", "groups": [{"lr": 0.0, "betas": [0.9, 0.999], "weight_decay": 0}]}}

    def summary(rates: list[float]) -> str:
        return Report.from_run(run_of({("learning_rate", "lr", "w"): rates}, header)).document.summary

    assert summary([1e-3, 3e-3, 1e-6]).startswith("AdamW lr 0 at first, highest 0.003, betas [0.9, 0.999] · ")
    assert summary([0.0, 0.0]).startswith("AdamW lr 0, betas [0.9, 0.999] · ")


def test_wrappers_of_an_optimizer_stand_before_it_with_their_settings() -> None:
    group = {"lr": 0.05, "momentum": 0.9}
    around = [{"class": "Lookahead", "k": 5, "alpha": 0.5}, {"class": "SAM", "rho": 0.3}]
    sick = {"optimizer": {"class": "Lookahead around SAM around SGD", "wrappers": around, "groups": [group]}}
    plain = {"optimizer": {"class": "SGD", "groups": [group]}}
    said = "Lookahead (k 5, alpha 0.5) around SAM (rho 0.3) around SGD lr 0.05, momentum 0.9 · "
    assert Report.from_run(Run(sick, [])).document.summary.startswith(said)
    assert Report.from_run(Run(plain, [])).document.summary.startswith("SGD lr 0.05, momentum 0.9 · ")


def test_the_rates_of_groups_that_differ_are_not_mixed_up_and_a_falling_one_is_told() -> None:
    def summary(first: list[float], rates: list[float]) -> str:
        header = {"optimizer": {"class": "SGD", "groups": [{"lr": one} for one in first]}}
        return Report.from_run(run_of({("learning_rate", "lr", "w"): rates}, header)).document.summary

    assert summary([0.1], [0.1, 0.05, 0.0]).startswith("SGD lr 0.1 at first, lowest 0 · ")
    assert summary([0.1], [0.10000000149, 0.10000000149]).startswith("SGD lr 0.1 · ")
    assert summary([0.1, 0.01], [0.1, 0.2]).startswith("SGD lr 0.1; lr 0.01 · ")


def test_a_run_without_an_end_says_so_and_one_that_was_closed_does_not() -> None:
    loss = [Record(step=step, time=0.0, probe="sharpness", name="loss", value=1.0) for step in (0, 100)]
    ended = Record(step=100, time=0.0, probe="monitor", name="ended", value=100.0, note="completed")
    killed, closed = (Report.from_run(Run({"id": "a"}, records)).document for records in (loss, [*loss, ended]))
    assert "no end recorded" in killed.summary
    assert dict(killed.facts)["end"] == "none was recorded: the process was killed, or is still running"
    [finding] = [one for one in killed.findings if one.id == "training/no_end"]
    assert finding.level == "ok"
    assert finding.claim.startswith("No end was recorded after step 100: the process was killed, or is still running.")
    assert "no end" not in closed.summary
    assert "end" not in dict(closed.facts)
    assert "training/no_end" not in {one.id for one in closed.findings}
    gone_on = Report.from_run(Run({"id": "a"}, [*loss, ended, Record(200, 0.0, "sharpness", "loss", value=1.0)]))
    assert "no end recorded" in gone_on.document.summary, "the end of the part before it was resumed is none"
