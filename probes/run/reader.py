"""Reading a run: the header, the records, and series over steps."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
from safetensors import SafetensorError
from safetensors.numpy import load_file

from diagnostics import DiagnosticsError
from probes.run.header_check import wrong_in
from probes.run.records import Record, parse

if TYPE_CHECKING:
    import pandas

SCHEMA_VERSION = 1
HEADER, RECORDS, ARRAYS = "run.json", "records.jsonl", "arrays"


@dataclass(frozen=True)
class Series:
    """One quantity over training; where a step was measured twice, the later one counts.

    Attributes:
        steps: (n,) int64, increasing.
        values: (n,) float64; NaN where the value was not finite.
        errors: (n,) float64; NaN where there is none.
    """

    steps: numpy.ndarray
    values: numpy.ndarray
    errors: numpy.ndarray

    def __len__(self) -> int:
        return len(self.steps)


class Run:
    """What was measured: from a folder with ``Run.open``, or from records in memory.

    Args:
        header: what ``run.json`` holds.
        records: in the order in which they were made.
        path: the folder, if there is one.
        torn: bytes of a half-written last line that were left out.
        arrays: by probe and name, where there is no folder that could hold them.

    Example:
        >>> run = Run({}, [Record(step=0, time=0.0, probe="loop", name="loss", value=2.0)])
        >>> run.series("loop", "loss").values
        array([2.])
    """

    def __init__(
        self,
        header: Mapping[str, Any],
        records: Iterable[Record],
        path: Path | None = None,
        torn: int = 0,
        arrays: Mapping[tuple[str, str], numpy.ndarray] | None = None,
    ) -> None:
        self._arrays: dict[tuple[str, str], numpy.ndarray] = dict(arrays or {})
        self.header = dict(header)
        self.records = list(records)
        self.path = path
        self.torn = torn
        self._groups: dict[tuple[str, str, str | None], list[Record]] = defaultdict(list)
        self._probes: dict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            self._groups[record.probe, record.name, record.layer].append(record)
            self._probes[record.probe].append(record)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Read a run folder, also one that is still being written or was cut off; the files are not touched.

        Raises:
            DiagnosticsError: no run there, or one of a newer format.
        """
        folder = Path(path)
        header = read_header(folder)
        try:
            content = (folder / RECORDS).read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError as problem:
            raise DiagnosticsError(f"{folder / RECORDS} cannot be read", given=str(problem)) from problem
        records, whole = whole_records(content, folder / RECORDS)
        return cls(header, records, folder, torn=len(content) - whole)

    def series(self, probe: str, name: str, layer: str | None = None) -> Series:
        """The values of one quantity over steps; empty if it was never measured."""
        by_step = {
            record.step: record for record in self._groups.get((probe, name, layer), []) if record.status == "ok"
        }
        chosen = [by_step[step] for step in sorted(by_step)]
        return Series(
            steps=numpy.array([record.step for record in chosen], dtype=numpy.int64),
            values=numpy.array([_number(record.value) for record in chosen], dtype=numpy.float64),
            errors=numpy.array([_number(record.error) for record in chosen], dtype=numpy.float64),
        )

    def of(self, probe: str, name: str | None = None) -> list[Record]:
        """The records of one probe, or of one quantity of it, in the order in which they were made."""
        found = self._probes.get(probe, [])
        return list(found) if name is None else [record for record in found if record.name == name]

    def layers(self, probe: str, name: str) -> list[str]:
        """The layers for which a quantity was measured, in the order in which they first appear."""
        return [layer for one, other, layer in self._groups if (one, other) == (probe, name) and layer is not None]

    def last(self, probe: str, name: str, layer: str | None = None) -> Record | None:
        """The latest record of a quantity that holds a finite value."""
        everything = self._groups.get((probe, name, layer), [])
        good = [record for record in everything if record.status == "ok" and math.isfinite(_number(record.value))]
        # Of two at one step the one written later, as in a series.
        return max(reversed(good), key=lambda record: record.step, default=None)

    @property
    def steps(self) -> int:
        """The last step that was measured."""
        return max((record.step for record in self.records), default=0)

    def array(self, record: Record, axes: int | None = None) -> numpy.ndarray | None:
        """The array that belongs to a record; None when it has none or its file is gone or damaged.

        Args:
            record: one of the run's.
            axes: how many it must have, where that matters; one of another shape, or without entries, is damage.
        """
        array = self._array(record)
        if array is not None and axes is not None and (array.ndim != axes or not array.size):
            return None
        return array

    def _array(self, record: Record) -> numpy.ndarray | None:
        if (record.probe, array_key(record)) in self._arrays:
            return self._arrays[record.probe, array_key(record)]
        if record.array is None or self.path is None:
            return None
        try:
            arrays: dict[str, numpy.ndarray] = load_file(self.path / ARRAYS / Path(record.array).name)
        # A name of its own making may be no file name; damaged headers raise what they like.
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        return arrays.get(array_key(record))

    def to_pandas(self) -> pandas.DataFrame:
        """All records, a row each. Needs pandas."""
        import pandas

        columns = [field.name for field in fields(Record)]
        return pandas.DataFrame([asdict(record) for record in self.records], columns=columns)


def array_key(record: Record) -> str:
    """Under which name a record's array stands in its file, which one measurement of a probe shares."""
    return record.name if record.layer is None else f"{record.name}/{record.layer}"


def read_header(folder: Path) -> dict[str, Any]:
    """The run's ``run.json``."""
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    # Brackets in brackets beyond what Python can follow are damage too.
    except (OSError, ValueError, RecursionError) as problem:
        raise DiagnosticsError(
            f"{folder} is not a run folder",
            given=f"{HEADER}: {problem}",
            expected=f"a folder that a Monitor wrote, with {HEADER} and {RECORDS}",
        ) from problem
    version = header.get("schema_version") if isinstance(header, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise DiagnosticsError(f"{folder / HEADER} is not a run header", expected="a JSON object with schema_version")
    if version > SCHEMA_VERSION:
        raise DiagnosticsError(
            f"{folder} was written by a newer version",
            given=f"schema_version {version}",
            expected=f"at most {SCHEMA_VERSION}",
            attempt="upgrade this package",
        )
    if wrong := wrong_in(header):
        raise DiagnosticsError(
            f"{folder / HEADER} is damaged",
            given=wrong[:200],
            expected="a header as a Monitor writes it",
            attempt="restore it from a copy",
        )
    return dict(header)


def whole_records(content: bytes, name: Path) -> tuple[list[Record], int]:
    """The records in a file, and how many of its bytes hold whole lines; a torn last line is left out.

    Raises:
        DiagnosticsError: a line before the last is damaged.
    """
    whole = content.rfind(b"\n") + 1
    records = []
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        try:
            records.append(parse(line.decode("utf-8")))
        except (ValueError, TypeError, RecursionError) as problem:
            raise DiagnosticsError(
                f"{name} is damaged at line {number}",
                given=repr(line[:60]),
                expected="one JSON record per line",
                attempt="remove that line to read the rest",
            ) from problem
    return records, whole


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
