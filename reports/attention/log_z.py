"""Reading log Z of the output softmax: cross-entropy lets it drift, low precision does not like it far from zero."""

from __future__ import annotations

import numpy

from diagnostics.estimate import Estimate, format_value
from probes.run import Run
from reports.attention.logits import PROBE
from reports.chapter import method_of
from reports.finding import Finding

CITATION = "Chowdhery et al., arXiv 2204.02311; Wortsman et al., arXiv 2309.14322"

COARSE = 64.0
"""From here on neighbouring numbers of bfloat16 are half a nat apart, or more."""

GROWN = 3.0


def log_z(run: Run) -> list[Finding]:
    """A finding wherever log Z was measured."""
    last = run.last(PROBE, "log_z")
    if last is None or last.value is None:
        return []
    series = run.series(PROBE, "log_z")
    first = float(series.values[numpy.isfinite(series.values)][0])
    drifted = abs(last.value) >= COARSE and (len(series) == 1 or abs(last.value) >= GROWN * abs(first))
    since = f", from {format_value(first)} at step {int(series.steps[0])}" if len(series) > 1 else ""
    return [
        Finding(
            id="attention/log_z",
            level="warn" if drifted else "ok",
            claim=f"log Z of the output softmax is {format_value(last.value, last.error)} on average{since}.",
            value=Estimate(last.value, last.error or 0.0, "standard error", method_of(last)),
            threshold=f"{COARSE:g} in size, where bfloat16 resolves no more than half a nat",
            meaning="The logits have drifted as a whole, which cross-entropy does not see; in half precision they lose "
            "the differences that matter, and runs have diverged late in training."
            if drifted
            else "Logits that are all zero have the logarithm of the number of classes. A slow drift is usual.",
            advice=(
                "Add a z-loss (10⁻⁴ log² Z), or weight decay on the output layer.",
                "Compute the output softmax in float32.",
            )
            if drifted
            else (),
            evidence=("attention-log-z",) if len(series) > 1 else (),
            method=method_of(last),
            citation=CITATION,
        )
    ]
