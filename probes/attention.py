"""Heads of attention along a run, and the normaliser of the output softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import numpy

from diagnostics import DiagnosticsError, Estimate, HeadAttention, attention_heads, output_log_z
from probes.probe import Cost, Moment, Need, Reading

_NUMBERS: dict[str, Callable[[numpy.ndarray], float]] = {
    "relative_entropy": numpy.nanmean,
    "sink_share": numpy.nanmax,
    "max_logit": numpy.nanmax,
    "max_product": numpy.nanmax,
    "output_share": numpy.nanmin,
}
"""What is written of each attention, and what of its heads stands for all: an array holds every one."""


@dataclass
class AttentionHeads:
    """Per attention: entropy, sink, largest logit and output of its heads, how many are dead, collapsed or uniform, and
    where log Z of the output softmax is.

    Args:
        every: own schedule; the Monitor's by default.

    Source: Zhai et al., arXiv 2303.06296; Wortsman et al., arXiv 2309.14322.
    """

    every: int | Callable[[int], bool] | None = None
    name: ClassVar[str] = "attention"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "cheap"

    def settings(self) -> dict[str, Any]:
        """Nothing to set."""
        return {}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """Two forward passes over the objective's batches, with the scores of attention worked out once more."""
        assert moment.objective is not None
        table = attention_heads(moment.model, moment.objective)
        if not table.rows:
            yield Reading("heads", None, status="skipped", note="the model ran no attention that is known here")
        for layer, rows in groupby(table.rows, key=lambda row: row.layer):
            yield from _of_attention(layer, list(rows))
        try:
            found = output_log_z(moment.objective)
        except DiagnosticsError as reason:
            yield Reading("log_z", None, status="skipped", note=str(reason))
            return
        yield Reading("log_z", found.mean)
        for name in ("rms", "highest", "lowest"):
            yield Reading(f"log_z_{name}", getattr(found, name))
        yield Reading("classes", found.classes)


def _of_attention(layer: str, rows: Sequence[HeadAttention]) -> Iterator[Reading]:
    yield Reading("heads", len(rows), layer, note=rows[0].max_logit.how)
    entropies: list[Estimate] = [row.entropy for row in rows]
    if all(entropy.determined for entropy in entropies):
        values = numpy.array([float(entropy) for entropy in entropies])
        yield Reading("entropy", float(values.mean()), layer, f"mean over heads, {entropies[0].how}", array=values)
    for name, chosen in _NUMBERS.items():
        estimates: list[Estimate] = [getattr(row, name) for row in rows]
        values = numpy.array([float(estimate) if estimate.determined else math.nan for estimate in estimates])
        if numpy.isfinite(values).any():
            how = next(estimate.how for estimate in estimates if estimate.determined)
            yield Reading(name, float(chosen(values)), layer, f"{chosen.__name__[3:]} over heads, {how}", array=values)
    for verdict in ("dead", "collapsed", "uniform"):
        is_so = numpy.array([row.verdict == verdict for row in rows], dtype=numpy.float64)
        yield Reading(verdict, int(is_so.sum()), layer, array=is_so)
    elsewhere = sum(row.verdict == "collapsed" and row.sink_key > 0 for row in rows)
    yield Reading("collapsed_elsewhere", elsewhere, layer, note="on another key than the first")
