"""Reading normalisation layers: channels switched off, and running statistics that cannot be used."""

from __future__ import annotations

from diagnostics.estimate import exact
from probes.run import Run
from reports.finding import Finding
from reports.weights.latest import latest, listed
from reports.words import counted

NOTABLE = 0.25
METHOD = "every gain and running statistic looked at"
CITATION = "Ioffe and Szegedy, arXiv 1502.03167"


def running_statistics(run: Run) -> list[Finding]:
    """A failure for negative variances, a warning for statistics that never were updated."""
    negative = [layer for layer, count in latest(run, "norm_negative_variances").items() if count]
    stale = [layer for layer, value in latest(run, "norm_never_updated").items() if value]
    findings = []
    if negative:
        findings.append(
            Finding(
                id="weights/negative_variance",
                level="fail",
                claim=f"{counted(len(negative), 'batch normalisation layer')} ({listed(negative)}) "
                f"{'has' if len(negative) == 1 else 'have'} negative running variances.",
                value=exact(len(negative), METHOD),
                threshold="none",
                meaning="No data can give a negative variance. In evaluation mode its root is NaN, and so is all that "
                "follows.",
                advice=(
                    "Re-estimate the running statistics: some batches in train mode without optimizer steps.",
                    "Look for code that averages or subtracts whole state dicts: variances must not be extrapolated.",
                ),
                evidence=(),
                method=METHOD,
                citation=CITATION,
            )
        )
    if stale:
        findings.append(
            Finding(
                id="weights/stale_statistics",
                level="warn",
                claim=f"{counted(len(stale), 'batch normalisation layer')} ({listed(stale)}) "
                f"{'has' if len(stale) == 1 else 'have'} trained gains, but running statistics as before training.",
                value=exact(len(stale), METHOD),
                threshold="means all 0 and variances all 1 beside gains or biases that have moved",
                meaning="In evaluation mode these layers normalise by mean 0 and variance 1, whatever training has "
                "seen.",
                advice=(
                    "Re-estimate the running statistics before evaluating: some batches in train mode.",
                    "If the layers were trained in evaluation mode on purpose, this is how they should be.",
                ),
                evidence=(),
                method=METHOD,
                citation=CITATION,
            )
        )
    return findings


def switched_off(run: Run) -> list[Finding]:
    """A warning where many, but not all, channels of a layer have no gain, or no spread to normalise."""
    widths = latest(run, "norm_width")
    found: dict[str, dict[str, float]] = {}
    for name, limit in (("norm_near_zero", 1.0), ("norm_small_variances", 1.0 + 1e-9)):
        shares = {layer: count / widths[layer] for layer, count in latest(run, name).items() if widths.get(layer)}
        found[name] = {layer: share for layer, share in shares.items() if NOTABLE <= share < limit}
    gains, variances = found["norm_near_zero"], found["norm_small_variances"]
    if not gains and not variances:
        return []
    parts = []
    if gains:
        worst = max(gains, key=lambda layer: gains[layer])
        parts.append(f"{gains[worst]:.0%} of the gains of {worst} are near zero")
    if variances:
        worst = max(variances, key=lambda layer: variances[layer])
        parts.append(f"{variances[worst]:.0%} of the channels of {worst} have a running variance below 1e-5")
    return [
        Finding(
            id="weights/switched_off",
            level="warn",
            claim=f"Channels are switched off: {', and '.join(parts)}.",
            value=exact(max({**gains, **variances}.values()), METHOD),
            threshold=f"{NOTABLE:.0%} of a layer's channels; gains that are all zero are a design",
            meaning="A channel with a gain near zero passes on its bias alone, one that does not vary has nothing to "
            "pass on. The layer works with fewer channels than it has.",
            advice=(
                "Remove the channels if the model was pruned on purpose.",
                "Otherwise look for dead units in front of the layer, and at weight decay on gains.",
            ),
            evidence=(),
            method=METHOD,
            citation=CITATION,
        )
    ]
