"""Runs made of records, for readings that need no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probes.run import Record, Run

Values = Sequence[float | None]
Key = tuple[str, str] | tuple[str, str, str]


def run_of(
    quantities: Mapping[Key, Values],
    header: Mapping[str, Any] | None = None,
    error: float | None = 0.01,
    every: int = 10,
) -> Run:
    """A run whose quantities take the given values at steps 0, ``every``, 2 ``every``, ..."""
    records = [
        Record(
            step=every * index,
            time=0.0,
            probe=key[0],
            name=key[1],
            layer=key[2] if len(key) > 2 else None,
            value=value,
            error=error,
            note="by hand",
        )
        for key, values in quantities.items()
        for index, value in enumerate(values)
    ]
    return Run(header or {}, records)
