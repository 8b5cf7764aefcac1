"""Reading unit activity: its findings and figures."""

from __future__ import annotations

import numpy

from diagnostics.estimate import exact
from probes.run import Run
from reports.chapter import Chapter, method_of, reason_missing, unmeasured
from reports.charts import short
from reports.finding import Finding, Level
from reports.units.heatmaps import figures
from reports.units.influence import influence
from reports.units.kinds import CITATION, KINDS, NOTABLE, SEVERE, Kind
from reports.units.outliers import outliers
from reports.units.redundancy import duplicates
from reports.words import counted

FROM_THE_START = ", from step"

_INCLUDES = {"dormant": "dead", "gated_dormant": "dormant"}

_AT_START = (
    "It was so at the first measurement: look at the initialisation (biases above all) and the scale of the inputs, "
    "not at the learning rate.",
    "A checkpoint that was loaded may have brought it: look at the run it came from.",
)


def read(run: Run) -> Chapter:
    """Findings and figures about units."""
    layers = run.layers("units", "units")
    if not layers:
        reason = reason_missing(run, "units")
        if reason is None:
            return Chapter()
        return Chapter((unmeasured("units/activity", "Unit activity", reason, (), CITATION),))
    found = [finding for kind in KINDS if (finding := _verdict(run, kind, layers)) is not None]
    found = found or [_all_well(run, layers)]
    return Chapter((*found, *influence(run), *duplicates(run), *outliers(run)), tuple(figures(run, layers)))


def _counts(run: Run, name: str, layers: list[str]) -> dict[str, int]:
    latest = {layer: run.last("units", name, layer) for layer in layers}
    return {
        layer: int(record.value) for layer, record in latest.items() if record is not None and record.value is not None
    }


def _verdict(run: Run, kind: Kind, layers: list[str]) -> Finding | None:
    totals, counts = _counts(run, "units", layers), _counts(run, kind.name, layers)
    if kind.name in _INCLUDES:
        # Dead units are dormant too, and are reported as what they are.
        others = _counts(run, _INCLUDES[kind.name], layers)
        counts = {layer: max(0, count - others.get(layer, 0)) for layer, count in counts.items()}
    shares = {layer: counts[layer] / totals[layer] for layer in counts if totals.get(layer)}
    if not shares:
        return None
    worst = max(shares, key=lambda layer: shares[layer])
    if shares[worst] < NOTABLE:
        return None
    level: Level = "fail" if kind.severe and shares[worst] >= SEVERE else "warn"
    record = run.last("units", kind.name, worst)
    affected = sum(share >= NOTABLE for share in shares.values())
    elsewhere = f" ({affected} of {len(shares)} non-linearities)" if len(shares) > 1 else ""
    family = method_of(run.last("units", "units", worst)).partition(",")[0]
    since = _since(run, kind.name, worst)
    at_start = kind.severe and since.startswith(FROM_THE_START)
    return Finding(
        id=f"units/{kind.name}" + ("_at_start" if at_start else ""),
        level=level,
        claim=f"{counts[worst]} of {totals[worst]} units at layer {short(worst)} ({family}) {kind.condition}"
        f"{since}{elsewhere}.",
        value=exact(shares[worst], method_of(record)),
        threshold=f"{NOTABLE:.0%} of a layer" + (f"; {SEVERE:.0%} is a failure" if kind.severe else ""),
        meaning=kind.meaning,
        advice=_AT_START if at_start else kind.advice,
        evidence=(f"units-{kind.name}",) if len(run.series("units", kind.name, worst)) > 1 else (),
        method=method_of(record),
        citation=CITATION,
    )


def _since(run: Run, kind: str, layer: str) -> str:
    """Since when a notable share of a layer's units has been lost: it points to initialisation, or to one step."""
    counts, totals = run.series("units", kind, layer), run.series("units", "units", layer)
    if len(counts) < 2 or len(counts) != len(totals):
        return ""
    fine = numpy.flatnonzero(~(counts.values >= NOTABLE * totals.values))
    if not len(fine):
        return f"{FROM_THE_START} {int(counts.steps[0])} on"
    if fine[-1] + 1 == len(counts):
        return ""
    return f"; {NOTABLE:.0%} or more since step {int(counts.steps[fine[-1] + 1])}"


def _all_well(run: Run, layers: list[str]) -> Finding:
    total = sum(_counts(run, "units", layers).values())
    counts = {kind.word: _counts(run, kind.name, layers) for kind in KINDS}
    parts = [f"{sum(found.values())} {word}" for word, found in counts.items() if found]
    return Finding(
        id="units/activity",
        level="ok",
        claim=f"Units are at work: of {total} at {counted(len(layers), 'non-linearity')}, {', '.join(parts)}.",
        value=exact(total, "count"),
        threshold=f"{NOTABLE:.0%} of a layer in any of these",
        meaning="Dormant: next to no output. Dead: no output and no slope. Saturated: flat. Linearised: one slope. A "
        "few of each are "
        "normal in a network that trains well.",
        advice=(),
        evidence=(),
        method=method_of(run.last("units", "dead", layers[-1])),
        citation=CITATION,
    )
