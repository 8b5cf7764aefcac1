"""From a Run to a Document: chapters read, findings ordered, and the verdict in one sentence."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from probes.run import Record, Run
from reports.catalogue import CHAPTERS
from reports.document import Document, Table
from reports.finding import Finding, Level, worst_first


def compose(run: Run, title: str, only: Collection[str] | None = None) -> Document:
    """The whole report on a run.

    Args:
        run: what was measured.
        title: what the report is about.
        only: names of the chapters wanted; None for all.
    """
    chapters = [read(run) for name, read in CHAPTERS.items() if only is None or name in only]
    findings = worst_first(tuple(finding for chapter in chapters for finding in chapter.findings))
    return Document(
        title=title,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        level=_level(findings),
        diagnosis=_diagnosis(findings),
        summary=_summary(run),
        findings=findings,
        figures=tuple(figure for chapter in chapters for figure in chapter.figures),
        facts=tuple(_facts(run)),
        methods=_methods(run),
        skipped=_skipped(run),
    )


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
    return "Nothing calls for action. " + good.claim


def _summary(run: Run) -> str:
    model, optimizer = run.header.get("model") or {}, run.header.get("optimizer") or {}
    parts = [f"{model.get('class') or 'model'}, {model['parameters']:,} parameters"] if model.get("parameters") else []
    if optimizer.get("class"):
        parts.append(_optimizer(optimizer).replace(":", ""))
    return " · ".join([*parts, f"step {run.steps:,}"])


def _facts(run: Run) -> list[tuple[str, str]]:
    header = run.header
    model, objective, optimizer = (header.get(key) or {} for key in ("model", "objective", "optimizer"))
    facts = [("file", str(header["file"]))] if header.get("file") else []
    if model:
        kind = f"{model['class']}, " if model.get("class") else ""
        facts.append(
            ("model", f"{kind}{model.get('parameters', 0):,} parameters in {len(model.get('shapes', {}))} tensors")
        )
    if optimizer:
        facts.append(("optimizer", _optimizer(optimizer)))
    if objective:
        facts.append(
            (
                "measured on",
                f"{objective['loss_terms']:,.0f} loss terms in {objective['batches']} batch"
                f"{'es' if objective['batches'] != 1 else ''}, {objective['mode']} mode, "
                f"{objective['parameters']:,} parameters",
            )
        )
    facts.append(("last step", f"{run.steps:,}"))
    if cost := _cost(run):
        facts.append(("cost of measuring", cost))
    if header.get("device"):
        facts.append(("device", str(header["device"])))
    if header.get("created"):
        facts.append(("measured", str(header["created"]).replace("T", " ")))
    facts += [("note", str(note)) for note in header.get("notes", ())]
    if run.torn:
        facts.append(("note", "the last record was cut off while it was being written, and left out"))
    if versions := header.get("versions"):
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return facts


def _optimizer(optimizer: dict[str, Any]) -> str:
    groups = optimizer.get("groups", [])
    shown = ("lr", "momentum", "betas", "weight_decay", "nesterov")
    texts = [
        ", ".join(f"{key} {group[key]}" for key in shown if group.get(key) not in (None, 0, False))
        for group in groups[:3]
    ]
    more = f" and {len(groups) - 3} groups more" if len(groups) > 3 else ""
    return f"{optimizer.get('class') or 'optimizer'}: {'; '.join(texts)}{more}"


def _cost(run: Run) -> str:
    training = run.last("monitor", "training_seconds")
    if training is None or training.value is None:
        return ""
    spent = sum(
        (run.last("monitor", "seconds", probe) or training).value or 0.0 for probe in run.layers("monitor", "seconds")
    )
    return f"{spent:.1f} s beside {training.value:.1f} s of training"


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
    """Everything that was not measured, with the reason, the same reasons together."""
    groups: dict[tuple[str, str, str, str], list[int]] = {}
    for record in run.records:
        if record.status != "ok":
            what = record.probe if record.name == "measurement" else f"{record.probe} {record.name}"
            layer = record.layer or ""
            groups.setdefault((what, layer, record.status, record.note or ""), []).append(record.step)
    rows = tuple(
        (
            f"{what} {layer}".strip(),
            status,
            len(steps),
            f"{min(steps)} to {max(steps)}" if len(steps) > 1 else str(steps[0]),
            note,
        )
        for (what, layer, status, note), steps in groups.items()
    )
    return Table(("what", "status", "times", "steps", "why"), rows)
