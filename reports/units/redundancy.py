"""Reading units that do what others do already."""

from __future__ import annotations

import numpy

from diagnostics.estimate import exact
from probes.run import Run
from reports.chapter import method_of
from reports.charts import short
from reports.finding import Finding
from reports.units.kinds import NOTABLE, SEVERE

CITATION = "Joudaki et al., arXiv 2510.00304"


def duplicates(run: Run) -> list[Finding]:
    """The layer with the largest share of duplicates, where it is worth a word.

    Inputs of few dimensions leave little room for different units, from the start: only growth is alleged.
    """
    shares = {layer: share for layer in run.layers("units", "duplicate") if len(share := _shares(run, layer))}
    if not shares:
        return []
    worst = max(shares, key=lambda layer: float(shares[layer][-1]))
    first, last = float(shares[worst][0]), float(shares[worst][-1])
    if last < NOTABLE:
        return []
    severe = last >= SEVERE and last - first >= NOTABLE
    record = run.last("units", "duplicate", worst)
    since = f", {first:.0%} at first" if len(shares[worst]) > 1 else ""
    return [
        Finding(
            id="units/duplicates",
            level="warn" if severe else "ok",
            claim=f"{last:.0%} of the units at layer {short(worst)} do what another unit does already{since}.",
            value=exact(last, method_of(record)),
            threshold=f"{SEVERE:.0%} of a layer, after growing by {NOTABLE:.0%}",
            meaning="Units with the same output get gradients that differ only by their outgoing weights, and may "
            "never part again: the layer is narrower than it looks."
            if severe
            else "Where inputs have few dimensions, or a layer is much wider than its task, units come out alike.",
            advice=(
                "Start some of them afresh, with their optimizer state; noise or dropout can part them as well.",
                "Use a narrower layer if the task does not ask for more.",
            )
            if severe
            else (),
            evidence=(),
            method=f"cosine above .95, plain and about the mean; {method_of(record)}",
            citation=CITATION,
        )
    ]


def _shares(run: Run, layer: str) -> numpy.ndarray:
    counts, totals = run.series("units", "duplicate", layer), run.series("units", "units", layer)
    known = dict(zip(totals.steps.tolist(), totals.values.tolist(), strict=True))
    pairs = zip(counts.steps.tolist(), counts.values.tolist(), strict=True)
    shares = [count / known[step] for step, count in pairs if known.get(step)]
    return numpy.array([share for share in shares if numpy.isfinite(share)])
