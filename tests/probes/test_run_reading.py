"""What ``Run`` answers, on records made by hand."""

from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes import Record, Run
from probes.run.records import parse


def _record(step: int, value: float | None, **more: object) -> Record:
    return Record(step=step, time=0.0, probe="p", name="n", value=value, **more)  # type: ignore[arg-type]


def test_a_series_is_in_order_of_steps_whatever_the_order_of_records() -> None:
    run = Run({}, [_record(5, 50.0, error=5.0), _record(0, 1.0), _record(3, 30.0, error=0.0)])
    series = run.series("p", "n")
    assert series.steps.tolist() == [0, 3, 5]
    assert series.steps.dtype == numpy.int64
    assert series.values.tolist() == [1.0, 30.0, 50.0]
    assert series.values.dtype == series.errors.dtype == numpy.float64
    assert numpy.array_equal(series.errors, [math.nan, 0.0, 5.0], equal_nan=True)
    assert len(series) == 3


def test_only_good_records_count_and_null_is_not_a_number() -> None:
    run = Run(
        {}, [_record(0, 1.0), _record(1, 9.0, status="failed"), _record(2, None), _record(3, 9.0, status="skipped")]
    )
    assert numpy.array_equal(run.series("p", "n").values, [1.0, math.nan], equal_nan=True)
    assert run.series("p", "n").steps.tolist() == [0, 2]
    assert run.last("p", "n").step == 0, "the last that holds a number"
    assert run.steps == 3


def test_a_failure_after_a_good_measurement_of_the_same_step_does_not_hide_it() -> None:
    run = Run({}, [_record(4, 1.0), _record(4, None, status="failed")])
    assert run.series("p", "n").values.tolist() == [1.0]


def test_probe_name_and_layer_are_told_apart() -> None:
    records = [
        Record(step=0, time=0.0, probe=probe, name=name, layer=layer, value=float(index))
        for index, (probe, name, layer) in enumerate(
            [("a", "x", None), ("a", "x", "l2"), ("a", "x", "l1"), ("a", "y", "l3"), ("b", "x", None), ("a", "x", "")]
        )
    ]
    run = Run({}, records)
    assert [run.last(r.probe, r.name, r.layer) for r in records] == records
    assert run.layers("a", "x") == ["l2", "l1", ""]
    assert run.layers("b", "x") == []
    assert run.layers("c", "x") == []
    assert len(run.series("a", "x", "l3")) == 0
    assert run.last("a", "x", "l3") is None


def test_an_empty_run_answers_everything() -> None:
    run = Run({}, [])
    assert (run.steps, run.layers("p", "n"), run.last("p", "n"), len(run.series("p", "n"))) == (0, [], None, 0)


def test_a_table_has_a_row_for_each_record_and_a_column_for_each_key() -> None:
    pytest.importorskip("pandas")
    run = Run({}, [_record(0, 1.0, layer="l"), _record(1, None, status="failed", note="why")])
    table = run.to_pandas()
    columns = ["step", "time", "probe", "name", "layer", "value", "error", "status", "note", "array"]
    assert list(table.columns) == columns == list(Run({}, []).to_pandas().columns)
    assert table["step"].tolist() == [0, 1]
    assert table["status"].tolist() == ["ok", "failed"]
    assert math.isnan(table["value"][1])


numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(
    st.integers(0, 10**12),
    st.text(min_size=1),
    st.none() | st.text(),
    numbers,
    numbers,
    st.sampled_from(["ok", "skipped", "failed"]),
)
def test_any_record_is_one_line_that_reads_back_as_it_was(
    step: int, name: str, text: str | None, value: float | None, error: float | None, status: str
) -> None:
    record = Record(
        step=step,
        time=1.5,
        probe="p",
        name=name,
        layer=text,
        value=value,
        error=error,
        status=status,
        note=text,  # type: ignore[arg-type]
    )
    line = record.line()
    assert line.endswith("\n")
    assert "\n" not in line[:-1]
    assert parse(line) == record


@settings(deadline=None)
@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.none() | st.text())
def test_numbers_that_json_does_not_know_become_null_with_a_note(strange: float, note: str | None) -> None:
    read = parse(_record(0, strange, error=strange, note=note).line())
    assert (read.value, read.error) == (None, None)
    assert read.note == "; ".join([*([note] if note else []), f"value was {strange}", f"error was {strange}"])
