"""What reading a run gives for one theme: verdicts, and the figures that show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probes.run import Record, Run
from probes.run.reader import Series
from reports.document import Figure, Table
from reports.finding import Finding


@dataclass(frozen=True)
class Chapter:
    """Findings and figures of one theme."""

    findings: tuple[Finding, ...] = ()
    figures: tuple[Figure, ...] = ()


def unmeasured(id: str, what: str, reason: str, advice: Sequence[str], citation: str) -> Finding:
    """A verdict that could not be reached, with the reason. Never green."""
    reason = reason.removeprefix("undetermined: ")
    return Finding(
        id=id,
        level="unmeasured",
        claim=f"{what} was not measured: {reason}.",
        value=None,
        threshold="",
        meaning="Nothing is known here, good or bad.",
        advice=tuple(advice),
        evidence=(),
        method="",
        citation=citation,
    )


def reason_missing(run: Run, probe: str) -> str | None:
    """Why a probe gave nothing, in its own words; None when it was never asked."""
    silent = [record for record in run.of(probe) if record.status != "ok" and record.note]
    return None if not silent else str(silent[-1].note).rstrip(".")


def method_of(record: Record | None) -> str:
    """How the latest number was taken."""
    return "" if record is None or record.note is None else record.note


def step_table(columns: Sequence[str], series: Sequence[Series]) -> Table:
    """A table of several quantities by step; None where one was not measured."""
    steps = sorted({int(step) for one in series for step in one.steps})
    lookup = [dict(zip(one.steps.tolist(), one.values.tolist(), strict=True)) for one in series]
    return Table(("step", *columns), tuple((step, *(values.get(step) for values in lookup)) for step in steps))
