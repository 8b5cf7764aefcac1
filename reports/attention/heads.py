"""Reading the heads of attention: how many give nothing, and how many look at one key whatever the query.

Heads that rest on the first token are usual in language models (attention sinks), so only heads that collapsed onto
another key can raise a warning. Even attention is how networks start.
"""

from __future__ import annotations

from diagnostics.estimate import exact
from probes.run import Run
from reports.attention.logits import PROBE
from reports.chapter import method_of
from reports.finding import Finding, Level
from reports.words import counted

CITATION = "Zhai et al., arXiv 2303.06296; Michel et al., arXiv 1905.10650; Xiao et al., arXiv 2309.17453"

MANY_DEAD = 0.25
MANY_COLLAPSED = 0.5
"""Of all heads."""

_DEAD_ADVICE = (
    "Look whether those heads were cut off on purpose (pruning, zeros in the output projection).",
    "Use fewer heads, or start them afresh: values, output projection and their optimizer state.",
)
_COLLAPSED_ADVICE = (
    "Look at the largest logits: entropy falls where they grow. Normalise queries and keys, or lower the rate.",
    "Look at that key: padding that no mask hides attracts attention.",
)


def heads(run: Run) -> list[Finding]:
    """One finding about all heads of all attentions at the last measurement."""
    layers = run.layers(PROBE, "heads")
    total = _sum(run, "heads", layers)
    if not total:
        return []
    dead, collapsed, uniform = (_sum(run, name, layers) for name in ("dead", "collapsed", "uniform"))
    elsewhere = _sum(run, "collapsed_elsewhere", layers)
    many_dead, many_collapsed = dead >= MANY_DEAD * total, elsewhere >= MANY_COLLAPSED * total
    level: Level = "warn" if many_dead or many_collapsed else "ok"
    said = f"{dead} give next to nothing, {collapsed} look at one key only, {uniform} look everywhere alike"
    return [
        Finding(
            id="attention/heads",
            level=level,
            claim=f"Of {counted(total, 'attention head')}, {said}.",
            value=exact(dead if many_dead or not elsewhere else elsewhere, "count"),
            threshold=f"{MANY_DEAD:.0%} that give nothing, or {MANY_COLLAPSED:.0%} on a key other than the first",
            meaning=_meaning(many_dead, many_collapsed),
            advice=(*(_DEAD_ADVICE if many_dead else ()), *(_COLLAPSED_ADVICE if many_collapsed else ())),
            evidence=("attention-concentration",) if len(run.series(PROBE, "heads", layers[0])) > 1 else (),
            method=method_of(run.last(PROBE, "heads", layers[0])),
            citation=CITATION,
        )
    ]


def _meaning(dead: bool, collapsed: bool) -> str:
    if collapsed:
        return (
            "A head that looks at one key gives the same output for every query, and its queries and keys get almost "
            "no gradient."
        )
    if dead:
        return "Heads that give nothing cost time and memory, and take no part in what the layer computes."
    return (
        "Heads that rest on the first token are usual in language models, and even attention in fresh ones. Many "
        "trained heads can be taken out without loss."
    )


def _sum(run: Run, name: str, layers: list[str]) -> int:
    records = (run.last(PROBE, name, layer) for layer in layers)
    return sum(int(record.value) for record in records if record is not None and record.value is not None)
