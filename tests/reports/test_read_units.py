"""Readings of units: each kind is named at its layer, few are normal."""

from __future__ import annotations

import pytest
from runs import run_of

from probes.run import Record, Run
from reports.units import chapter as units

KINDS = ("dead", "dormant", "saturated", "linearised")


def run_with(kind: str, counts: list[float], layers: tuple[str, ...] = ("1", "3")) -> Run:
    quantities: dict[tuple[str, str, str], list[float]] = {}
    for layer in layers:
        quantities["units", "units", layer] = [100.0] * len(counts)
        for name in KINDS:
            quantities["units", name, layer] = counts if (name, layer) == (kind, "3") else [0.0] * len(counts)
    return run_of(quantities)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_named_at_its_layer(kind: str) -> None:
    (finding,) = units.read(run_with(kind, [0.0, 30.0])).findings
    assert (finding.id, finding.level) == (f"units/{kind}", "warn")
    assert finding.claim.startswith("30 of 100 units at layer 3 ")
    assert "1 of 2 non-linearities" in finding.claim
    assert finding.advice


def test_half_a_layer_dead_is_a_failure_and_half_dormant_is_not() -> None:
    assert units.read(run_with("dead", [50.0])).findings[0].level == "fail"
    assert units.read(run_with("dormant", [50.0])).findings[0].level == "warn"


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_are_normal(kind: str) -> None:
    (finding,) = units.read(run_with(kind, [0.0, 10.0])).findings
    assert (finding.id, finding.level) == ("units/activity", "ok")
    assert f"10 {kind}" in finding.claim


def test_the_latest_step_decides() -> None:
    assert units.read(run_with("dead", [90.0, 0.0])).findings[0].level == "ok"


def test_the_figure_shows_what_is_cited() -> None:
    chapter = units.read(run_with("dead", [0.0, 30.0, 60.0]))
    assert [figure.id for figure in chapter.figures] == ["units-dead"]
    assert chapter.findings[0].evidence == ("units-dead",)
    assert chapter.figures[0].table.rows[1] == ("3", 0.0, 0.6, 20, 0.6)


def test_a_model_without_nonlinearities_is_unmeasured() -> None:
    skipped = Record(step=0, time=0.0, probe="units", name="units", status="skipped", note="ran no non-linearity")
    (finding,) = units.read(Run({}, [skipped])).findings
    assert finding.level == "unmeasured"
    assert "ran no non-linearity" in finding.claim


def test_death_at_the_first_measurement_is_put_down_to_the_start_and_later_death_to_training() -> None:
    early, late = (units.read(run_with("dead", counts)).findings[0] for counts in ([60.0, 60.0], [0.0, 60.0]))
    assert (early.id, late.id) == ("units/dead_at_start", "units/dead")
    assert "from step 0 on" in early.claim
    assert "since step 10" in late.claim
    assert "initialisation" in early.advice[0]
    assert "learning rate" in late.advice[0]


def _with(extra: dict[str, list[float]], **others: list[float]) -> Run:
    quantities: dict[tuple[str, str, str], list[float]] = {}
    count = len(next(iter(extra.values())))
    for layer in ("1", "3"):
        quantities["units", "units", layer] = [100.0] * count
        for name in KINDS:
            quantities["units", name, layer] = others.get(name, [0.0] * count)
        for name, values in extra.items():
            quantities["units", name, layer] = values if layer == "3" else [0.0] * count
    return run_of(quantities)


def _level(run: Run, id: str) -> str | None:
    return next((finding.level for finding in units.read(run).findings if finding.id == id), None)


@pytest.mark.parametrize(
    ("values", "level"),
    [([0.0, 10.0], None), ([0.0, 40.0], "ok"), ([60.0, 62.0], "ok"), ([70.0], "ok"), ([5.0, 60.0], "warn")],
)
def test_duplicates_are_alleged_only_where_they_grew(values: list[float], level: str | None) -> None:
    assert _level(_with({"duplicate": values}), "units/duplicates") == level


@pytest.mark.parametrize(("share", "level"), [(10.0, None), (30.0, "ok"), (60.0, "warn")])
def test_units_without_influence(share: float, level: str | None) -> None:
    assert _level(_with({"gradient_dormant": [share]}), "units/gradient_dormant") == level


def test_frozen_units_are_told_and_dead_ones_are_not_told_twice() -> None:
    assert _level(_with({"frozen": [100.0]}), "units/frozen") == "ok"
    assert _level(_with({"frozen": [30.0]}, dead=[30.0]), "units/frozen") is None


@pytest.mark.parametrize(
    ("ratio", "count", "level"),
    [
        (4.0, 0.0, None),
        (20.0, 1.0, "ok"),
        (99.0, 2.0, "ok"),
        (150.0, 1.0, "warn"),
        (150.0, 10.0, "warn"),
        (1650.0, 48.0, None),  # half of the layer is next to silent, and so is its median
    ],
)
def test_outlier_channels_matter_where_they_are_massive(ratio: float, count: float, level: str | None) -> None:
    run = _with({"outlier_ratio": [ratio], "outliers": [count]})
    assert _level(run, "units/outliers") == level


@pytest.mark.parametrize(("gated", "dormant", "level"), [(40.0, 0.0, "warn"), (40.0, 35.0, None), (10.0, 0.0, None)])
def test_units_shut_off_by_their_gate_are_those_not_dormant_already(
    gated: float, dormant: float, level: str | None
) -> None:
    run = _with({"gated_dormant": [gated]}, dormant=[dormant])
    assert _level(run, "units/gated_dormant") == level


def test_counts_that_were_never_made_are_not_said_to_be_zero() -> None:
    (finding,) = units.read(run_with("dead", [0.0])).findings
    assert "gated" not in finding.claim
    (finding,) = units.read(_with({"gated_dormant": [3.0]})).findings
    assert "3 gated-dormant" in finding.claim
