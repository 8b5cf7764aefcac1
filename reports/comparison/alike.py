"""Runs that were set alike and fared differently: what separates them stands in no setting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from reports.comparison.contender import Contender
from reports.comparison.settings import recorded
from reports.comparison.verdicts import listed
from reports.document import Document
from reports.finding import LEVELS, Finding
from reports.render.levels import WORD

ID = "comparison/set_alike"


def set_alike(runs: Sequence[Contender], documents: Sequence[Document]) -> list[Finding]:
    """A finding for each group of runs with the same settings and other verdicts.

    Of two runs alone the table of settings says it.
    """
    if len(runs) < 3:
        return []
    groups: dict[tuple[tuple[str, str], ...], list[int]] = defaultdict(list)
    for place, one in enumerate(runs):
        if one.same_as is None:
            groups[tuple(recorded(one.run))].append(place)
    return [
        _finding([runs[place].name for place in group], [documents[place] for place in group])
        for group in groups.values()
        if len({documents[place].level for place in group}) > 1
    ]


def _finding(names: Sequence[str], documents: Sequence[Document]) -> Finding:
    worst = min(documents, key=lambda one: LEVELS.index(one.level))
    verdicts = [f"{name} {WORD[one.level]}" for name, one in zip(names, documents, strict=True)]
    return Finding(
        id=ID,
        level="ok",
        claim=f"{listed(names)} were set alike and fared differently: {listed(verdicts)}.",
        value=None,
        threshold="",
        meaning="What separates them was not recorded: the seed, the data and their order, the initial weights. Where "
        "they differ at the first check already, it is what they began from.",
        advice=(f"Look at them by themselves, side by side. First of the worst: {worst.diagnosis}",),
        evidence=(),
        method="settings that the runs recorded, the command line left out",
        citation="",
    )
