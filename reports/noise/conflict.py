"""Reading conflict between groups: whether what helps one domain or task harms another."""

from __future__ import annotations

from diagnostics.estimate import Estimate, format_value
from probes.run import Run
from reports.chapter import method_of, unmeasured
from reports.finding import Finding

ID = "gradient_alignment/conflict"
CITATION = "Yu et al., arXiv 2001.06782"

_RECORDS = ("gradient_alignment", "conflict")

OPPOSED = -0.2
"""A cosine that is below this by all of its interval is a conflict; one just below zero costs next to nothing."""


def conflict(run: Run) -> list[Finding]:
    """The most opposed pair at the latest check; silent where no groups were given."""
    pairs = {
        pair: run.last("gradient_alignment", "conflict", pair) for pair in run.layers("gradient_alignment", "conflict")
    }
    known = {pair: record for pair, record in pairs.items() if record is not None and record.value is not None}
    if not known:
        silent = [record.note for record in run.of("gradient_alignment", "conflict") if record.note]
        if not silent:
            return []
        return [unmeasured(ID, "Conflict between groups", str(silent[-1]).rstrip("."), _MORE, CITATION)]
    values = {
        pair: Estimate(record.value or 0.0, record.error or 0.0, "standard error", method_of(record))
        for pair, record in known.items()
    }
    worst = min(values, key=lambda pair: values[pair].interval()[1])
    found = values[worst]
    latest = max(record.step for record in run.of(*_RECORDS))
    stale = f"; at step {latest} no cosine is to be told" if latest > max(r.step for r in known.values()) else ""
    opposed = [pair for pair, value in values.items() if value.interval()[1] < OPPOSED]
    # Whole, where it is no pair: a folder may be damaged, and names may hold anything.
    named = worst.replace(" | ", " and ", 1)
    step = known[worst].step
    return [
        Finding(
            id=ID,
            level="warn" if opposed else "ok",
            claim=f"Groups {named} pull in opposite directions: their gradients have a cosine of "
            f"{format_value(found.value, found.error)} at step {step}{_others(len(opposed))}{stale}."
            if opposed
            else f"No groups of examples are seen to pull in opposite directions: the lowest cosine is "
            f"{format_value(found.value, found.error)}, between groups {named}, at step {step}{stale}.",
            value=found,
            threshold=f"cosine below {OPPOSED:g}, error allowed for",
            meaning="A step that lowers the loss of one raises that of the other, and what is left is their difference."
            if opposed
            else "Steps on one group do not undo those on another.",
            advice=_APART if opposed else (),
            evidence=(),
            method=method_of(known[worst]),
            citation=CITATION,
        )
    ]


_APART = (
    "Look whether both groups label the same inputs alike: conflict often is disagreement in the data.",
    "Weigh the groups, or give each a head or normalisation of its own, where both must be learned.",
    "Project conflicting gradients (PCGrad) only when the groups are separate tasks with losses of their own.",
)
_MORE = ("More examples of every group in the Objective, at least some dozens of each.",)


def _others(count: int) -> str:
    return f", and {count - 1} more {'pair' if count == 2 else 'pairs'}" if count > 1 else ""
