"""Reading attention: its findings and figures, in the order of the report."""

from __future__ import annotations

from probes.run import Run
from reports.attention.figures import figures
from reports.attention.heads import heads
from reports.attention.log_z import log_z
from reports.attention.logits import CITATION, PROBE, logits
from reports.chapter import Chapter, reason_missing, unmeasured


def read(run: Run) -> Chapter:
    """Findings and figures about attention and about the softmax of the outputs."""
    found = (*logits(run), *heads(run), *log_z(run))
    if not run.layers(PROBE, "heads") and (reason := reason_missing(run, PROBE)) is not None:
        found = (unmeasured("attention/heads", "Attention", _of_heads(run) or reason, (), CITATION), *found)
    return Chapter(found, tuple(figures(run)))


def _of_heads(run: Run) -> str:
    """Why there are no heads, which is not why there is no log Z."""
    notes = [record.note for record in run.of(PROBE, "heads") if record.note]
    return str(notes[-1]).rstrip(".") if notes else ""
