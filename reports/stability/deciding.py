"""Which ratio the verdict on stability is taken from.

Under mini-batches λmax settles below the edge and decides nothing: what reaches it is batch sharpness, the mean over
batches of g_BᵀH_Bg_B / ‖g_B‖² (arXiv 2412.20553). With whole batches λmax decides (arXiv 2103.00065). For an optimizer
without a known rule there is only the curvature along a step that it would take, which bounds the ratio from below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy

from probes.run import Record, Run
from probes.run.reader import Series
from reports.learning_rate.rates import rates_in_force

Basis = Literal["batch", "whole", "realised"]

REALISED = "realised update"
"""A rule that begins with this is none: the ratio is that of one trial step."""
INFINITE = "value was inf"
"""What a record says in its note of a number that JSON cannot hold."""
YOUNG = 10
"""Before this step the second moment of an adaptive optimizer is that of a few gradients, and ratios are huge."""
EARLY = 0.1
"""The share of a run that counts as its beginning."""


@dataclass(frozen=True)
class Deciding:
    """The ratio that decides, and what it is held against.

    Attributes:
        basis: batch sharpness, λmax on the whole objective, or one realised update.
        ratio: over the steps at which the learning rate was above 0; 1 is the edge, but for a realised update.
        last: its latest finite record.
        threshold: the curvature at the edge then, or the latest known; None if there is none.
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
        rest = at_rest(run, probe)
        ratio, last = _without(run.series(probe, "ratio"), rest), _last(run, probe, "ratio", rest)
        if last is None:
            continue
        threshold = _last(run, probe, "threshold", rest)
        rule = _rule(run, probe)
        unknown = rule.startswith(REALISED) or str(last.note).startswith(REALISED)
        basis: Basis = "realised" if unknown else "batch" if probe == "batch_sharpness" else "whole"
        reach = 1.96 if probe == "batch_sharpness" else 1.0
        return Deciding(basis, ratio, last, threshold, rule, reach)
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


def realised(run: Run) -> bool:
    """Whether the ratio of ``sharpness`` is that of a trial step, for want of a rule."""
    last = run.last("sharpness", "ratio")
    return _rule(run, "sharpness").startswith(REALISED) or (last is not None and str(last.note).startswith(REALISED))


def adaptive(rule: str) -> bool:
    """Whether a rule is one with a preconditioner."""
    return bool(rule) and "sgd" not in rule and not rule.startswith(REALISED)


def ratios(run: Run, probe: str) -> Series:
    """The ratios at a learning rate above 0: without steps there is nothing to be stable."""
    return _without(run.series(probe, "ratio"), at_rest(run, probe))


def _without(series: Series, steps: frozenset[int]) -> Series:
    kept = ~numpy.isin(series.steps, sorted(steps))
    return Series(series.steps[kept], series.values[kept], series.errors[kept])


def at_rest(run: Run, probe: str) -> frozenset[int]:
    """Steps at which the learning rate was measured to be 0, or the threshold was infinite for it."""
    found = {
        record.step
        for record in run.of(probe, "threshold")
        if record.status == "ok" and (record.value == float("inf") or INFINITE in str(record.note))
    }
    if run.layers("learning_rate", "lr"):
        rates = rates_in_force(run)
        found |= set(rates.steps[rates.values == 0].tolist())
    return frozenset(found)


def _last(run: Run, probe: str, name: str, without: frozenset[int]) -> Record | None:
    """The latest finite record, but for some steps."""
    kept = Run({}, [one for one in run.of(probe, name) if one.step not in without])
    return kept.last(probe, name)


def _rule(run: Run, probe: str) -> str:
    """Read from the latest record with a note: a threshold without a number has its rule all the same."""
    notes = (record.note for record in reversed(run.of(probe, "threshold")))
    return next((note for note in notes if note), "").partition("; value was")[0]
