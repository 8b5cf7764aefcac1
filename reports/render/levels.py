"""How a level is said without colour: a word and a shape, the same in every medium."""

from __future__ import annotations

from collections.abc import Iterable

from reports.finding import LEVELS, Finding, Level

WORD: dict[Level, str] = {"fail": "Fail", "warn": "Warning", "unmeasured": "Not measured", "ok": "OK"}
SHAPE: dict[Level, str] = {"fail": "✗", "warn": "!", "unmeasured": "?", "ok": "✓"}
_COUNTED: dict[Level, tuple[str, str]] = {
    "fail": ("fail", "fails"),
    "warn": ("warning", "warnings"),
    "unmeasured": ("not measured", "not measured"),
    "ok": ("ok", "ok"),
}


def counts(findings: Iterable[Finding]) -> list[tuple[Level, str]]:
    """Each level that occurs with its count in words, worst first.

    Example:
        >>> counts([])
        []
    """
    levels = [finding.level for finding in findings]
    return [(level, f"{number} {_COUNTED[level][number > 1]}") for level in LEVELS if (number := levels.count(level))]
