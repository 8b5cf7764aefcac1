"""Reading unit activity: dormant, dead, saturated and linearised are four verdicts, not one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import exact
from probes.run import Run
from reports.chapter import Chapter, method_of, reason_missing, unmeasured
from reports.charts import heatmap, short
from reports.document import Figure, Table
from reports.finding import Finding, Level

CITATION = "Sokar et al., arXiv 2302.12902; Lyle et al., arXiv 2402.18762"

FROM_THE_START = ", from step"
NOTABLE = 0.25
SEVERE = 0.5


@dataclass(frozen=True)
class _Kind:
    """One way in which a unit can be lost to training."""

    name: str
    condition: str
    severe: bool
    meaning: str
    advice: tuple[str, ...]


_KINDS = (
    _Kind(
        "dead",
        "have no output and no slope on any sample",
        True,
        "No gradient can reach the weights of a dead unit, so it will not come back by itself.",
        (
            "Lower the learning rate or lengthen the warm-up: dead ReLU units mostly come from a few large steps.",
            "Use an activation with a slope everywhere (leaky ReLU, GELU), or add normalisation before it.",
            "Reset them: fresh incoming weights, zero outgoing ones, and their optimizer state with them.",
        ),
    ),
    _Kind(
        "dormant",
        "put out next to nothing compared with their layer",
        False,
        "Dormant units take no part in what the layer computes. Many of them mean that the network uses less of its "
        "width than it has; they "
        "are a symptom, and not by themselves a loss of plasticity.",
        (
            "Check the input scale and the initialisation of the layer.",
            "Look whether dormancy grows with time: growth is the warning, a constant share is not.",
        ),
    ),
    _Kind(
        "saturated",
        "are flat, with an output, on almost every sample",
        False,
        "A saturated unit passes on almost no gradient: its incoming weights learn slowly or not at all.",
        (
            "Shrink the pre-activations: smaller initial weights, normalisation before the non-linearity, or weight "
            "decay.",
            "Lower the learning rate if saturation grew during training.",
        ),
    ),
    _Kind(
        "linearised",
        "have the same slope on almost every sample",
        False,
        "These units act as linear maps. They are alive, but a layer of them adds no non-linearity and plasticity "
        "can suffer.",
        (
            "Check the scale of the pre-activations: too small for tanh, too far from zero for ReLU.",
            "Look for a growing bias or a drifting normalisation gain.",
        ),
    ),
)


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
    found = [finding for kind in _KINDS if (finding := _verdict(run, kind, layers)) is not None]
    return Chapter(tuple(found or [_all_well(run, layers)]), tuple(_figures(run, layers)))


def _counts(run: Run, name: str, layers: list[str]) -> dict[str, int]:
    latest = {layer: run.last("units", name, layer) for layer in layers}
    return {
        layer: int(record.value) for layer, record in latest.items() if record is not None and record.value is not None
    }


def _verdict(run: Run, kind: _Kind, layers: list[str]) -> Finding | None:
    totals, counts = _counts(run, "units", layers), _counts(run, kind.name, layers)
    if kind.name == "dormant":
        # Dead units are dormant too, and are reported as what they are.
        dead = _counts(run, "dead", layers)
        counts = {layer: max(0, count - dead.get(layer, 0)) for layer, count in counts.items()}
    shares = {layer: counts[layer] / totals[layer] for layer in counts if totals.get(layer)}
    if not shares:
        return None
    worst = max(shares, key=lambda layer: shares[layer])
    if shares[worst] < NOTABLE:
        return None
    level: Level = "fail" if kind.severe and shares[worst] >= SEVERE else "warn"
    record = run.last("units", kind.name, worst)
    affected = sum(share >= NOTABLE for share in shares.values())
    others = f" ({affected} of {len(shares)} non-linearities)" if len(shares) > 1 else ""
    family = method_of(run.last("units", "units", worst)).partition(",")[0]
    since = _since(run, kind.name, worst)
    at_start = kind.severe and since.startswith(FROM_THE_START)
    return Finding(
        id=f"units/{kind.name}" + ("_at_start" if at_start else ""),
        level=level,
        claim=f"{counts[worst]} of {totals[worst]} units at layer {short(worst)} ({family}) {kind.condition}"
        f"{since}{others}.",
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
    return f", since step {int(counts.steps[fine[-1] + 1])}" if fine[-1] + 1 < len(counts) else ""


def _all_well(run: Run, layers: list[str]) -> Finding:
    total = sum(_counts(run, "units", layers).values())
    parts = [f"{sum(_counts(run, kind.name, layers).values())} {kind.name}" for kind in _KINDS]
    return Finding(
        id="units/activity",
        level="ok",
        claim=f"Units are at work: of {total} at {len(layers)} non-linearities, {', '.join(parts)}.",
        value=exact(total, "count"),
        threshold=f"{NOTABLE:.0%} of a layer in any of the four",
        meaning="Dormant: next to no output. Dead: no output and no slope. Saturated: flat. Linearised: one slope. A "
        "few of each are "
        "normal in a network that trains well.",
        advice=(),
        evidence=(),
        method=method_of(run.last("units", "dead", layers[-1])),
        citation=CITATION,
    )


def _figures(run: Run, layers: list[str]) -> list[Figure]:
    figures = []
    for kind in _KINDS:
        steps = sorted({int(step) for layer in layers for step in run.series("units", kind.name, layer).steps})
        shares = numpy.full((len(layers), len(steps)), numpy.nan)
        for row, layer in enumerate(layers):
            counts, totals = run.series("units", kind.name, layer), run.series("units", "units", layer)
            if len(counts) == len(totals):
                with numpy.errstate(all="ignore"):
                    shares[row, numpy.searchsorted(steps, counts.steps)] = counts.values / totals.values
        if len(steps) < 2 or not (shares >= NOTABLE / 5).any():
            continue
        figures.append(
            Figure(
                id=f"units-{kind.name}",
                title=f"Share of {kind.name} units",
                caption=f"By non-linearity, first layer on top: units that {kind.condition}.",
                alt=f"Share of {kind.name} units by layer and step; the highest is {numpy.nanmax(shares):.0%}.",
                draw=partial(_draw, layers, steps, shares, f"{kind.name} share"),
                table=_table(layers, steps, shares),
                size=(7.2, min(9.0, 1.6 + 0.24 * len(layers))),
            )
        )
    return figures


def _table(layers: list[str], steps: list[int], shares: numpy.ndarray) -> Table:
    """Where each layer began, stood highest, and ended."""
    rows = []
    for layer, row in zip(layers, shares, strict=True):
        measured = numpy.flatnonzero(numpy.isfinite(row))
        if len(measured):
            highest = int(measured[numpy.argmax(row[measured])])
            rows.append((layer, row[measured[0]], row[highest], steps[highest], row[measured[-1]]))
    return Table(("layer", "first", "highest", "at step", "last"), tuple(rows))


def _draw(layers: list[str], steps: list[int], shares: numpy.ndarray, label: str, canvas: Canvas) -> None:
    heatmap(canvas, layers, steps, shares, label)
