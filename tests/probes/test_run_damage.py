"""Runs that were cut off or tampered with: what is whole is read, what is torn is left out, the rest is one error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diagnostics import DiagnosticsError
from probes import Monitor, Record, Run
from tests.probes.toy import Toy, Watch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def finished(toy: Toy, folder: Path) -> Path:
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[Watch(every=1)]):
        toy.train(3)
    return folder


TRAIN_FOREVER = """
import sys
from probes import Monitor, Units
from tests.probes.toy import Toy, Watch
toy = Toy()
with Monitor(toy.model, toy.optimizer, toy.objective, out=sys.argv[1], probes=[Watch(), Units()], every=1) as monitor:
    while True:
        toy.step()
        if monitor.step == 20:
            print("twenty", flush=True)
"""


def test_a_killed_training_can_be_read_and_continued(toy: Toy, folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN_FOREVER, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == b"twenty\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    run = Run.open(folder)
    steps = run.series("watch", "value").steps.tolist()
    assert steps == list(range(len(steps)))
    assert len(steps) >= 21
    for record in run.records:
        assert (run.array(record) is None) == (record.array is None), (
            "an array is there before the record that names it"
        )
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[Watch()], every=1, resume=10):
        toy.train(2)
    assert Run.open(folder).series("watch", "value").steps.tolist() == list(range(13))


def test_cut_anywhere_in_the_last_line_only_that_line_is_lost(finished: Path) -> None:
    path = finished / "records.jsonl"
    whole, records = path.read_bytes(), Run.open(finished).records
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        run = Run.open(finished)
        assert run.records == records[:-1]
        assert run.torn == end - start
        assert path.read_bytes() == whole[:end], "reading repairs nothing: somebody may still be writing"


def test_resuming_repairs_a_torn_tail(finished: Path, toy: Toy) -> None:
    path = finished / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    with Monitor(toy.model, toy.optimizer, out=finished, probes=[Watch(every=1)], resume=3):
        toy.step()
    run = Run.open(finished)
    assert run.torn == 0
    assert run.series("watch", "value").steps.tolist() == [0, 1, 2, 3, 4]


DAMAGE = {
    "not JSON": b'{"step": 1, "ti',
    "not UTF-8": b'{"step": 1, "probe": "\xff"}',
    "blank": b"",
    "zeros": b"\0" * 40,
    "not an object": b"[1, 2]",
    "no step": b'{"probe": "a", "name": "b"}',
    "no time": b'{"step": 1, "probe": "a", "name": "b"}',
    "a step that is text": b'{"step": "1", "time": 0.0, "probe": "a", "name": "b"}',
    "half a step": b'{"step": 0.5, "time": 0.0, "probe": "a", "name": "b"}',
    "a value that is text": b'{"step": 1, "time": 0.0, "probe": "a", "name": "b", "value": "1"}',
    "a layer that is a list": b'{"step": 1, "time": 0.0, "probe": "a", "name": "b", "layer": []}',
    "a value that is an empty list": b'{"step": 1, "time": 0.0, "probe": "a", "name": "b", "value": []}',
    "a name that is null": b'{"step": 1, "time": 0.0, "probe": "a", "name": null}',
    "a note that is a number": b'{"step": 1, "time": 0.0, "probe": "a", "name": "b", "note": 1}',
    "an unknown status": b'{"step": 1, "time": 0.0, "probe": "a", "name": "b", "status": "fine"}',
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_in_the_middle_is_one_error_with_its_number(damage: str, finished: Path, toy: Toy) -> None:
    path = finished / "records.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[1] = DAMAGE[damage]
    path.write_bytes(b"\n".join(lines))
    before = path.read_bytes()
    message = (
        r"records\.jsonl is damaged at line 2; given: .*; expected: one JSON record per line; try: remove that line"
    )
    with pytest.raises(DiagnosticsError, match=message):
        Run.open(finished)
    with pytest.raises(DiagnosticsError, match=message):
        Monitor(toy.model, toy.optimizer, out=finished, probes=[], resume=2)
    assert path.read_bytes() == before


def test_a_line_with_keys_of_a_later_version_can_be_read(finished: Path) -> None:
    path = finished / "records.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"step":1,', b'{"weather":"fine","step":1,'))
    assert Run.open(finished).series("watch", "value").steps.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("content", [None, b"", b'{"step":0,"ti'])
def test_a_run_without_a_single_record_is_an_empty_run(content: bytes | None, finished: Path) -> None:
    (finished / "records.jsonl").unlink()
    if content is not None:
        (finished / "records.jsonl").write_bytes(content)
    run = Run.open(finished)
    assert (run.records, run.steps) == ([], 0)
    assert len(run.series("watch", "value")) == 0
    assert run.last("watch", "value") is None


def test_records_that_cannot_be_read_are_one_error(finished: Path) -> None:
    (finished / "records.jsonl").unlink()
    (finished / "records.jsonl").mkdir()
    with pytest.raises(DiagnosticsError, match="cannot be read"):
        Run.open(finished)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "is not a run folder; given: run.json: "),
        ("", "is not a run folder"),
        ("{", "is not a run folder"),
        ("[]", "is not a run header"),
        ("{}", "is not a run header"),
        ('{"schema_version": "1"}', "is not a run header"),
        ('{"schema_version": 2}', "was written by a newer version; given: schema_version 2; expected: at most 1"),
    ],
)
def test_headers_that_say_nothing_or_too_much(header: str | None, message: str, finished: Path, toy: Toy) -> None:
    (finished / "run.json").unlink()
    if header is not None:
        (finished / "run.json").write_text(header)
    with pytest.raises(DiagnosticsError, match=message):
        Run.open(finished)
    before = (finished / "records.jsonl").read_bytes()
    with pytest.raises(DiagnosticsError, match=message):
        Monitor(toy.model, toy.optimizer, out=finished, probes=[], resume=1)
    assert (finished / "records.jsonl").read_bytes() == before


def test_what_is_no_folder_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "missing", str(tmp_path)):
        with pytest.raises(DiagnosticsError, match="is not a run folder"):
            Run.open(path)


@pytest.mark.parametrize("array", [None, "missing.safetensors", "../run.json", "broken.safetensors", ""])
def test_an_array_that_is_not_there_is_none(array: str | None, finished: Path) -> None:
    (finished / "arrays" / "broken.safetensors").write_bytes(b"\xff" * 20)
    record = Record(step=0, time=0.0, probe="watch", name="value", array=array)
    assert Run.open(finished).array(record) is None
    assert Run({}, [record]).array(record) is None


def test_a_header_is_never_rewritten(finished: Path, toy: Toy) -> None:
    before = (finished / "run.json").read_bytes()
    with Monitor(toy.model, toy.optimizer, out=finished, probes=[Watch(every=7)], resume=1):
        toy.train(1)
    assert (finished / "run.json").read_bytes() == before
    assert json.loads(before)["id"]
