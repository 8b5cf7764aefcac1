"""Writing a run so that a kill at any moment loses at most the last line.

The header is written once, to a temporary file that is then renamed. Records are appended, whole lines in one
``write`` each time, with
no buffer of ours in between. Arrays go to their own files by rename before the record that names them.
"""

from __future__ import annotations

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
        DiagnosticsError: there is a run already and ``resume`` is None, or the run there is of another model.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], resume: int | None) -> None:
        self.folder = folder
        exists = (folder / HEADER).exists()
        if exists and resume is None:
            raise DiagnosticsError(
                f"out: {folder} already holds a run",
                expected="a new folder",
                attempt="another name, resume=STEP to continue from a checkpoint, or delete the folder",
            )
        (folder / ARRAYS).mkdir(parents=True, exist_ok=True)
        if exists and resume is not None:
            _require_same_model(folder, header)
            _drop_after(folder, resume)
        else:
            replace_file(folder / HEADER, json.dumps(header, indent=2, ensure_ascii=False).encode())
        self._file = os.open(folder / RECORDS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, records: Iterable[Record]) -> None:
        """Add records, all their lines in one write."""
        content = "".join(record.line() for record in records).encode()
        if content:
            os.write(self._file, content)

    def save_arrays(self, name: str, arrays: Mapping[str, numpy.ndarray]) -> str:
        """Store arrays under ``arrays/`` and return the file name for the record."""
        file = f"{name}.safetensors"
        replace_file(self.folder / ARRAYS / file, save(dict(arrays)))
        return file

    def close(self) -> None:
        """Close the file; everything is already written."""
        os.close(self._file)


def replace_file(path: Path, content: bytes) -> None:
    """Write a whole file or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _require_same_model(folder: Path, header: Mapping[str, Any]) -> None:
    before, now = read_header(folder).get("model"), header.get("model")
    if before != now:
        raise DiagnosticsError(
            f"out: the run in {folder} is of another model",
            given=str(now),
            expected=str(before),
            attempt="another folder for this model",
        )


def _drop_after(folder: Path, step: int) -> None:
    """Trim a torn tail and the records past the step that training restarts from."""
    path = folder / RECORDS
    content = path.read_bytes() if path.exists() else b""
    records, whole = whole_records(content, path)
    kept = [record for record in records if record.step <= step]
    if len(kept) < len(records) or whole < len(content):
        replace_file(path, "".join(record.line() for record in kept).encode())
    used = {record.array for record in kept}
    for array in {record.array for record in records} - used - {None}:
        (folder / ARRAYS / Path(str(array)).name).unlink(missing_ok=True)
