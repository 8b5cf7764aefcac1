"""From several runs to one Document: settings, verdicts, differences at equal steps and at equal loss, figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from reports.comparison.contender import Contender
from reports.comparison.differences import differences, reference_of, table
from reports.comparison.figures import against_loss, overlaid
from reports.comparison.matched_loss import SOONER, SOONER_WHY, matched
from reports.comparison.quantities import Compared, compared
from reports.comparison.settings import settings
from reports.comparison.verdicts import at_matched_loss, diagnose, of_run, separation, strip
from reports.compose import compose
from reports.document import Document, Sheet, Table
from reports.finding import LEVELS
from reports.words import counted

HOW = (
    "A straight line through the checks of the last fifth of the steps in common (of up to half of them, until there "
    "are six checks in each), at its middle; ± is what one more check would be off by. Quantities with a logarithmic "
    "axis go through their logarithms. Unclear: within twice the error of the difference."
)
HOW_MATCHED = (
    "Where each smoothed loss first falls to the lowest level that both reach, 5 % of the way back up. The six checks "
    "around that step, and a line through them."
)


def compose_runs(runs: Sequence[Contender], only: Collection[str] | None = None) -> Document:
    """The whole comparison.

    Args:
        runs: the runs.
        only: names of the chapters wanted, by probe name; None for all.
    """
    documents = [compose(one.run, one.name, only) for one in runs]
    quantities = compared([one.run for one in runs], only)
    found = differences(runs, quantities)
    at_loss = matched(runs, quantities)
    diagnosis = diagnose(runs, documents, found)
    against = runs[reference_of(runs, quantities)].name
    findings = [of_run(one, document) for one, document in zip(runs, documents, strict=True)]
    findings.insert(0, separation(diagnosis, found))
    findings += [one for one in (at_matched_loss(at_loss),) if one is not None]
    named = ", ".join(one.name for one in runs)
    return Document(
        title=named if len(named) < 60 else counted(len(runs), "run"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        level=min((one.level for one in documents), key=LEVELS.index),
        diagnosis=diagnosis,
        summary=f"{counted(len(runs), 'run')}, held against {against}",
        findings=tuple(findings),
        figures=(*overlaid(runs, quantities), *against_loss(runs, quantities)),
        facts=tuple((one.name, _where(one, document)) for one, document in zip(runs, documents, strict=True)),
        methods=_methods(runs, documents, quantities),
        skipped=_skipped(runs, documents),
        sheets=(
            Sheet("settings", "What was set differently", "", settings(runs), _SAME),
            strip(runs, documents),
            Sheet(
                "differences",
                "Differences at equal steps",
                HOW,
                table(found, runs),
                "Nothing was measured in two runs.",
            ),
            Sheet(
                *("matched", "Differences at equal loss", HOW_MATCHED),
                table([one for pair in at_loss for one in pair.differences], runs),
                " ".join(f"{pair.run.name}: {pair.reason}." for pair in at_loss if pair.reason)
                or "No loss was measured.",
            ),
        ),
    )


_SAME = "Nothing that the runs recorded of their settings differs: what separates them is chance, or was not recorded."


def _where(one: Contender, document: Document) -> str:
    folder = "" if one.run.path is None else f"{one.run.path} · "
    return folder + document.summary


def _methods(runs: Sequence[Contender], documents: Sequence[Document], quantities: Sequence[Compared]) -> Table:
    """Which directions are better and why, and how the runs' own numbers were taken, the same methods together."""
    rows = [(f"{SOONER} at equal loss", "all", "lower is better", SOONER_WHY)] if quantities else []
    rows += [
        (one.name, "all", f"{one.better} is better", one.why)
        for one in (two.quantity for two in quantities)
        if one.better
    ]
    if quantities:
        rows.append(
            ("everything else", "all", "no direction is better", "seen high and low in good runs and in bad ones")
        )
    shared: dict[tuple[str, str], list[str]] = defaultdict(list)
    for run, document in zip(runs, documents, strict=True):
        for probe, names, _, note in document.methods.rows:
            shared[f"{probe}: {names}", str(note)].append(run.name)
    rows += [(what, _listed(names, runs), "measured", note) for (what, note), names in shared.items()]
    return Table(("what", "runs", "which", "how, or why"), tuple(rows))


def _skipped(runs: Sequence[Contender], documents: Sequence[Document]) -> Table:
    """What was not measured, the same reasons together."""
    shared: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for run, document in zip(runs, documents, strict=True):
        for what, status, when, why in document.skipped.rows:
            shared[str(what), f"{status}, {when}", str(why)].append(run.name)
    rows = tuple((what, _listed(names, runs), when, why) for (what, when, why), names in shared.items())
    return Table(("what", "runs", "when", "why"), rows)


def _listed(names: Sequence[str], runs: Sequence[Contender]) -> str:
    return "all" if len(names) == len(runs) else ", ".join(names)
