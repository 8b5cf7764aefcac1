"""Writing a run so that a kill at any moment loses at most the last line.

The header is written once, to a temporary file that is then renamed. Records are appended, whole lines in one
``write`` each time, with no buffer of ours in between. Arrays go to their own files by rename before the record that
names them.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save

from diagnostics import DiagnosticsError
from probes.run.reader import ARRAYS, HEADER, RECORDS, read_header, whole_records
from probes.run.records import Record


class RunWriter:
    """Appends to one run folder.

    Args:
        folder: where; made if it does not exist.
        header: written to ``run.json`` for a new run.
        resume: None for a new run; otherwise the step that training restarts from: later records are dropped.

    Raises:
        DiagnosticsError: there is a run already and ``resume`` is None, there is none and it is not, the run there is
            of another model, or nothing can be written there.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], resume: int | None) -> None:
        self.folder = folder
        try:
            self._file = self._prepare(header, resume)
        except OSError as problem:
            raise DiagnosticsError(
                f"out: {folder} cannot be written", given=str(problem), expected="a folder that can be made and written"
            ) from problem

    def _prepare(self, header: Mapping[str, Any], resume: int | None) -> int:
        folder = self.folder
        exists = (folder / HEADER).exists() or (folder / RECORDS).exists()
        if exists and resume is None:
            raise DiagnosticsError(
                f"out: {folder} already holds a run",
                expected="a new folder",
                attempt="another name, resume=STEP to continue from a checkpoint, or delete the folder",
            )
        if resume is not None and not exists:
            raise DiagnosticsError(
                f"there is no run to resume in {folder}",
                given=f"resume={resume}",
                expected=f"a folder that a Monitor wrote, with {HEADER} and {RECORDS}",
                attempt="resume=None to begin a new run there",
            )
        (folder / ARRAYS).mkdir(parents=True, exist_ok=True)
        if resume is not None:
            _require_same_model(folder, header)
            _drop_after(folder, resume)
        else:
            replace_file(folder / HEADER, json.dumps(header, indent=2, ensure_ascii=False).encode(errors="replace"))
        return os.open(folder / RECORDS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, records: Iterable[Record]) -> None:
        """Add records, all their lines in one write."""
        content = _lines(records)
        if content and os.write(self._file, content) < len(content):
            # Whatever came after half a line would make it a damaged line in the middle.
            raise OSError(errno.ENOSPC, "only a part was written", str(self.folder / RECORDS))

    def save_arrays(self, name: str, arrays: Mapping[str, numpy.ndarray]) -> str:
        """Store arrays under ``arrays/`` and return the file name for the record."""
        file = f"{name}.safetensors"
        # safetensors takes the bytes of a transposed array as they lie.
        rows = {key: numpy.asarray(array, order="C") for key, array in arrays.items()}
        replace_file(self.folder / ARRAYS / file, save(rows))
        return file

    def close(self) -> None:
        """Close the file; everything is already written."""
        os.close(self._file)


def replace_file(path: Path, content: bytes) -> None:
    """Write a whole file or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _lines(records: Iterable[Record]) -> bytes:
    # Half a surrogate, as in the name of a file on disk, has no place in UTF-8.
    return "".join(record.line() for record in records).encode(errors="replace")


def _require_same_model(folder: Path, header: Mapping[str, Any]) -> None:
    before, now = (_identity(one.get("model")) for one in (read_header(folder), header))
    if before != now:
        raise DiagnosticsError(
            f"out: the run in {folder} is of another model",
            given=str(now),
            expected=str(before),
            attempt="another folder for this model",
        )


def _identity(model: Any) -> dict[str, Any]:
    """What makes a model the same model; which of its parameters train may change on the way."""
    known = model if isinstance(model, Mapping) else {}
    return {key: known.get(key) for key in ("class", "parameters", "hash")}


def _drop_after(folder: Path, step: int) -> None:
    """Trim a torn tail, the records past the step that training restarts from, and arrays that no record names."""
    path = folder / RECORDS
    content = path.read_bytes() if path.exists() else b""
    records, whole = whole_records(content, path)
    kept = [record for record in records if record.step <= step]
    if len(kept) < len(records) or whole < len(content):
        replace_file(path, _lines(kept))
    used = {record.array for record in kept}
    for array in (folder / ARRAYS).glob("*.safetensors*"):
        if array.name not in used:
            array.unlink()
