"""Numbers of the spectrum's records, in the words of a finding."""

from __future__ import annotations

import numpy

from diagnostics.estimate import format_value
from probes.run import Record, Run
from reports.chapter import unmeasured
from reports.finding import Finding

CITATION = "Sagun et al., arXiv 1706.04454; Ghorbani et al., arXiv 1901.10159"


def at_step(run: Run, name: str, step: int | None, layer: str | None = None) -> Record | None:
    """The finite number of a quantity at one step."""
    found = run.of("spectrum", name)
    found = [one for one in found if one.layer == layer and one.step == step and one.status == "ok"]
    return next((one for one in reversed(found) if one.value is not None and numpy.isfinite(one.value)), None)


def value_of(record: Record) -> float:
    """The number, NaN for none."""
    return float("nan") if record.value is None else record.value


def number(record: Record) -> str:
    """Value and error; a search that was given up is said to be one."""
    text = format_value(value_of(record), record.error)
    return f"{text} (not converged)" if "NOT CONVERGED" in (record.note or "") else text


def percent(record: Record) -> str:
    """A share with its error, in per cent; one that is not resolved is no number."""
    if not resolved(record):
        return "an undetermined share"
    return share(value_of(record), record.error or 0.0)


def share(value: float, error: float = 0.0) -> str:
    """The same from numbers; a tenth of a per cent is as close as anyone reads it."""
    return "less than 0.1 %" if abs(value) + error < 1e-3 else f"{format_value(100 * value, max(100 * error, 0.1))} %"


UNRESOLVED = 0.2
"""A share with a larger error than this is not known."""


def resolved(record: Record | None) -> bool:
    """Whether a share says something: it is a number, and its error leaves most of what lies between 0 and 1 out."""
    return record is not None and bool(numpy.isfinite(value_of(record))) and (record.error or 0.0) <= UNRESOLVED


def missing(run: Run, id: str, what: str, names: tuple[str, ...]) -> Finding | None:
    """Why a part gave nothing; None where nobody asked for it."""
    found = [record for record in run.of("spectrum") if record.name in names]
    if not found:
        return None
    reason = str(found[-1].note or "no number came of it").rstrip(".")
    return unmeasured(id, what, reason, (), CITATION)
