"""Where each figure stands: beneath the first finding that cites it, or with the rest of the evidence."""

from __future__ import annotations

from dataclasses import dataclass

from reports.document import Document, Figure
from reports.finding import Finding, worst_first


@dataclass(frozen=True)
class Shown:
    """A finding with the figures that stand beneath it and those it cites that stand beneath an earlier one."""

    finding: Finding
    figures: tuple[Figure, ...]
    elsewhere: tuple[Figure, ...]


def arrange(document: Document) -> tuple[tuple[Shown, ...], tuple[Figure, ...]]:
    """The findings worst first with their figures, and the figures that no finding cites.

    Evidence that names a figure the document does not have is left out: a measure may conclude without drawing.
    """
    waiting = {figure.id: figure for figure in document.figures}
    every = dict(waiting)
    shown = []
    for finding in worst_first(document.findings):
        cited = [name for name in dict.fromkeys(finding.evidence) if name in every]
        here = tuple(waiting.pop(name) for name in cited if name in waiting)
        shown.append(Shown(finding, here, tuple(every[name] for name in cited if every[name] not in here)))
    return tuple(shown), tuple(waiting.values())
