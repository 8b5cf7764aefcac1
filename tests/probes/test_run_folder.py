"""The run folder as it is promised: files, keys, strict JSON, arrays, and what others read in it."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from diagnostics import DiagnosticsError, Estimate, Objective
from probes import Monitor, Run
from probes.probe import Moment, Reading
from tests.probes.toy import Toy, Watch
from tests.reference.optimizers import SAM

KEYS = ["step", "time", "probe", "name", "layer", "value", "error", "status", "note", "array"]


def _strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def trained(folder: Path) -> Path:
    """A run with everything in it: good, skipped, failed and not finite."""
    toy = Toy(torch.optim.Adam, lr=0.01)

    def strange(moment: Moment) -> Reading:
        if moment.step == 3:
            raise ValueError('a "quoted"\nmessage with \u2028 and \x00 in it')
        return Reading("näme", Estimate(math.inf, math.nan, "residual", "how"), layer="läyer", note="why")

    with Monitor(toy.model, toy.optimizer, out=folder, probes=[Watch(strange, every=1)]) as monitor:
        toy.train(2)
        monitor.log(loss=math.nan)
        toy.step()
    return folder


@pytest.fixture
def measured(folder: Path) -> Path:
    toy = Toy(torch.optim.Adam, lr=0.01)
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, every=2, budget=0.1) as monitor:
        toy.train(3)
        monitor.log(loss=1.5)
    return folder


def test_the_files_are_these_and_no_others(measured: Path) -> None:
    assert sorted(path.name for path in measured.iterdir()) == ["arrays", "records.jsonl", "run.json"]
    assert {path.suffix for path in (measured / "arrays").iterdir()} == {".safetensors"}


@pytest.mark.parametrize("which", ["trained", "measured"])
def test_every_line_is_strict_json_with_the_ten_keys_in_order(which: str, request: pytest.FixtureRequest) -> None:
    content = (request.getfixturevalue(which) / "records.jsonl").read_bytes()
    assert content.endswith(b"\n")
    for line in content.decode().split("\n")[:-1]:
        record = _strict(line)
        assert list(record) == KEYS
        assert type(record["step"]) is int
        assert type(record["time"]) is float
        assert all(type(record[key]) is str for key in ("probe", "name", "status"))
        assert all(record[key] is None or type(record[key]) is str for key in ("layer", "note", "array"))
        assert all(record[key] is None or type(record[key]) is float for key in ("value", "error"))
        assert record["status"] in ("ok", "skipped", "failed")
        assert (record["value"] is None) or record["status"] == "ok"


def test_what_is_not_finite_is_null_with_a_note(trained: Path) -> None:
    records = [_strict(line) for line in (trained / "records.jsonl").read_text().split("\n")[:-1]]
    assert (records[0]["value"], records[0]["error"]) == (None, None)
    assert records[0]["note"] == "why; how; value was inf; error was nan"
    [loss] = [record for record in records if record["name"] == "loss"]
    assert (loss["value"], loss["status"], loss["note"]) == (None, "ok", "value was nan")
    assert math.isnan(Run.open(trained).series("watch", "näme", "läyer").values[0])


def test_text_of_any_kind_survives(trained: Path) -> None:
    run = Run.open(trained)
    assert run.layers("watch", "näme") == ["läyer"]
    failed = next(record for record in run.records if record.status == "failed")
    assert failed.note == 'ValueError: a "quoted"\nmessage with \u2028 and \x00 in it'


def test_the_header_says_what_was_trained_with_what(measured: Path) -> None:
    header = _strict((measured / "run.json").read_text(encoding="utf-8"))
    assert list(header) == [
        "schema_version", "id", "created", "argv", "versions", "device", "model", "optimizer", "objective", "probes",
        "settings",
    ]  # fmt: skip
    assert header["schema_version"] == 1
    assert header["argv"] == sys.argv
    assert header["versions"]["torch"] == torch.__version__
    assert header["device"] == "CPU, 1 thread"
    assert header["model"]["shapes"] == {"0.weight": [4, 3], "0.bias": [4], "2.weight": [2, 4], "2.bias": [2]}
    assert (header["model"]["class"], header["model"]["parameters"]) == ("Sequential", 26)
    assert header["optimizer"]["class"] == "Adam"
    [group] = header["optimizer"]["groups"]
    assert (group["lr"], group["betas"]) == (0.01, [0.9, 0.999])
    assert header["objective"] == {
        "loss_terms": 12.0,
        "batches": 1,
        "mode": "eval",
        "parameters": 26,
        "batch_norm": 0,
    }
    assert header["model"]["not_in_optimizer"] == []
    assert [probe["name"] for probe in header["probes"]] == ["sharpness", "learning_rate", "units"]
    assert header["settings"] == {"every": "every 2 steps", "budget": 0.1}


def test_the_header_names_what_the_optimizer_does_not_hold(folder: Path) -> None:
    """Only what could train: a frozen backbone is left out on purpose."""
    toy = Toy()
    toy.model[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(toy.model[2].parameters(), lr=0.1)
    Monitor(toy.model, optimizer, toy.objective, out=folder, probes=[])
    assert Run.open(folder).header["model"]["not_in_optimizer"] == ["0.weight"]


def test_the_header_names_the_wrappers_of_the_optimizer_and_their_settings(folder: Path) -> None:
    toy = Toy()
    sam = SAM(toy.model.parameters(), torch.optim.SGD, rho=0.3, lr=0.1)
    Monitor(toy.model, sam, toy.objective, out=folder / "sam", probes=[])
    Monitor(toy.model, toy.optimizer, toy.objective, out=folder / "sgd", probes=[])
    sam_header, plain = (Run.open(folder / name).header for name in ("sam", "sgd"))
    assert sam_header["optimizer"]["class"] == "SAM around SGD"
    assert sam_header["optimizer"]["wrappers"] == [{"class": "SAM", "rho": 0.3}]
    assert sam_header["model"]["not_in_optimizer"] == []
    assert plain["optimizer"]["class"] == "SGD"
    assert "wrappers" not in plain["optimizer"]


def test_the_header_counts_the_batch_normalisations_with_running_statistics(folder: Path) -> None:
    norms = (nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False), nn.LayerNorm(4), nn.BatchNorm1d(4))
    model = nn.Sequential(nn.Linear(3, 4), *norms)
    objective = Objective(model, nn.MSELoss(), (torch.randn(6, 3), torch.randn(6, 4)))
    Monitor(model, torch.optim.SGD(model.parameters(), lr=0.1), objective, out=folder, probes=[])
    assert Run.open(folder).header["objective"]["batch_norm"] == 2


def test_a_header_of_odd_values_is_still_strict_json(toy: Toy, folder: Path) -> None:
    """Settings of a probe and groups of an optimizer may hold anything."""

    class Odd(Watch):
        def settings(self) -> dict[str, Any]:
            return {"a": numpy.float32(0.5), "b": {1: math.nan}, "c": [object, torch.tensor([math.inf])], "d": {1, 2}}

    toy.optimizer.param_groups[0]["clip"] = math.inf
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[Odd()], budget=math.inf):
        pass
    header = _strict((folder / "run.json").read_text(encoding="utf-8"))
    assert header["probes"][0]["settings"] == {
        "a": 0.5,
        "b": {"1": "nan"},
        "c": ["<class 'object'>", ["inf"]],
        "d": "{1, 2}",
    }
    assert header["optimizer"]["groups"][0]["clip"] == "inf"
    assert header["settings"]["budget"] == "inf"


def test_the_header_is_there_at_once_and_whole(toy: Toy, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written to another name and moved: a reader never sees half of it."""
    moves = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moves.append((a, _strict(Path(a).read_text()))), replace(a, b)))
    Monitor(toy.model, toy.optimizer, out=folder, probes=[])
    [(temporary, content)] = moves
    assert temporary.parent == folder
    assert _strict((folder / "run.json").read_text()) == content
    assert Run.open(folder).records == []


def test_each_measurement_is_one_write_of_whole_lines(toy: Toy, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, content: (writes.append(content), write(file, content))[1])
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, every=1, budget=None):
        toy.step()
    assert len(writes) == 2 * 3 + 1
    assert all(content.endswith(b"\n") for content in writes)
    assert b"".join(writes) == (folder / "records.jsonl").read_bytes()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "uint8", "bool"])
def test_arrays_of_every_kind_and_layout_come_back(dtype: str, toy: Toy, folder: Path) -> None:
    plain = (numpy.arange(12).reshape(3, 4) % 5).astype(dtype)
    layouts = {"plain": plain, "transposed": plain.T, "strided": plain[:, ::2], "empty": plain[:0]}
    layouts["scalar"] = numpy.array(plain[1, 1])

    class Arrays(Watch):
        def measure(self, moment: Moment) -> list[Reading]:
            return [Reading("a", 1.0, layer=name, array=array) for name, array in layouts.items()]

    with Monitor(toy.model, toy.optimizer, out=folder, probes=[Arrays()]):
        pass
    run = Run.open(folder)
    for name, array in layouts.items():
        record = run.last("watch", "a", name)
        assert record.array == "watch-00000000.safetensors"
        read = run.array(record)
        assert read.dtype == array.dtype
        assert numpy.array_equal(read, array)
    assert load_file(folder / "arrays" / record.array).keys() == {f"a/{name}" for name in layouts}


def test_pandas_reads_the_records_as_they_are(measured: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.read_json(measured / "records.jsonl", lines=True)
    assert list(table.columns) == KEYS
    assert len(table) == len(Run.open(measured).records)
    assert table["value"].dtype == numpy.float64


@pytest.mark.skipif(importlib.util.find_spec("polars") is None, reason="polars is not installed")
def test_polars_reads_the_records_as_they_are(measured: Path) -> None:
    import polars

    table = polars.read_ndjson(measured / "records.jsonl")
    assert table.columns == KEYS
    assert table.height == len(Run.open(measured).records)


@pytest.mark.skipif(importlib.util.find_spec("duckdb") is None, reason="duckdb is not installed")
def test_duckdb_reads_the_records_as_they_are(measured: Path) -> None:
    import duckdb

    table = duckdb.read_json(str(measured / "records.jsonl"), format="newline_delimited")
    assert table.columns == KEYS
    assert len(table.fetchall()) == len(Run.open(measured).records)


@pytest.mark.parametrize("name", ["with spaces and ünïcode 📈", "deep/er/still", "%s {0} 'quoted'"])
def test_folders_of_any_name(name: str, toy: Toy, tmp_path: Path) -> None:
    with Monitor(toy.model, toy.optimizer, toy.objective, out=str(tmp_path / name), every=1):
        toy.step()
    run = Run.open(tmp_path / name)
    assert run.series("sharpness", "ratio").steps.tolist() == [0, 1]
    assert run.array(run.last("units", "units", "1")) is not None


def test_a_folder_that_holds_a_run_is_refused_untouched(measured: Path, toy: Toy) -> None:
    before = {path: path.read_bytes() for path in measured.rglob("*") if path.is_file()}
    with pytest.raises(DiagnosticsError, match=r"out: .* already holds a run; .*resume=STEP"):
        Monitor(toy.model, toy.optimizer, out=measured)
    (measured / "run.json").rename(measured / "elsewhere.json")
    with pytest.raises(DiagnosticsError, match="already holds a run"):
        Monitor(toy.model, toy.optimizer, out=measured)
    (measured / "elsewhere.json").rename(measured / "run.json")
    assert {path: path.read_bytes() for path in measured.rglob("*") if path.is_file()} == before


def test_an_empty_folder_will_do(toy: Toy, folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[]):
        pass
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["file", "file/below", "link", "/proc/nowhere"])
def test_a_folder_that_cannot_be_made_is_one_clear_error_before_training(place: str, toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(DiagnosticsError, match="cannot be written") as refusal:
        Monitor(toy.model, toy.optimizer, out=tmp_path / place)
    assert str(refusal.value).startswith("out: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_read_only_folder_is_one_clear_error_before_training(toy: Toy, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DiagnosticsError, match="cannot be written"):
        Monitor(toy.model, toy.optimizer, out=tmp_path / "run")
