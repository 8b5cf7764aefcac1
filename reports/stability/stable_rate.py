"""Which learning rate would have kept the sharpest check at the edge.

The threshold of every rule goes as one over the learning rate, so the ratio goes as the rate: at the rate times the
edge over the ratio that check would have stood at the edge. Curvature itself answers to the rate, hence "at most".
"""

from __future__ import annotations

import numpy

from probes.run import Run
from reports.learning_rate.rates import rates_in_force
from reports.stability.deciding import Deciding
from reports.stability.regime import Verdict

MOVED = 1.05
"""Thresholds that differ by more than this factor come from a schedule."""


def stable_rate(run: Run, judged: Verdict, decided: Deciding) -> float | None:
    """The rate at which the highest ratio would have been the edge; None where the rate of that step is not known."""
    if decided.basis == "realised" or not judged.peak > judged.edge:
        return None
    rate = _rate_at(run, judged.peak_step, decided)
    return None if rate is None else rate * judged.edge / judged.peak


def _rate_at(run: Run, step: int, decided: Deciding) -> float | None:
    rates = rates_in_force(run)
    values = rates.values[rates.steps == step]
    if not len(values) and len(rates) and rates.values.min() == rates.values.max():
        values = rates.values[:1]
    if not run.layers("learning_rate", "lr") and _scheduled(run, decided):
        return None
    return float(values[0]) if len(values) and values[0] > 0 else None


def _scheduled(run: Run, decided: Deciding) -> bool:
    """Whether the thresholds say that the rate moved: the header then holds only one of many."""
    thresholds = run.series(decided.last.probe, "threshold").values
    thresholds = thresholds[numpy.isfinite(thresholds) & (thresholds > 0)]
    return len(thresholds) > 0 and bool(thresholds.max() > MOVED * thresholds.min())
