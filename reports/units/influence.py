"""Reading what the loss asks of units: those that it hardly depends on, and those whose weights stand still."""

from __future__ import annotations

from diagnostics.estimate import exact
from probes.run import Run
from reports.chapter import method_of
from reports.charts import short
from reports.finding import Finding
from reports.units.kinds import NOTABLE, SEVERE

CITATION = "Liu et al., arXiv 2505.24061"


def influence(run: Run) -> list[Finding]:
    """The layer with the largest share of units without influence, and the one with most frozen ones."""
    return [*_gradient_dormant(run), *_frozen(run)]


def _gradient_dormant(run: Run) -> list[Finding]:
    found = _worst(run, "gradient_dormant")
    if found is None or found[1] < NOTABLE:
        return []
    worst, share = found
    severe = share >= SEVERE
    record = run.last("units", "gradient_dormant", worst)
    return [
        Finding(
            id="units/gradient_dormant",
            level="warn" if severe else "ok",
            claim=f"The loss hardly depends on {share:.0%} of the units at layer {short(worst)}.",
            value=exact(share, method_of(record)),
            threshold=f"{SEVERE:.0%} of a layer",
            meaning="A unit whose output has no gradient cannot learn, however lively it is: mostly its outgoing "
            "weights are near zero.",
            advice=(
                "Look at the outgoing weights of the layer: weight decay, pruning or zero initialisation may have "
                "emptied them.",
                "Start some of those units afresh, with their optimizer state.",
            )
            if severe
            else (),
            evidence=(),
            method=f"mean gradient at the output at most .01 of the layer's mean; {method_of(record)}",
            citation=CITATION,
        )
    ]


def _frozen(run: Run) -> list[Finding]:
    """Units that are dead have no gradient either, and are reported as what they are."""
    found = _worst(run, "frozen", without="dead")
    if found is None or found[1] < NOTABLE:
        return []
    worst, share = found
    record = run.last("units", "frozen", worst)
    return [
        Finding(
            id="units/frozen",
            level="ok",
            claim=f"The weights into {share:.0%} of the units at layer {short(worst)} have no gradient at all.",
            value=exact(share, method_of(record)),
            threshold="",
            meaning="Usual where layers are frozen on purpose. Where they are meant to train, look for requires_grad, "
            "detach(), or outgoing weights that are zero.",
            advice=(),
            evidence=(),
            method=method_of(record),
            citation=CITATION,
        )
    ]


def _worst(run: Run, kind: str, without: str = "") -> tuple[str, float] | None:
    shares = {}
    for layer in run.layers("units", kind):
        count, total = run.last("units", kind, layer), run.last("units", "units", layer)
        other = run.last("units", without, layer) if without else None
        if count is not None and total is not None and count.value is not None and total.value:
            less = other.value if other is not None and other.value is not None else 0.0
            shares[layer] = max(0.0, count.value - less) / total.value
    worst = max(shares, key=lambda layer: shares[layer], default=None)
    return None if worst is None else (worst, shares[worst])
