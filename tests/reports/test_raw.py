"""The records that a page carries: all of a short run, and of a long one its spikes, in the same bytes each time."""

from __future__ import annotations

import csv
import gzip
import io

import numpy
import pytest

from probes import Record, Run
from reports import raw as room
from reports.raw import COLUMNS, raw


def rows(run: Run) -> list[dict[str, str]]:
    records = raw(run)
    assert records is not None
    return list(csv.DictReader(io.StringIO(gzip.decompress(records.csv).decode())))


def losses(values: list[float | None]) -> Run:
    return Run({}, [Record(step, 0.0, "loop", "loss", value=value) for step, value in enumerate(values)])


def test_short_runs_are_whole_with_quotes_commas_and_newlines() -> None:
    note = 'said "no",\nthen <b>'
    run = Run({}, [Record(3, 1.5, "units", "dead", "a,b", 2.0, 0.5, "ok", note), Record(4, 2.0, "loop", "loss")])
    found = rows(run)
    assert tuple(found[0]) == COLUMNS
    assert (found[0]["layer"], found[0]["value"], found[0]["error"], found[0]["note"]) == ("a,b", "2.0", "0.5", note)
    assert found[1]["value"] == ""


def test_long_runs_keep_every_quantity_and_its_spikes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST", 500)
    values: list[float | None] = list(numpy.sin(numpy.arange(5000) / 50))
    values[1234], values[4321] = 99.0, -99.0
    values[7] = None
    run = Run({}, [*losses(values).records, Record(9, 0.0, "noise_scale", "simple", value=7.0)])
    records, found = raw(run), rows(run)
    assert records is not None
    assert (records.kept, records.total) == (len(found), 5001)
    assert len(found) <= 500
    assert {99.0, -99.0, 7.0} <= {float(row["value"]) for row in found if row["value"]}
    assert [row["step"] for row in found[:1] + found[-2:-1]] == ["0", "4999"]


def test_the_same_records_are_the_same_bytes_and_none_are_nothing() -> None:
    assert raw(losses([1.0, 2.0])) == raw(losses([1.0, 2.0]))
    assert raw(Run({}, [])) is None
