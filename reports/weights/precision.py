"""Reading whether weights would survive in half precision."""

from __future__ import annotations

from diagnostics.estimate import exact
from probes.run import Run
from reports.charts import short
from reports.finding import Finding
from reports.weights.latest import latest, listed
from reports.words import counted

VANISHING = 0.05
CITATION = "Micikevicius et al., arXiv 1710.03740"


def half_precision(run: Run) -> list[Finding]:
    """A warning where float16 would make weights infinite, or a notable share of a matrix zero."""
    overflow = {name: count for name, count in latest(run, "half_overflow").items() if count}
    vanishing = {name: share for name, share in latest(run, "half_vanishing").items() if share >= VANISHING}
    if not overflow and not vanishing:
        return []
    parts = []
    if overflow:
        worst = max(overflow, key=lambda name: overflow[name])
        count = int(sum(overflow.values()))
        parts.append(f"{counted(count, 'weight')} would be infinite, most in {short(worst)}")
    if vanishing:
        worst = max(vanishing, key=lambda name: vanishing[name])
        parts.append(f"{vanishing[worst]:.0%} of the weights in {short(worst)} would be zero")
    names = list(dict.fromkeys([*overflow, *vanishing]))
    brain = {name: count for name, count in latest(run, "bfloat_overflow").items() if count}
    return [
        Finding(
            id="weights/half_precision",
            level="warn",
            claim=f"In float16 {' and '.join(parts)} ({listed(names)}).",
            value=exact(sum(overflow.values()) if overflow else max(vanishing.values()), "every entry counted"),
            threshold=f"no weight beyond 65 504, and less than {VANISHING:.0%} of a matrix below 3e-8",
            meaning="float16 holds magnitudes from 6e-8 to 65 504. A model converted to it computes with other weights "
            "than those that were trained."
            + (" bfloat16 could not hold all of them either." if brain else " bfloat16 has the range of float32."),
            advice=(
                "Convert to bfloat16 instead, or keep these tensors in float32.",
                "Look at what made them so large or so small: a missing normalisation, or weight decay on a layer that "
                "gets no gradient.",
            ),
            evidence=("weights-rms",),
            method="every entry counted",
            citation=CITATION,
        )
    ]
