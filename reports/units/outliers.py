"""Reading outlier channels: a few units so large that low precision loses the others."""

from __future__ import annotations

from diagnostics.estimate import exact
from probes.run import Run
from reports.chapter import method_of
from reports.charts import short
from reports.finding import Finding

CITATION = "Dettmers et al., arXiv 2208.07339; Sun et al., arXiv 2402.17762"

MASSIVE = 100.0
"""Times the median: one step of an 8-bit number, 1/127 of the largest, is then as large as a usual value."""


FEW = 0.1
"""A larger share of a layer lies outside of nothing: its median is that of units that have gone silent."""


def outliers(run: Run) -> list[Finding]:
    """The layer with the largest channel against its median, where there is an outlier at all."""
    ratios = {}
    for layer in run.layers("units", "outlier_ratio"):
        largest, number = run.last("units", "outlier_ratio", layer), run.last("units", "outliers", layer)
        if largest is None or largest.value is None or number is None or number.value is None:
            continue
        units = run.last("units", "units", layer)
        most = max(1.0, FEW * (units.value or 0.0)) if units is not None else 1.0
        if 0 < number.value <= most:
            ratios[layer] = (largest.value, int(number.value))
    if not ratios:
        return []
    worst = max(ratios, key=lambda layer: ratios[layer])
    ratio, count = ratios[worst]
    record = run.last("units", "outlier_ratio", worst)
    massive = ratio >= MASSIVE
    are = "channel is an outlier" if count == 1 else "channels are outliers"
    return [
        Finding(
            id="units/outliers",
            level="warn" if massive else "ok",
            claim=f"{count} {are} at layer {short(worst)}; the largest is {ratio:,.0f} times the median.",
            value=exact(ratio, method_of(record)),
            threshold=f"six times the median is an outlier, {MASSIVE:g} times is massive",
            meaning="Numbers of 8 bits that hold the largest channel cannot hold the usual ones: expect a loss when "
            "training or serving in low precision. In full precision it may be no fault."
            if massive
            else "Usual in trained networks; it matters for low precision.",
            advice=("Keep such channels in higher precision, or quantise channel by channel.",) if massive else (),
            evidence=(),
            method=f"RMS of each channel over the layer's median; {method_of(record)}",
            citation=CITATION,
        )
    ]
