"""A report as GitHub-flavoured Markdown, short enough for the summary of a CI job or a comment."""

from __future__ import annotations

import re

from diagnostics.estimate import Estimate
from reports.document import Document
from reports.finding import Finding, worst_first
from reports.render.levels import SHAPE, WORD, counts
from reports.render.tables import Cell, cell_text, printable

_SPECIAL = re.compile(r"([\\`*_\[\]{}<>|~#$!])")
_SKIPPED_SHOWN = 20


def to_markdown(document: Document) -> str:
    """The verdict, the findings worst first, what to try, and what was not measured.

    Text from outside stays text: no markup, no link, no mention of a person in it comes to life.
    """
    findings = worst_first(document.findings)
    about = " · ".join(part for part in (document.title, document.summary) if part)
    lines = [
        f"## {SHAPE[document.level]} {WORD[document.level]}: {escaped(document.diagnosis)}",
        "",
        escaped(about),
        "",
        " · ".join(words for _, words in counts(findings)) or "No findings.",
    ]
    if findings:
        lines += ["", "| | finding | claim | number | held against |", "|---|---|---|---|---|"]
        lines += [_row(finding) for finding in findings]
    lines += _advice(findings)
    lines += _skipped(document)
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    r"""The text on one line, so that Markdown shows it as it is.

    Example:
        >>> escaped("a|b <img src=x> @octocat")
        'a\\|b \\<img src=x\\> &#64;octocat'
    """
    shown = _SPECIAL.sub(r"\\\1", printable(text).replace("&", "&amp;"))
    return shown.replace("@", "&#64;").replace("://", "&#58;//").replace("www.", "www&#46;")


def _row(finding: Finding) -> str:
    badge = f"{SHAPE[finding.level]} {WORD[finding.level]}".replace(" ", "&nbsp;")
    cells = (badge, f"`{finding.id}`", escaped(finding.claim), _number(finding.value), escaped(finding.threshold))
    return f"| {' | '.join(cells)} |"


def _number(value: Estimate | None) -> str:
    return "–" if value is None else escaped(str(value))


def _advice(findings: tuple[Finding, ...]) -> list[str]:
    lines = []
    for finding in findings:
        if finding.level in ("fail", "warn"):
            lines += ["", f"**{escaped(finding.claim)}** {escaped(finding.meaning)}", ""]
            lines += [f"- {escaped(advice)}" for advice in finding.advice]
    return lines


def _skipped(document: Document) -> list[str]:
    rows = document.skipped.rows
    if not rows:
        return []
    lines = ["", f"<details><summary>Not measured: {len(rows)}</summary>", ""]
    lines += [f"- {_sentence(row)}" for row in rows[:_SKIPPED_SHOWN]]
    if len(rows) > _SKIPPED_SHOWN:
        lines.append(f"- and {len(rows) - _SKIPPED_SHOWN} more")
    return [*lines, "", "</details>"]


def _sentence(row: tuple[Cell, ...]) -> str:
    *what, why = (escaped(cell_text(cell)) for cell in row)
    return f"{', '.join(what)}: {why}"
