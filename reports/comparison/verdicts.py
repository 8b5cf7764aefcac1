"""What is said of the runs: a verdict on each, and one sentence on what separates them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reports.chapter import unmeasured
from reports.comparison.contender import MOST, Contender
from reports.comparison.differences import Difference, judged
from reports.comparison.matched_loss import Matched
from reports.comparison.quantities import Better
from reports.document import Document, Sheet, Table
from reports.facts import batch
from reports.finding import LEVELS, Finding, Level, worst_first
from reports.render.levels import WORD, counts
from reports.stability.verdict import loss_of

CITATION = "Optimizers Qualitatively Alter Solutions And We Should Leverage This, arXiv 2507.12224"

BAD = ("fail", "warn")

_MATCHED = (
    "At equal steps a run that is ahead differs in everything that moves with the loss. What differs at equal loss too "
    "is the work of its settings, or of its seed."
)


def strip(runs: Sequence[Contender], documents: Sequence[Document]) -> Sheet:
    """A row for each run: its level, where its loss ended, what it was, and its worst finding."""
    rows = []
    for one, document in zip(runs, documents, strict=True):
        bad = [finding for finding in worst_first(document.findings) if finding.level in BAD]
        worst = "; ".join(first_clause(finding.claim) for finding in bad[:2]) or None
        said = ", ".join(words for _, words in counts(document.findings))
        same = f"the same run as {one.same_as}" if one.same_as else document.summary
        loss = loss_of(one.run)
        end = float(f"{loss.values[-1]:.4g}") if len(loss) else None
        rows.append((one.name, WORD[document.level], end, worst, said or "no findings", same))
    columns = ("run", "verdict", "loss at its end", "its worst", "counts", "what it was")
    return Sheet("runs", "Runs", "", Table(columns, tuple(rows)), "")


def of_runs(runs: Sequence[Contender], documents: Sequence[Document]) -> list[Finding]:
    """A verdict on each run as its own report has it; those that need nothing share one."""
    pairs = list(zip(runs, documents, strict=True))
    found = [_of_run(one, document) for one, document in pairs if document.level != "ok"]
    well = [(one.name, document.diagnosis.partition(". ")[2]) for one, document in pairs if document.level == "ok"]
    if not well:
        return found
    said = dict.fromkeys(rest for _, rest in well if rest)
    each = [f"{listed([name for name, other in well if other == rest], MOST)}: {rest}" for rest in said]
    names = listed([name for name, _ in well], MOST)
    return [
        *found,
        _plain("runs/ok", "ok", f"Nothing calls for action in {names}.", " ".join(said if len(said) == 1 else each)),
    ]


def _of_run(run: Contender, document: Document) -> Finding:
    """Its worst finding stands for it."""
    found = worst_first(document.findings)
    claim = f"{run.name}: {document.diagnosis}"
    more = [first_clause(one.claim) for one in found[1:] if one.level in BAD]
    also = f" It also says: {'; '.join(more[:3])}." if more else ""
    if not found:
        return _plain(f"runs/{run.name}", document.level, claim, "Nothing is known of it, good or bad.")
    worst = found[0]
    return replace(worst, id=f"runs/{run.name}", claim=claim, meaning=worst.meaning + also, evidence=())


def _plain(id: str, level: Level, claim: str, meaning: str) -> Finding:
    return Finding(
        id=id,
        level=level,
        claim=claim,
        value=None,
        threshold="",
        meaning=meaning,
        advice=(),
        evidence=(),
        method="",
        citation="",
    )


def nothing_in_common(found: Sequence[Difference]) -> list[Finding]:
    """That the runs cannot be compared, where they cannot."""
    if any(one.change is not None for one in found):
        return []
    return [
        unmeasured(
            *("comparison/difference", "A difference between the runs"),
            str(found[0].where) if found else "no two of them have a quantity in common",
            ("Give the runs the same probes, and some twenty checks each or more.",),
            "",
        )
    ]


def at_matched_loss(found: Sequence[Matched]) -> Finding | None:
    """What differs where the losses are equal."""
    if not found:
        return None
    said = [_matched(one) for one in found]
    levels = [one for one in found if one.level is not None]
    sooner = [one.differences[0] for one in levels]
    return Finding(
        id="comparison/matched_loss",
        level="ok" if levels else "unmeasured",
        claim=" ".join(said[:3]) + (f" {len(said) - 3} more are in the table." if len(said) > 3 else ""),
        value=sooner[0].change if sooner else None,
        threshold="",
        meaning=_MATCHED if levels else "Whether the runs differ in more than how far they have come cannot be said.",
        advice=(),
        evidence=("runs-at-the-same-loss",),
        method="loss smoothed by a median over five checks; first step at which it falls to the level",
        citation=CITATION,
    )


def _matched(one: Matched) -> str:
    if one.level is None:
        return f"{one.run.name} and {one.reference.name} are not comparable at equal loss: {one.reason}."
    at = [_when(each, step) for each, step in zip((one.reference, one.run), one.level.steps, strict=True)]
    clear = [other.name for other in one.differences[1:] if other.verdict not in ("unclear", "equal")]
    differ = f"they differ there in {listed(clear)}" if clear else "nothing else is told apart there"
    return (
        f"{one.run.name} falls to a loss of {one.level.loss:.3g} at {at[1]}, {one.reference.name} at {at[0]}; {differ}."
    )


def _when(run: Contender, step: float) -> str:
    """The step, and where the batch is known how many examples had been seen: batches may differ."""
    size = batch(run.run)
    return f"step {step:.0f}" + ("" if size is None else f" ({step * size:,.0f} examples)")


def diagnose(runs: Sequence[Contender], documents: Sequence[Document], found: Sequence[Difference]) -> str:
    """One sentence: which run is worse off and in what, or that nothing separates them."""
    if all(one.same_as for one in runs[1:]):
        times = "twice" if len(runs) == 2 else f"{len(runs)} times"
        return f"{runs[0].name} was given {times}: nothing can separate a run from itself."
    ranks = [LEVELS.index(one.level) if one.level in BAD else len(BAD) for one in documents]
    by_verdict = _worse_by_verdict(runs, documents, ranks) if len(set(ranks)) > 1 else ""
    by_numbers = _by_numbers(runs, found)
    if by_verdict:
        worst = by_verdict.partition(" is worse off")[0]
        by_numbers = by_numbers.replace(f"{worst} is worse off", "it is behind", 1)
        return f"{by_verdict}{'; ' + by_numbers if by_numbers else ''}."
    alike = _alike(documents)
    if by_numbers:
        return _sentence(f"{alike}{by_numbers}")
    if not found:
        return _sentence(f"{alike}{_all(runs)} have no quantity in common that would put one above the other")
    different = [one.name for one in found if one.verdict == "different"]
    though = f", though they differ in {listed(list(dict.fromkeys(different)))}" if different else ""
    return _sentence(
        f"{alike}nothing puts one of {_all(runs)} above the other: where one direction is better, no difference "
        f"exceeds its error{though}"
    )


def _alike(documents: Sequence[Document]) -> str:
    """What the verdicts have in common, where they say the same."""
    levels = {one.level for one in documents}
    said = {"ok": "no run calls for action", "warn": "every run has warnings", "fail": "every run has failures"}
    return f"{said[levels.pop()]}; " if len(levels) == 1 and levels <= said.keys() else ""


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if not text.startswith("run ") else f"{text}."


def _worse_by_verdict(runs: Sequence[Contender], documents: Sequence[Document], ranks: Sequence[int]) -> str:
    worst = [place for place, rank in enumerate(ranks) if rank == min(ranks)]
    claim = first_clause(documents[worst[0]].diagnosis.partition(". ")[0])
    names = listed([runs[place].name for place in worst])
    if len(worst) == 1:
        return f"{names} is worse off: {claim[0].lower()}{claim[1:]}"
    return f"{names} are worse off ({runs[worst[0]].name}: {claim[0].lower()}{claim[1:]})"


def _by_numbers(runs: Sequence[Contender], found: Sequence[Difference]) -> str:
    directed = [one for one in found if one.verdict in ("better", "worse")]
    if not directed:
        return ""
    if len(runs) == 2:
        return _of_two(directed)
    return _of_many(directed[0], found)


def _of_many(leading: Difference, found: Sequence[Difference]) -> str:
    """The best and the worst run in the first quantity that puts any above another."""
    those = [one for one in found if one.name == leading.name]
    lost = [one.run.name for one in those if one.value is None and one.verdict == "worse"]
    known = {one.run.name: one.value for one in those if one.value is not None}
    known |= {one.reference.name: one.before for one in those if one.before is not None}
    if not known or leading.change is None:
        return f"{listed(lost)} {'is' if len(lost) == 1 else 'are'} worst off in {leading.name}{_figures(leading)}"
    lower = (leading.change.value < 0) == (leading.verdict == "better")
    order = sorted(known, key=lambda name: known[name].value if lower else -known[name].value)
    better: Better = "lower" if lower else "higher"
    tied = [name for name in order[1:] if judged(known[order[0]], known[name], better, log=lower) == "unclear"]
    best = f"{order[0]} is best off in {leading.name} ({known[order[0]]}"
    best += f", not told apart from {listed(tied)})" if tied else ")"
    return f"{best}, {listed(lost) if lost else f'{order[-1]} worst ({known[order[-1]]})'}{' worst' if lost else ''}"


def _of_two(directed: Sequence[Difference]) -> str:
    leading = directed[0]
    one, other = leading.run.name, leading.reference.name
    loser, winner = (one, other) if leading.verdict == "worse" else (other, one)
    same = [each.name for each in directed[1:] if each.verdict == leading.verdict]
    opposed = [each.name for each in directed[1:] if each.verdict != leading.verdict]
    told = _figures(leading if leading.verdict == "worse" else _turned(leading))
    text = f"{loser} is worse off in {leading.name}{told}"
    text += f" and in {listed(same)}" if same else ""
    return text + (f", {winner} in {listed(opposed)}" if opposed else "")


def _turned(one: Difference) -> Difference:
    return replace(one, reference=one.run, run=one.reference, before=one.value, value=one.before)


def _figures(one: Difference) -> str:
    if one.value is None or one.before is None:
        return f" ({one.where})"
    return f" ({one.value} against {one.before})"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names as one says them, and how many more.

    Example:
        >>> listed(["a", "b", "c"]), listed(["a", "b", "c", "d", "e"])
        ('a, b and c', 'a, b, c and 2 more')
    """
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def first_clause(claim: str) -> str:
    """What is claimed, without the numbers behind it."""
    return claim.partition(": ")[0].partition("; ")[0].rstrip(".")


def _all(runs: Sequence[Contender]) -> str:
    return listed([one.name for one in runs])
