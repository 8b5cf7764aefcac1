"""Shadows stand behind what casts them."""

from __future__ import annotations

from runs import run_of

from reports import Report
from reports.causes import causes_first
from reports.finding import Finding, Level


def finding(id: str, level: Level) -> Finding:
    return Finding(id, level, f"Claim of {id}: more.", None, "", "", ("do this",), (), "", "")


def test_consequences_follow_their_cause_and_point_to_it() -> None:
    dead, loss = finding("units/dead", "fail"), finding("training/loss", "fail")
    small, fine = finding("learning_rate/update_size", "warn"), finding("learning_rate/effective", "ok")
    ordered = causes_first((loss, small, fine, dead))
    assert [one.id for one in ordered] == ["units/dead", "training/loss", "learning_rate/update_size", fine.id]
    assert ordered[0].advice == ("do this",)
    assert ordered[1].advice == ordered[2].advice == ("Mend this first, it is the likely cause: claim of units/dead.",)
    assert ordered[3].advice == ("do this",), "what is fine needs no cause"


def test_what_dead_units_cut_off_points_to_them() -> None:
    """No gradient passes a dead layer, and beside silent units the others look large."""
    dead = finding("units/dead", "fail")
    others = [finding(id, "warn") for id in ("units/gradient_dormant", "units/outliers", "units/saturated")]
    ordered = causes_first((*others, dead))
    pointing = {one.id for one in ordered if one.advice[0].startswith("Mend this first")}
    assert pointing == {"units/gradient_dormant", "units/outliers"}


def test_units_that_die_of_noise_point_to_it_and_those_that_were_dead_before_do_not() -> None:
    noise, loss = finding("noise_scale/batch", "fail"), finding("training/loss", "warn")
    ordered = causes_first((finding("units/dead", "fail"), loss, noise))
    assert ordered[0] is noise
    assert all("claim of noise_scale/batch" in one.advice[0] for one in ordered[1:])
    ordered = causes_first((noise, finding("units/dead_at_start", "fail"), loss))
    assert ordered[0].id == "units/dead_at_start"
    assert all("claim of units/dead_at_start" in one.advice[0] for one in ordered[1:])


def test_a_warning_explains_nothing_and_a_first_cause_explains_all() -> None:
    assert causes_first((finding("training/loss", "warn"), finding("units/dead", "warn")))[0].advice == ("do this",)
    ordered = causes_first(tuple(finding(id, "fail") for id in ("training/loss", "units/dead", "sharpness/regime")))
    assert ordered[0].id == "sharpness/regime"
    assert all("claim of sharpness/regime" in one.advice[0] for one in ordered[1:])


def test_a_network_that_was_thrown_off_and_died_is_told_its_learning_rate() -> None:
    run = run_of(
        {
            ("sharpness", "ratio"): [1.1, 3.5e7, 0.4, 0.4, 0.4, 0.4, 0.4],
            ("sharpness", "loss"): [2.3, 1e4, 2.3, 2.3, 2.3, 2.3, 2.3],
            ("units", "units", "1"): [64.0] * 7,
            ("units", "dead", "1"): [0.0] + [64.0] * 6,
        }
    )
    document = Report.from_run(run).document
    assert document.diagnosis.startswith("The run was thrown off and has not come back")
    assert "3.5e+07, at step 10" in document.diagnosis
    dead = next(one for one in document.findings if one.id == "units/dead")
    assert "since step 10" in dead.claim
    assert "thrown off" in dead.advice[0]
