"""The latest value of a quantity for each tensor, layer or parameter."""

from __future__ import annotations

from collections.abc import Sequence

from probes.run import Run
from reports.charts import short


def latest(run: Run, name: str) -> dict[str, float]:
    """By tensor, in the order of the model; those without a finite value are left out."""
    records = {layer: run.last("weights", name, layer) for layer in run.layers("weights", name)}
    return {
        layer: float(record.value)
        for layer, record in records.items()
        if record is not None and record.value is not None
    }


def listed(names: Sequence[str], most: int = 3) -> str:
    """A few names, and how many more."""
    shown = ", ".join(short(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
