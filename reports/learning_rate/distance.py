"""Reading the distance from initialisation: how far weights have gone, and along how many directions."""

from __future__ import annotations

import numpy

from diagnostics.estimate import exact
from probes.run import Run
from reports.chapter import method_of
from reports.charts import short
from reports.finding import Finding
from reports.learning_rate.tensor_curves import at, matrices, measured

CITATION = "Chizat et al., arXiv 1812.07956"

LOW_RANK = 0.1
"""A change whose stable rank is below this share of what the matrix could hold is low-rank."""
LAZY = 0.01
"""Weights that stay this close to where they began leave the model nearly linear in them."""


def distance(run: Run) -> list[Finding]:
    """One line: how far from the start, and whether the change is low-rank."""
    series = measured(run, "distance", matrices(run, "distance"))
    if not series:
        return []
    far = at(series, run.steps)
    farthest = max(far, key=lambda name: far[name])
    middle = float(numpy.median(list(far.values())))
    claim = f"Matrices are {middle:.2g} of their initial norm away from where they began (median of {len(far)}"
    claim += f"; {short(farthest)} {far[farthest]:.2g})" if len(far) > 1 else ")"
    record = run.last("learning_rate", "distance", farthest)
    return [
        Finding(
            id="learning_rate/distance",
            level="ok",
            claim=f"{claim}{_rank(run, list(far))}.",
            value=exact(middle, method_of(record)),
            threshold="",
            meaning="Weights that hardly leave their start train the model as if it were linear in them (lazy)."
            if middle < LAZY
            else "Weights have moved enough for the model's features to change, not only what is read from them.",
            advice=(),
            evidence=(),
            method=method_of(record),
            citation=CITATION,
        )
    ]


def _rank(run: Run, names: list[str]) -> str:
    """The stable rank of the change, against the most it could be where shapes are known."""
    ranks = at(measured(run, "drift_stable_rank", names), run.steps)
    if not ranks:
        return ""
    shapes = (run.header.get("model") or {}).get("shapes", {})
    text = f"; the change has stable rank {float(numpy.median(list(ranks.values()))):.2g}"
    most = {
        name: min(shapes[name][0], int(numpy.prod(shapes[name][1:]))) for name in ranks if len(shapes.get(name, ())) > 1
    }
    if not most or not all(most.values()):
        return text
    share = float(numpy.median([ranks[name] / most[name] for name in most]))
    return (
        f"{text} of {float(numpy.median(list(most.values()))):.4g}{', so it is low-rank' if share < LOW_RANK else ''}"
    )
