"""Reading the timescale of weight decay: over how many steps it forgets a weight.

AdamW's weights are an average over the last 1/(ηλ) updates (arXiv 2405.13698). A run that is much shorter than that
does not feel its decay; one that is hardly longer than a few steps of it holds nothing for long.
"""

from __future__ import annotations

import numpy

from diagnostics.estimate import exact
from probes.run import Run
from reports.chapter import method_of
from reports.charts import short
from reports.finding import Finding
from reports.learning_rate.tensor_curves import matrices, measured

CITATION = "Wang & Aitchison, arXiv 2405.13698"

SHORT = 100
LONG = 10.0


def timescale(run: Run) -> list[Finding]:
    """Only where decay acts far too slowly or far too fast for the run."""
    series = measured(run, "timescale", matrices(run, "timescale"))
    # The shortest along a schedule: where the rate was highest decay acted most.
    shortest = {name: float(one.values.min()) for name, one in series.items()}
    if not shortest:
        return []
    quickest = min(shortest, key=lambda name: shortest[name])
    middle = float(numpy.median(list(shortest.values())))
    record = run.last("learning_rate", "timescale", quickest)
    if shortest[quickest] < SHORT:
        level_is_warn, value = True, shortest[quickest]
        claim = f"Weight decay forgets {short(quickest)} within {value:.3g} steps (1/(ηλ))"
        meaning = "A weight is an average over so few updates that it follows the noise of single batches."
    elif run.steps > 0 and middle > LONG * run.steps:
        level_is_warn, value = False, middle
        claim = (
            f"Weight decay has had no time to act: it takes {middle:.3g} steps (1/(ηλ)), and the run has {run.steps:,}"
        )
        meaning = "Whatever decay is meant to do, balance norms or forget old updates, it has not done here."
    else:
        return []
    return [
        Finding(
            id="learning_rate/timescale",
            level="warn" if level_is_warn else "ok",
            claim=claim + ".",
            value=exact(value, method_of(record)),
            threshold=f"below {SHORT} steps is reported, above {LONG:g} times the run is told",
            meaning=meaning,
            advice=("Lower the weight decay or the learning rate: only their product counts here.",)
            if level_is_warn
            else (),
            evidence=(),
            method=method_of(record),
            citation=CITATION,
        )
    ]
