"""Where readings go: to the run folder and to the user's loggers. Neither may disturb the loop."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy

from diagnostics import Estimate
from probes.probe import Reading
from probes.run.reader import array_key
from probes.run.records import Record, parse
from probes.run.writer import RunWriter

FAILURES_ALLOWED = 3
"""In a row; then a probe, or a sink, is switched off."""

Sink = Callable[[Mapping[str, float], int], Any]

_log = logging.getLogger("probes")


class Journal:
    """Writes the readings of a moment as records, and hands finite values on to sinks.

    A full disk or a broken logger is reported once and then left alone: training goes on.
    """

    def __init__(self, writer: RunWriter, sinks: Iterable[Sink]) -> None:
        self._writer: RunWriter | None = writer
        self._sinks = list(sinks)
        self._failures: Counter[int] = Counter()
        self._warned: set[int] = set()

    def write(self, probe: str, step: int, readings: Iterable[Reading], *, to_sinks: bool = True) -> None:
        """Record what a probe returned at a step."""
        readings = list(readings)
        records = [to_record(probe, step, reading) for reading in readings]
        if self._writer is not None:
            try:
                self._writer.append(self._with_arrays(self._writer, probe, step, records, readings))
            except OSError as problem:
                _log.warning("the run can no longer be written, training goes on: %s", problem)
                self.close()
        if to_sinks:
            self._tell_sinks(step, records)

    def close(self) -> None:
        """Nothing more will be written."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def _with_arrays(
        self, writer: RunWriter, probe: str, step: int, records: list[Record], readings: list[Reading]
    ) -> list[Record]:
        """Store the arrays of one measurement in one file, and name it in the records they belong to."""
        pairs = list(zip(records, readings, strict=True))
        arrays = {array_key(record): reading.array for record, reading in pairs if reading.array is not None}
        if not arrays:
            return records
        file = writer.save_arrays(f"{probe}-{step:08d}", arrays)
        return [record if reading.array is None else replace(record, array=file) for record, reading in pairs]

    def _tell_sinks(self, step: int, records: list[Record]) -> None:
        scalars = {
            "/".join(part for part in ("diag", record.probe, record.name, record.layer) if part): record.value
            for record in records
            if record.status == "ok" and record.value is not None and numpy.isfinite(record.value)
        }
        for index, sink in enumerate(self._sinks):
            if not scalars or self._failures[index] >= FAILURES_ALLOWED:
                continue
            try:
                sink(dict(scalars), step)
                self._failures[index] = 0
            # A sink is somebody else's code, often with a network behind it.
            except Exception as problem:  # noqa: BLE001
                self._failures[index] += 1
                if index not in self._warned:
                    self._warned.add(index)
                    _log.warning("a sink failed at step %d and training goes on: %r", step, problem)


def to_record(probe: str, step: int, reading: Reading) -> Record:
    """A reading as the record of a step, made now."""
    value, note = reading.value, reading.note
    error = None
    if isinstance(value, Estimate):
        note = "; ".join(part for part in (note, value.how) if part)
        error = value.error
    return Record(
        step=step,
        time=time.time(),
        probe=probe,
        name=reading.name,
        layer=reading.layer,
        value=None if value is None else float(value),
        error=error,
        status=reading.status,
        note=note,
    )


def checked(reading: Any) -> Reading:
    """A reading that can be written down and read again; anything may come from a user's own probe.

    Raises:
        TypeError: it is no Reading, or holds what a record cannot.
        ValueError: likewise.
    """
    if not isinstance(reading, Reading):
        raise TypeError(f"a probe returns Readings, not {type(reading).__name__}")
    if reading.array is not None and not (
        isinstance(reading.array, numpy.ndarray) and reading.array.dtype.kind in "biuf"
    ):
        raise TypeError(f"reading {reading.name!r}: array is not a numpy array of numbers")
    try:
        parse(to_record("", 0, reading).line())
    except ValueError as problem:
        raise ValueError(f"reading {reading.name!r} cannot be written as a record: {problem}") from problem
    return reading
