"""Reading the spectra of weight matrices: a summary, and one small picture by layer."""

from __future__ import annotations

from functools import partial
from statistics import median

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import exact
from probes.run import Run
from reports import palette
from reports.chapter import method_of
from reports.charts import short
from reports.document import Figure, Table
from reports.finding import Finding
from reports.weights.latest import latest
from reports.words import counted

CITATION = "Yang et al., arXiv 2310.17813; Clauset et al., arXiv 0706.1062; Martin and Mahoney, arXiv 1810.01075"
MOST_CURVES = 6
LEAST_VALUES = 4
POINTS = 200
"""Of a curve at most: more cannot be seen."""

_COLUMNS = {
    "spectral_norm": "σ₁",
    "operator_norm": "RMS→RMS norm",
    "condition": "condition number",
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
    "exponent": "exponent",
    "tail": "values in its tail",
    "p_value": "its p",
    "normal_distance": "distance to normal",
    "uniform_distance": "distance to uniform",
    "zero_rows": "zero rows",
    "repeated_rows": "repeated rows",
}


def spectra(run: Run) -> list[Finding]:
    """What the matrices are like, in two sentences. Nothing in it is good or bad by itself."""
    norms = latest(run, "operator_norm")
    if not norms:
        return []
    largest, smallest = max(norms, key=lambda name: norms[name]), min(norms, key=lambda name: norms[name])
    claim = f"{counted(len(norms), 'weight matrix')}: the largest gain from root mean square to root mean square is "
    claim += f"{norms[largest]:.2g} ({short(largest)})"
    if largest != smallest:
        claim += f", the smallest {norms[smallest]:.2g} ({short(smallest)})"
    record = run.last("weights", "operator_norm", largest)
    return [
        Finding(
            id="weights/spectra",
            level="ok",
            claim=claim + ".",
            value=exact(norms[largest], method_of(record)),
            threshold="",
            meaning=" ".join([*_ranks(run), *_tails(run)])
            + " These describe weights; none of them says by itself how well a network does.",
            advice=(),
            evidence=("weights-spectra",),
            method=method_of(record),
            citation=CITATION,
        )
    ]


def _ranks(run: Run) -> list[str]:
    shapes = (run.header.get("model") or {}).get("shapes", {})
    effective = {
        name: rank / side for name, rank in latest(run, "effective_rank").items() if (side := _side(shapes, name))
    }
    if not effective:
        return []
    least = min(effective, key=lambda name: effective[name])
    return [
        f"Their effective rank is {median(effective.values()):.0%} of what it could be at the median, "
        f"{effective[least]:.0%} in {short(least)}."
    ]


def _tails(run: Run) -> list[str]:
    exponents = latest(run, "exponent")
    if not exponents:
        return []
    sound = {name: value for name, value in exponents.items() if not _doubt(run, name)}
    if not sound:
        return [
            f"Of {counted(len(exponents), 'matrix')} none has a tail of eigenvalues that could be called a power law."
        ]
    low, high = min(sound.values()), max(sound.values())
    return [
        f"The eigenvalues of {len(sound)} of {counted(len(exponents), 'matrix')} could have power-law tails, with "
        f"exponents from {low:.2g} to {high:.2g}."
    ]


def _doubt(run: Run, name: str) -> bool:
    record = run.last("weights", "tail", name)
    return record is None or bool(record.note)


def _side(shapes: dict[str, list[int]], name: str) -> int:
    shape = shapes.get(name) or [0]
    return int(min(shape[0], numpy.prod(shape[1:], dtype=float))) if len(shape) > 1 else 0


def spectra_figure(run: Run) -> list[Figure]:
    """Singular values over their number, both relative, for a few layers; the table has all of them."""
    values = {name: latest(run, name) for name in _COLUMNS}
    if not values["spectral_norm"]:
        return []
    curves = _curves(run, list(values["spectral_norm"]))
    few = f" {len(curves)} of {len(values['spectral_norm'])} matrices, spread over the depth." if curves else ""
    return [
        Figure(
            id="weights-spectra",
            title="Singular values of the weight matrices",
            caption="Each matrix's singular values over its largest, from the largest (left) to the smallest. A curve "
            "that falls at once uses few directions; one that stays up uses all of them." + few,
            alt=f"Singular values of {counted(len(curves), 'matrix')}, log scale.",
            draw=partial(_draw, curves),
            table=Table(
                ("matrix", *_COLUMNS.values()),
                tuple((name, *(values[column].get(name) for column in _COLUMNS)) for name in values["spectral_norm"]),
            ),
            size=(7.2, 3.0),
        )
    ]


def _curves(run: Run, names: list[str]) -> dict[str, numpy.ndarray]:
    found = {}
    for name in names:
        record = run.last("weights", "spectral_norm", name)
        values = None if record is None else run.array(record, axes=1)
        if values is not None and len(values) >= LEAST_VALUES and values[0] > 0:
            found[name] = values
    places = numpy.unique(numpy.linspace(0, max(0, len(found) - 1), MOST_CURVES).round().astype(int))
    return {name: found[name] for name in (list(found)[place] for place in places if place < len(found))}


def _draw(curves: dict[str, numpy.ndarray], canvas: Canvas) -> None:
    axes = canvas.subplots()
    for index, (name, values) in enumerate(curves.items()):
        places = numpy.unique(numpy.linspace(0, len(values) - 1, POINTS).round().astype(int))
        relative = values[places] / values[0]
        # What is rounding would stretch the axis over a dozen empty decades.
        relative = numpy.where(relative > 1e-6, relative, numpy.nan)
        axes.plot(
            places / (len(values) - 1), relative, color=palette.SERIES[index % len(palette.SERIES)], label=short(name)
        )
    axes.set_yscale("log")
    axes.set_xlabel("place among the singular values")
    axes.set_ylabel("σ / σ₁")
    if curves:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
