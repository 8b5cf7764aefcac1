"""A report for machines: the same findings and values, without drawings."""

from __future__ import annotations

import json
import math
from numbers import Integral, Real
from typing import Any

from reports.document import Document, Figure, Table
from reports.finding import Finding, worst_first

SCHEMA_VERSION = 1


def to_json(document: Document) -> str:
    """The document as strict JSON; a number that is not finite is null.

    A finding's ``value``, ``error``, ``kind`` and ``how`` are all null when nothing was measured.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "title": document.title,
        "created": document.created,
        "level": document.level,
        "diagnosis": document.diagnosis,
        "summary": document.summary,
        "facts": [{"name": name, "value": value} for name, value in document.facts],
        "tables": [
            {"id": sheet.id, "title": sheet.title, "text": sheet.text, "table": _table(sheet.table)}
            for sheet in document.sheets
        ],
        "findings": [_finding(finding) for finding in worst_first(document.findings)],
        "figures": [_figure(figure) for figure in document.figures],
        "methods": _table(document.methods),
        "skipped": _table(document.skipped),
    }
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1)
    # A file name that is not UTF-8 comes with lone surrogates, which only an escape can carry.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finding(finding: Finding) -> dict[str, Any]:
    estimate = finding.value
    return {
        "id": finding.id,
        "level": finding.level,
        "claim": finding.claim,
        "value": _plain(estimate.value) if estimate else None,
        "error": _plain(estimate.error) if estimate else None,
        "kind": estimate.kind if estimate else None,
        "how": estimate.how if estimate else None,
        "threshold": finding.threshold,
        "meaning": finding.meaning,
        "advice": list(finding.advice),
        "evidence": list(finding.evidence),
        "method": finding.method,
        "citation": finding.citation,
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {"id": figure.id, "title": figure.title, "caption": figure.caption, "table": _table(figure.table)}


def _table(table: Table) -> dict[str, Any]:
    return {"columns": list(table.columns), "rows": [[_plain(cell) for cell in row] for row in table.rows]}


def _plain(cell: str | float | int | None) -> str | float | int | None:
    if isinstance(cell, Integral):
        return int(cell)
    if isinstance(cell, Real):
        return float(cell) if math.isfinite(cell) else None
    return cell
