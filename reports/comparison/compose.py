"""From several runs to one Document: settings, verdicts, differences at equal steps and at equal loss, figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from reports.comparison.alike import set_alike
from reports.comparison.contender import Contender
from reports.comparison.differences import Difference, differences, reference_of, table
from reports.comparison.figures import against_loss, overlaid
from reports.comparison.matched_loss import SOONER, SOONER_WHY, Matched, matched
from reports.comparison.quantities import Compared, compared
from reports.comparison.sensitivity import sensitivity
from reports.comparison.settings import settings
from reports.comparison.sweep import sweeps
from reports.comparison.sweep_figure import sweep_figure
from reports.comparison.transfer import transfer
from reports.comparison.verdicts import at_matched_loss, diagnose, nothing_in_common, of_runs, strip
from reports.compose import compose
from reports.document import Document, Sheet, Table
from reports.finding import LEVELS
from reports.words import counted

HOW = (
    "The line through the checks of the last half of the common steps, at its middle; ± is what one more check would "
    "be off by, and more where a run wanders slowly. ✓ better, ✗ worse, ≠ different with no better direction, "
    "? unclear: within twice the error of the difference; losses, curvatures and what else ranges over orders of "
    "magnitude are judged by their ratio. Another seed is not in these errors: that takes several runs of each setting."
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
    findings = of_runs(runs, documents)
    findings += nothing_in_common(found)
    findings += set_alike(runs, documents)
    swept = sweeps(runs, quantities)
    findings += [*(sensitivity(one) for one in swept), *transfer(swept)]
    findings += [one for one in (at_matched_loss(at_loss),) if one is not None]
    named = ", ".join(one.name for one in runs)
    return Document(
        title=named if len(named) < 60 else counted(len(runs), "run"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        level=min((one.level for one in documents), key=LEVELS.index),
        diagnosis=diagnosis,
        summary=f"held against {against}",
        findings=tuple(findings),
        figures=(*overlaid(runs, quantities), *against_loss(runs, quantities), *sweep_figure(swept)),
        facts=tuple((one.name, _where(one, document)) for one, document in zip(runs, documents, strict=True)),
        methods=methods(runs, documents, quantities),
        skipped=skipped(runs, documents),
        sheets=(
            strip(runs, documents),
            Sheet(
                "differences",
                "Differences at equal steps",
                HOW,
                table(found, runs),
                "Nothing was measured in two runs.",
            ),
            Sheet(
                *("matched", "Differences at equal loss", HOW_MATCHED + _levels(at_loss)),
                table([one for pair in at_loss for one in pair.differences], runs),
                " ".join(f"{pair.run.name}: {pair.reason}." for pair in at_loss if pair.reason)
                or "No loss was measured.",
            ),
            Sheet("settings", "What was set differently", "", settings(runs), _SAME),
        ),
    )


_SAME = "Nothing that the runs recorded of their settings differs: what separates them is chance, or was not recorded."


def _steps(found: Sequence[Difference]) -> str:
    known = next((one for one in found if one.value is not None), None)
    return "" if known is None else f" Of {known.name}: {known.where}."


def _levels(found: Sequence[Matched]) -> str:
    levels = [(one.run.name, f"{one.level.loss:.4g}") for one in found if one.level is not None]
    losses = dict.fromkeys(loss for _, loss in levels)
    said = ", ".join(losses if len(losses) < 2 else [f"{loss} with {name}" for name, loss in levels])
    gaps = "; ".join(f"{one.run.name}: {one.reason}" for one in found if one.level is None)
    return (f" The loss: {said}." if said else "") + (f" Not comparable: {gaps}." if gaps else "")


def _where(one: Contender, document: Document) -> str:
    folder = "" if one.run.path is None else f"{one.run.path} · "
    return folder + document.summary


def methods(runs: Sequence[Contender], documents: Sequence[Document], quantities: Sequence[Compared]) -> Table:
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


def skipped(runs: Sequence[Contender], documents: Sequence[Document]) -> Table:
    """What was not measured, the same reasons together."""
    shared: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    for run, document in zip(runs, documents, strict=True):
        for what, status, when, why in document.skipped.rows:
            shared[str(what), str(status), str(why)].append((run.name, str(when)))
    rows = []
    for (what, status, why), those in shared.items():
        times = list(dict.fromkeys(when for _, when in those))
        said = times if len(times) == 1 else [f"{name} {when}" for name, when in those]
        rows.append((what, _listed([name for name, _ in those], runs), f"{status} {'; '.join(said)}", why))
    return Table(("what", "runs", "when", "why"), tuple(rows))


def _listed(names: Sequence[str], runs: Sequence[Contender]) -> str:
    return "all" if len(names) == len(runs) else ", ".join(names)
