"""Saddles and lone layers are told from healthy runs, what is missing is said, and every figure can be drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy
import pytest
from runs import run_of

from probes.run import Record, Run
from reports.compose import compose
from reports.finding import Finding
from reports.render.canvas import drawn, report_style
from reports.render.svg import drawings
from reports.spectrum import chapter as spectrum
from reports.spectrum.charts import MOST_RIDGES, Ridge, Scale, scale_of

P = 1000
LEVELS = {"spectrum/bulk", "spectrum/negative", "spectrum/layers", "spectrum/directions"}


class Recorded(Run):
    """Made-up records with made-up densities."""

    def array(self, record: Record) -> numpy.ndarray | None:
        if record.name == "outliers" and record.value:
            return numpy.array([[3.0, 2.0], [0.0, 0.0], [1.0, 1.0]])
        if record.name != "density":
            return None
        generator = numpy.random.default_rng(record.step)
        nodes = numpy.sort(generator.normal(size=(2, 12)) * 0.3, axis=1)
        return numpy.stack([nodes, numpy.full_like(nodes, 1 / 12), numpy.full_like(nodes, 0.05)])


def recorded(checks: int = 3, error: float | None = 1e-4, **changes: Any) -> Recorded:
    """A healthy run, but for the changes: a value for every check, or a list."""
    values: dict[Any, Any] = {
        "loss": [1.0 / (1 + index) for index in range(checks)],
        "density": P,
        "outputs": 10,
        "flat_mass": 0.9,
        "downward_mass": 0.03,
        "outliers": 2,
        "edge": 0.6,
        "largest": 3.0,
        "smallest": -0.1,
        "gradient_norm": 0.5,
        "gradient_curvature": 1.0,
        "gradient_share": 0.4,
        "overlap": 0.8,
        "kept_curvature": 0.9,
    }
    layers = {("top", "head"): 2.0, ("top", "stem"): 1.0, ("share", "head"): 0.6, ("share", "stem"): 0.4}
    values |= layers | {("trace", "head"): 3.0, ("trace", "stem"): 2.0} | changes
    series = {
        ("spectrum", *((name,) if isinstance(name, str) else name)): one if isinstance(one, list) else [one] * checks
        for name, one in values.items()
        if one is not None
    }
    run = run_of(series, error=error, every=100)  # type: ignore[arg-type]
    return Recorded(run.header, run.records)


def recorded_with(changes: dict[Any, float]) -> Recorded:
    """A healthy run with other values, by name or (name, layer)."""
    run = recorded()
    records = [
        Record(**{**vars(one), "value": changes.get((one.name, one.layer), changes.get(one.name, one.value))})
        for one in run.records
    ]
    return Recorded(run.header, records)


def findings(run: Run) -> dict[str, Finding]:
    return {finding.id: finding for finding in spectrum.read(run).findings}


STANDSTILL = {"loss": [2.3, 2.301, 2.3], "gradient_norm": 1e-3}


def test_a_healthy_run_raises_nothing() -> None:
    found = findings(recorded())
    assert found.keys() == LEVELS
    assert {finding.level for finding in found.values()} == {"ok"}
    assert "90.0 ± 0.1 % of 1,000 directions, at step 200; 3.0 ± 0.1 % curve down" in found["spectrum/bulk"].claim
    assert "2 eigenvalues stand apart from the rest, which ends at 0.6" in found["spectrum/bulk"].claim
    assert "10 outputs" in found["spectrum/bulk"].claim
    assert "-0.1000 ± 0.0001 to 3.0000 ± 0.0001 at step 200" in found["spectrum/negative"].claim
    assert all("generali" not in f"{one.claim} {one.meaning} {one.advice}" for one in found.values())


@pytest.mark.parametrize(
    ("level", "changes"),
    [
        # As far down as the bulk reaches up, while nothing moves and the gradient promises nothing.
        ("warn", STANDSTILL | {"smallest": -0.6}),
        ("warn", STANDSTILL | {"smallest": -2.0, "outliers": 0, "edge": 3.0}),
        # A fresh network: as much negative curvature, but the loss falls.
        ("ok", {"smallest": -0.6}),
        # A learning rate next to zero: nothing moves, but a step along the gradient would.
        ("ok", STANDSTILL | {"smallest": -0.6, "gradient_norm": 0.5}),
        # Converged: nothing moves and nothing is promised, at a minimum.
        ("ok", STANDSTILL | {"smallest": -0.01}),
        ("ok", STANDSTILL | {"smallest": 0.1}),
        # Too uncertain, or not known.
        ("ok", STANDSTILL | {"smallest": -0.6, "error": 0.5}),
        ("ok", STANDSTILL | {"smallest": -0.6, "gradient_norm": None}),
        ("ok", STANDSTILL | {"smallest": -0.6, "checks": 1, "loss": [2.3]}),
        ("ok", STANDSTILL | {"smallest": -0.6, "loss": [2.3, math.nan, 2.3]}),
        ("unmeasured", {"smallest": [None, None, None]}),
    ],
)
def test_negative_curvature_is_a_fault_only_where_the_loss_stands_still(level: str, changes: dict[str, Any]) -> None:
    finding = findings(recorded(**changes))["spectrum/negative"]
    assert finding.level == level
    assert bool(finding.advice) == (level == "warn")
    assert ("saddle" in finding.claim) == (level == "warn")


def test_the_loss_of_the_sharpness_probe_counts_too() -> None:
    """It is measured more often, and sees a fall between two spectra that ended where they began."""
    run = recorded(**STANDSTILL, smallest=-0.6)
    moved = Record(step=150, time=0.0, probe="sharpness", name="loss", value=1.9)
    assert findings(run)["spectrum/negative"].level == "warn"
    assert findings(Recorded({}, [*run.records, moved]))["spectrum/negative"].level == "ok"


@pytest.mark.parametrize(
    ("level", "changes"),
    [
        ("warn", {("top", "stem"): 0.01, ("share", "head"): 0.97, ("share", "stem"): 0.03}),
        # Sharp, but not alone with the trace; alone with the trace, but not sharp.
        ("ok", {("top", "stem"): 0.01}),
        ("ok", {("share", "head"): 0.97, ("share", "stem"): 0.03}),
        ("ok", {("top", "stem"): 0.01, ("share", "head"): None, ("share", "stem"): None}),
        (None, {("top", "stem"): None}),
    ],
)
def test_a_layer_is_alone_with_its_curvature_only_far_from_the_others(level: str | None, changes: Any) -> None:
    run = recorded()
    dropped = {name for name, value in changes.items() if value is None}
    records = [
        Record(**{**vars(one), "value": changes.get((one.name, one.layer), one.value)})
        for one in run.records
        if (one.name, one.layer) not in dropped
    ]
    finding = findings(Recorded({}, records)).get("spectrum/layers")
    assert (None if finding is None else finding.level) == level


def test_a_share_that_is_not_resolved_is_said_to_be_none() -> None:
    finding = findings(recorded(error=0.3))["spectrum/bulk"]
    assert "How many of 1,000 directions are flat is undetermined, at step 200" in finding.claim
    assert finding.value is None
    assert "steps=64" in finding.advice[0]
    assert "curve down" not in finding.claim


def with_errors(run: Run, errors: dict[Any, float]) -> Recorded:
    """The same with other errors, by name or (name, layer)."""
    records = [
        Record(**{**vars(one), "error": errors.get((one.name, one.layer), errors.get(one.name, one.error))})
        for one in run.records
    ]
    return Recorded(run.header, records)


def test_shares_with_an_error_as_large_as_they_are_have_no_number() -> None:
    """A flat model: the sharpest directions are any directions."""
    run = recorded(gradient_share=1.0, overlap=0.9, kept_curvature=0.4)
    healthy = findings(run)["spectrum/directions"]
    assert "hold 100.0 ± 0.1 % of the gradient" in healthy.claim
    one = findings(with_errors(run, {"gradient_share": 1.0}))["spectrum/directions"]
    assert "hold an undetermined share of the gradient" in one.claim
    assert "overlap of the two spaces 0.9000 ± 0.0001" in one.claim
    assert one.value is not None
    assert one.value.value == 0.9
    two = findings(with_errors(run, {"gradient_share": 1.0, "overlap": 0.9}))["spectrum/directions"]
    assert "40.0 ± 0.1 % of their curvature (overlap of the two spaces undetermined)" in two.claim
    assert (two.level, two.value) == ("ok", None)
    three = {"gradient_share": 1.0, "overlap": math.inf, "kept_curvature": 0.4}
    assert findings(with_errors(run, three))["spectrum/directions"].level == "unmeasured"


def test_a_layer_beside_others_without_any_curvature_is_alone_and_not_infinitely_sharp() -> None:
    changes = {("share", "head"): 0.97, ("share", "stem"): 0.03}
    for stem, error in ((0.0, 0.0), (1e-4, 1e-3)):
        run = recorded_with(changes | {("top", "stem"): stem})
        finding = findings(with_errors(run, {("top", "stem"): error}))["spectrum/layers"]
        assert finding.level == "warn"
        assert "has some, and no other layer any above its error" in finding.claim
        assert "inf" not in finding.claim
    told = findings(recorded_with(changes | {("top", "stem"): 0.01}))["spectrum/layers"]
    assert "is 200 times as sharp as the next, stem" in told.claim
    unknown = findings(with_errors(recorded(), {"share": 0.4}))["spectrum/layers"]
    assert "with an undetermined share of the trace" in unknown.claim


def test_a_model_without_any_curvature_is_undetermined() -> None:
    flat = recorded_with(dict.fromkeys([("top", "head"), ("top", "stem")], 0.0) | {"largest": 0.0, "smallest": 0.0})
    found = findings(with_errors(flat, {"gradient_share": 1.0, "overlap": 1.0, "kept_curvature": 1.0}))
    undetermined = {"spectrum/negative", "spectrum/layers", "spectrum/directions"}
    assert {id for id, one in found.items() if one.level == "unmeasured"} == undetermined
    assert not any("inf" in one.claim or "± 1.0" in one.claim for one in found.values())


def test_negative_curvature_is_compared_with_what_it_is_said_to_be_compared_with() -> None:
    beside = findings(recorded(smallest=-0.6))["spectrum/negative"].claim
    assert "about as strong as the bulk's upper end of 0.6, from which larger eigenvalues stand apart" in beside
    whole = findings(recorded(smallest=-2.0, outliers=0))["spectrum/negative"].claim
    assert "about as strong as positive: eigenvalues run from -2" in whole
    lost = findings(with_errors(recorded(smallest=-1e-10), {"smallest": 1e-7}))["spectrum/negative"].claim
    assert lost.startswith("No negative curvature was found beyond its error")


def test_without_outliers_and_with_an_eigenvalue_that_did_not_converge() -> None:
    run = recorded(outliers=0)
    given_up = Record(step=200, time=0.0, probe="spectrum", name="smallest", value=-0.1, note="Lanczos, NOT CONVERGED")
    found = findings(Recorded({}, [*run.records, given_up]))
    assert "no eigenvalue stands apart" in found["spectrum/bulk"].claim
    assert "-0.1 (not converged) to" in found["spectrum/negative"].claim


def test_nobody_asked_nothing_is_said() -> None:
    assert spectrum.read(Run({}, [])).findings == ()


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_a_run_without_a_number_says_why_and_draws_nothing(status: Any) -> None:
    records = [
        Record(step=step, time=0.0, probe="spectrum", name="measurement", status=status, note="RuntimeError: no")
        for step in (0, 10)
    ]
    loss = Record(step=0, time=0.0, probe="spectrum", name="loss", value=1.0)
    chapter = spectrum.read(Run({}, [loss, *records]))
    assert [finding.level for finding in chapter.findings] == ["unmeasured"]
    assert "RuntimeError: no" in chapter.findings[0].claim
    assert chapter.figures == ()


def test_parts_that_were_skipped_are_unmeasured_beside_those_that_were_not() -> None:
    run = recorded()
    gone = {"largest", "smallest", "top", "share", "trace", "gradient_share", "overlap", "kept_curvature"}
    kept = [one for one in run.records if one.name not in gone]
    kept += [
        Record(step=200, time=0.0, probe="spectrum", name=name, status="skipped", note="does not fit into memory")
        for name in ("smallest", "largest", "layers")
    ]
    found = findings(Recorded({}, kept))
    assert {id: one.level for id, one in found.items()} == dict.fromkeys(LEVELS, "unmeasured") | {"spectrum/bulk": "ok"}
    assert all("does not fit into memory" in one.claim for id, one in found.items() if id != "spectrum/bulk")


def test_a_batch_normalised_model_in_evaluation_mode_gets_no_verdict() -> None:
    run = recorded(**STANDSTILL, smallest=-0.6)
    run.header["objective"] = {"mode": "eval", "batch_norm": 2}
    (finding,) = spectrum.read(run).findings
    assert finding.level == "unmeasured"
    assert 'mode="train"' in finding.advice[0]


# --- figures ---


@pytest.mark.parametrize("checks", [1, 2, 50])
def test_every_figure_can_be_drawn_and_turned_into_a_page(checks: int) -> None:
    figures = {figure.id: figure for figure in spectrum.read(recorded(checks)).figures}
    over_time = {"spectrum-ends", "spectrum-directions"}
    assert figures.keys() == {"spectrum-density", "spectrum-layers"} | (over_time if checks > 1 else set())
    for figure in figures.values():
        assert figure.caption
        assert figure.alt
        assert len(drawings(figure)[0].svg) < 400_000
    assert len(figures["spectrum-density"].table.rows) == checks
    assert ("left out" in figures["spectrum-density"].caption) == (checks > MOST_RIDGES)


@pytest.mark.parametrize(
    "changes",
    [
        {"smallest": [None, None, None], "largest": [None, None, None]},
        {"smallest": [None, -0.1, math.nan], "largest": [1e6, 1.0, 1e-6]},
        {"gradient_share": [None, None, 0.2], "overlap": None, "kept_curvature": None},
        {"outliers": 0, "edge": None},
        {("top", "stem"): -1.0, ("share", "stem"): None},
        {"density": [None, P, P]},
    ],
)
def test_figures_bear_gaps_and_extremes(changes: dict[Any, Any]) -> None:
    run = recorded()
    values = {name: one if isinstance(one, list) else [one] * 3 for name, one in changes.items()}
    records = []
    for one in run.records:
        key = one.name if one.layer is None else (one.name, one.layer)
        value = values[key][one.step // 100] if key in values else one.value
        records.append(Record(**{**vars(one), "value": value}))
    for figure in spectrum.read(Recorded({}, records)).figures:
        with report_style():
            drawn(figure, figure.size).canvas.draw()


def test_the_threshold_is_drawn_only_on_the_hessians_own_eigenvalues() -> None:
    def lines_of(sharpness: float) -> list[str]:
        run = recorded()
        more = {("sharpness", "threshold"): 4.0, ("sharpness", "curvature"): 3.0, ("sharpness", "sharpness"): sharpness}
        records = [
            Record(step=step, time=0.0, probe=probe, name=name, value=value)
            for (probe, name), value in more.items()
            for step in (0, 100, 200)
        ]
        return [figure.caption for figure in spectrum.read(Recorded({}, [*run.records, *records])).figures]

    assert any("dashed" in caption for caption in lines_of(3.0))
    assert not any("dashed" in caption for caption in lines_of(700.0))


def test_evidence_names_figures_that_are_there() -> None:
    for run in (recorded(1), recorded(5), Run({}, recorded().records)):
        chapter = spectrum.read(run)
        there = {figure.id for figure in chapter.figures}
        assert {name for finding in chapter.findings for name in finding.evidence} <= there
    # Without a folder there are no densities, and the rest is drawn.
    assert "spectrum-density" not in there
    assert "spectrum-ends" in there


def test_heights_count_eigenvalues_and_end_where_they_end() -> None:
    nodes = numpy.array([[-1.0, 0.0, 2.0]])
    ridge = Ridge(
        0, nodes, numpy.array([[0.2, 0.5, 0.3]]), numpy.array([[0.0, 0.3, 0.0]]), 40, numpy.empty(0), (-1.0, 2.0)
    )
    scale = scale_of([ridge])
    places = numpy.linspace(-7, 7, 4001)
    heights = scale.heights(ridge, places)
    counted = numpy.trapezoid(10**heights - 1, places)
    assert counted == pytest.approx(40, rel=1e-3)
    low, high = places[heights > 0][[0, -1]]
    assert (low, high) == pytest.approx((float(scale.place(-1.0)), float(scale.place(2.0))), abs=0.2)
    assert Scale(1.0).place(0.0) == 0.0


def test_the_chapter_stands_in_the_report(tmp_path: Path) -> None:
    document = compose(recorded(), "a run")
    assert {finding.id for finding in document.findings} >= LEVELS
    assert "spectrum-density" in {figure.id for figure in document.figures}
