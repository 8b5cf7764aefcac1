"""Reading the largest attention logits: growth without end is how large transformers have diverged."""

from __future__ import annotations

import numpy

from diagnostics.estimate import exact, format_value
from probes.run import Run
from reports.chapter import method_of
from reports.charts import short
from reports.finding import Finding, Level

PROBE = "attention"
CITATION = "Dehghani et al., arXiv 2302.05442; Wortsman et al., arXiv 2309.14322; Kimi team, arXiv 2507.20534"

CAPPED = 100.0
"""Where training of Kimi K2 caps logits (arXiv 2507.20534); healthy attention is far below."""

DIVERGING = 1e4
"""Beyond about this runs diverged in arXiv 2309.14322."""

GROWN = 3.0
"""Times the first value."""

ALONE = 10 * CAPPED
"""Where one measurement is all there is, growth cannot be seen, and only this is too large to be usual."""

_MEANING = (
    "With logits this large the softmax looks at one key and lets almost no gradient through; queries and keys then "
    "grow on, and the loss diverges."
)
_ADVICE = (
    "Normalise queries and keys (QK norm), or cap the logits (soft capping, QK-Clip).",
    "Lower the learning rate or lengthen the warm-up: logits grow faster at high rates.",
    "Put weight decay on the query and key weights if they have none.",
)


def logits(run: Run) -> list[Finding]:
    """One finding about the attention with the largest logit."""
    last = {layer: run.last(PROBE, "max_logit", layer) for layer in run.layers(PROBE, "max_logit")}
    values = {layer: record.value for layer, record in last.items() if record is not None and record.value is not None}
    if not values:
        return []
    worst = max(values, key=lambda layer: values[layer])
    series = run.series(PROBE, "max_logit", worst)
    first, size = float(series.values[numpy.isfinite(series.values)][0]), values[worst]
    grown = size >= GROWN * max(first, 1.0) if len(series) > 1 else size >= ALONE
    level: Level = "fail" if size >= DIVERGING else "warn" if size >= CAPPED and grown else "ok"
    since = f", from {format_value(first)} at step {int(series.steps[0])}" if len(series) > 1 else ""
    return [
        Finding(
            id="attention/logits",
            level=level,
            claim=f"The largest attention logit is {format_value(size)}, in {short(worst)}{since}.",
            value=exact(size, method_of(last[worst])),
            threshold=(f"{CAPPED:g} after growing {GROWN:g}-fold" if len(series) > 1 else f"{ALONE:,.0f}")
            + f"; {DIVERGING:,.0f} is a failure",
            meaning=_MEANING if level != "ok" else "Logits of q·k/√d up to some tens are usual.",
            advice=_ADVICE if level != "ok" else (),
            evidence=("attention-logits",) if len(series) > 1 else (),
            method=method_of(last[worst]),
            citation=CITATION,
        )
    ]
