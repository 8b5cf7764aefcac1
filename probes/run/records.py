"""One measurement as one line: the fixed schema of ``records.jsonl``.

Every line has the same ten keys, so pandas, polars and duckdb read the file as it is. JSON knows no NaN: a value that
is not finite is null, and its note says what it was.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

Status = Literal["ok", "skipped", "failed"]


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes:
        step: optimizer steps taken when it was made.
        time: seconds since the epoch.
        probe: who measured.
        name: what, e.g. ``"ratio"``.
        layer: of which tensor or non-linearity; None for the whole model.
        value: the number; None when there is none.
        error: its error; None when it has none to speak of.
        status: ``"ok"``, ``"skipped"`` (not taken, for the reason in the note) or ``"failed"``.
        note: how it was taken, or why it was not.
        array: file under ``arrays/`` with what does not fit in a number.
    """

    step: int
    time: float
    probe: str
    name: str
    layer: str | None = None
    value: float | None = None
    error: float | None = None
    status: Status = "ok"
    note: str | None = None
    array: str | None = None

    def line(self) -> str:
        """The record as one line of strict JSON, newline included."""
        return json.dumps(asdict(_finite(self)), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


_LARGEST, _HUGE = 2**63, 2**1024
"""What integers and floats can hold; JSON knows no bound."""

_KEYS = tuple(field.name for field in fields(Record))


def parse(line: str) -> Record:
    """The record in a line.

    Raises:
        ValueError: the line is not one whole record.

    Example:
        >>> record = Record(step=3, time=0.0, probe="sharpness", name="ratio", value=0.9, error=0.01)
        >>> parse(record.line()) == record
        True
    """
    content: Any = json.loads(line)
    if not isinstance(content, dict) or not {"step", "probe", "name"} <= content.keys():
        raise ValueError("not a record")
    record = Record(**{key: content[key] for key in _KEYS if key in content})
    numbers = [number for number in (record.value, record.error) if number is not None]
    texts = [text for text in (record.layer, record.note, record.array) if text is not None]
    if (
        record.status not in get_args(Status)
        or not isinstance(record.step, int)
        or not abs(record.step) < _LARGEST
        or not all(isinstance(number, int | float) for number in (record.time, *numbers))
        or any(isinstance(number, int) and abs(number) >= _HUGE for number in (record.time, *numbers))
        or any(isinstance(number, bool) for number in (record.step, record.time, *numbers))
        or not all(isinstance(text, str) for text in (record.probe, record.name, *texts))
    ):
        raise ValueError("not a record")
    return replace(record, time=float(record.time), value=_real(record.value), error=_real(record.error))


def _real(number: float | None) -> float | None:
    """As a float, also where JSON had a whole number."""
    return None if number is None else float(number)


def _finite(record: Record) -> Record:
    """Non-finite numbers become null, with a note."""
    strange = [
        f"{key} was {number}"
        for key, number in (("value", record.value), ("error", record.error))
        if number is not None and not math.isfinite(number)
    ]
    if not strange:
        return record
    return replace(
        record,
        value=record.value if record.value is not None and math.isfinite(record.value) else None,
        error=record.error if record.error is not None and math.isfinite(record.error) else None,
        note="; ".join([*([record.note] if record.note else []), *strange]),
    )
