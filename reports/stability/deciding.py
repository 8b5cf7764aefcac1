"""Which ratio the verdict on stability is taken from.

Under mini-batches λmax settles below the edge and decides nothing: what reaches it is batch sharpness, the mean over
batches of g_BᵀH_Bg_B / ‖g_B‖² (arXiv 2412.20553). With whole batches λmax decides (arXiv 2103.00065). For an optimizer
without a known rule there is only the curvature along a step that it would take, which bounds the ratio from below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from probes.run import Record, Run
from probes.run.reader import Series

Basis = Literal["batch", "whole", "realised"]

REALISED = "realised update"
"""A rule that begins with this is none: the ratio is that of one trial step."""


@dataclass(frozen=True)
class Deciding:
    """The ratio that decides, and what it is held against.

    Attributes:
        basis: batch sharpness, λmax on the whole objective, or one realised update.
        ratio: over steps; 1 is the edge, but for a realised update.
        last: its latest finite record.
        threshold: the latest curvature at the edge, if any was written.
        rule: the threshold in the field's notation; empty when unknown.
        reach: how many errors the truth may be away: 1.96 for a standard error, 1 for a bound.
    """

    basis: Basis
    ratio: Series
    last: Record
    threshold: Record | None
    rule: str
    reach: float


def deciding(run: Run) -> Deciding | None:
    """The ratio that decides; None where none was measured."""
    probes = ("sharpness", "batch_sharpness")
    for probe in reversed(probes) if draws_batches(run) else probes:
        last = run.last(probe, "ratio")
        if last is None:
            continue
        threshold = run.last(probe, "threshold")
        rule = _rule(run, probe)
        unknown = rule.startswith(REALISED) or str(last.note).startswith(REALISED)
        basis: Basis = "realised" if unknown else "batch" if probe == "batch_sharpness" else "whole"
        reach = 1.96 if probe == "batch_sharpness" else 1.0
        return Deciding(basis, run.series(probe, "ratio"), last, threshold, rule, reach)
    return None


def draws_batches(run: Run) -> bool:
    """Whether the run is known to train on mini-batches: batch sharpness was measured, on less than everything."""
    if run.last("batch_sharpness", "ratio") is None:
        return False
    size, terms = batch_size(run), (run.header.get("objective") or {}).get("loss_terms")
    return size is None or not terms or size < terms


def batch_size(run: Run) -> int | None:
    """Examples in the batches of batch sharpness."""
    record = run.last("batch_sharpness", "batch_size")
    return None if record is None or record.value is None else round(record.value)


def _rule(run: Run, probe: str) -> str:
    """Read from the latest record with a note: a threshold without a number has its rule all the same."""
    notes = (record.note for record in reversed(run.records) if (record.probe, record.name) == (probe, "threshold"))
    return next((note for note in notes if note), "")
