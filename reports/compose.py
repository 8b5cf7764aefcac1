"""From a Run to a Document: chapters read, findings ordered, and the verdict in one sentence."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from datetime import UTC, datetime

from probes.run import Record, Run
from reports.catalogue import CHAPTERS
from reports.causes import causes_first
from reports.document import Document, Table
from reports.facts import facts, summary
from reports.finding import Finding, Level
from reports.raw import raw

NAMED = 3
"""So many names stand in one row of what was not measured."""
OFF = "(switched off"
"""How the Monitor says that it gave up on a probe, behind the reason."""


def compose(run: Run, title: str, only: Collection[str] | None = None) -> Document:
    """The whole report on a run.

    Args:
        run: what was measured.
        title: what the report is about.
        only: names of the chapters wanted; None for all.
    """
    chapters = [read(run) for name, read in CHAPTERS.items() if only is None or name in only]
    findings = causes_first(tuple(finding for chapter in chapters for finding in chapter.findings))
    return Document(
        title=title,
        created=_created(run),
        level=_level(findings),
        diagnosis=_diagnosis(findings),
        summary=summary(run),
        findings=findings,
        figures=tuple(figure for chapter in chapters for figure in chapter.figures),
        facts=tuple(facts(run)),
        methods=_methods(run),
        skipped=_skipped(run),
        records=raw(run),
    )


def _created(run: Run) -> str:
    """When the last was measured: with the clock of the rendering, no two reports on one run would be the same."""
    last = max((record.time for record in run.records), default=0.0)
    try:
        if last > 0:
            return datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds")
    # A damaged record may hold any number.
    except (ValueError, OverflowError, OSError):
        pass
    return str(run.header.get("created") or datetime.now(UTC).isoformat(timespec="seconds"))


def _level(findings: tuple[Finding, ...]) -> Level:
    # What was not measured does not decide a verdict that something else can carry.
    order: tuple[Level, ...] = ("fail", "warn", "ok")
    levels = {finding.level for finding in findings}
    return next((level for level in order if level in levels), "unmeasured")


def _diagnosis(findings: tuple[Finding, ...]) -> str:
    if not findings:
        return "Nothing was measured, so nothing can be said."
    worst = [finding for finding in findings if finding.level in ("fail", "warn")]
    if worst:
        more = f" {len(worst) - 1} more below." if len(worst) > 1 else ""
        return worst[0].claim + more
    good = next((finding for finding in findings if finding.level == "ok"), None)
    if good is None:
        return "Nothing could be judged: " + findings[0].claim[0].lower() + findings[0].claim[1:]
    gaps = sum(finding.level == "unmeasured" for finding in findings)
    but = f", but {'one thing was' if gaps == 1 else f'{gaps} things were'} not measured" if gaps else ""
    loss = next((one for one in findings if one.id == "training/loss" and one is not good), None)
    said = f" {loss.claim}" if loss is not None and loss.level == "ok" else ""
    return f"Nothing calls for action{but}.{said} {good.claim.partition(':')[0].rstrip('.')}."


def _methods(run: Run) -> Table:
    """How the latest values were taken; quantities that share a probe and a method share a row."""
    latest: dict[tuple[str, str], Record] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for record in run.records:
        if record.status == "ok" and record.probe not in ("loop", "monitor"):
            counts[record.probe, record.name] += 1
            if record.note:
                latest[record.probe, record.name] = record
    shared: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (probe, name), record in latest.items():
        shared[probe, str(record.note)].append(name)
    rows = tuple(
        (probe.replace("_", " "), ", ".join(names).replace("_", " "), sum(counts[probe, name] for name in names), note)
        for (probe, note), names in shared.items()
    )
    return Table(("probe", "quantities", "values", "how the last was taken"), rows)


def _skipped(run: Run) -> Table:
    """Everything that was not measured, with the reason, the same reasons together.

    What could not be measured before the first step (an optimizer without state), and was later, is left out.
    """
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    later = {record.probe for record in run.records if record.step > 0 and record.status == "ok"}
    for record in run.records:
        before_the_start = record.step == 0 and record.status == "skipped" and record.probe in later
        if record.status != "ok" and not before_the_start:
            groups[record.status, _reason(record.note or "")].append(record)
    rows = tuple(
        (_what(some), status, _when({one.step for one in some}), why) for (status, why), some in groups.items()
    )
    return Table(("what", "status", "when", "why"), rows)


def _reason(note: str) -> str:
    """The first clause: what was given, expected and to try stands in the records."""
    clause, _, rest = note.partition("; given:")
    return clause + (f" {rest[rest.rindex(OFF) :]}" if OFF in rest else "")


def _what(records: list[Record]) -> str:
    """What was not measured for one reason: a few names, and how many more."""
    names = []
    for record in records:
        name = "" if record.name == "measurement" else record.name
        # Names of layers are left as the model has them.
        words = (part.replace("_", " ") for part in (record.probe, name))
        names.append(" ".join(part for part in (*words, record.layer) if part))
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _when(steps: set[int]) -> str:
    if len(steps) == 1:
        return f"at step {min(steps)}"
    return f"{len(steps)} times, steps {min(steps)} to {max(steps)}"
