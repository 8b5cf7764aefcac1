"""A finding: one verdict a reader can act on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diagnostics.estimate import Estimate

Level = Literal["fail", "warn", "unmeasured", "ok"]

LEVELS: tuple[Level, ...] = ("fail", "warn", "unmeasured", "ok")
"""Worst first. Unmeasured stands before ok: what was not measured is never good news."""


@dataclass(frozen=True)
class Finding:
    """One verdict: what was seen, whether it is bad, how sure we are, and what to try.

    Args:
        id: ``theme/name``, stable across versions, e.g. ``"sharpness/regime"``.
        level: ``"fail"``, ``"warn"``, ``"ok"`` or ``"unmeasured"``.
        claim: one sentence with the number and its error.
        value: the number behind the claim, or None when nothing was measured.
        threshold: what the number is held against, in words; empty when nothing.
        meaning: what the number says about training, in two or three sentences.
        advice: what to try, most promising first; empty when nothing needs doing.
        evidence: ids of the figures that show it.
        method: how it was measured.
        citation: the source, with its arXiv id where there is one.
    """

    id: str
    level: Level
    claim: str
    value: Estimate | None
    threshold: str
    meaning: str
    advice: tuple[str, ...]
    evidence: tuple[str, ...]
    method: str
    citation: str


def worst_first(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """The findings ordered by level; within a level the order given is kept."""
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level)))
