"""How much the late loss depends on the learning rate: the best rate of a sweep, and how sharp that optimum is.

Through the best rate and its two neighbours goes one parabola in log₂ of the rate. Its curvature is what being off by
a factor of two costs; its lowest point is where a finer grid would look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from diagnostics.estimate import Estimate, format_value
from reports.chapter import unmeasured
from reports.comparison.differences import judged
from reports.comparison.sweep import Point, Sweep
from reports.finding import Finding
from reports.words import counted

CITATION = "Wortsman et al., arXiv 2309.14322; Yang et al., arXiv 2203.03466"

BROAD, SHARP = 0.1, 1.0
"""Parts of the loss that a factor of two in the rate costs."""


@dataclass(frozen=True)
class Parabola:
    """L(x) = lowest + cost (x − x₀)² with x = log₂ of the rate.

    Attributes:
        rate: 2^x₀.
        lowest: loss there.
        cost: what a factor of two away from it adds.
    """

    rate: float
    lowest: float
    cost: Estimate


def parabola(points: Sequence[Point]) -> Parabola | None:
    """The one through three points; None where one has no loss, or it does not open upwards.

    Example:
        >>> losses = [Estimate(1.0 + 0.25 * (x - 0.5) ** 2, 0.0, "exact", "planted") for x in (-1, 0, 1)]
        >>> found = parabola([Point(2.0**x, ("",), loss, None, None) for x, loss in zip((-1, 0, 1), losses)])
        >>> round(found.rate, 6), round(found.cost.value, 6)
        (1.414214, 0.25)
    """
    x = numpy.log2([one.rate for one in points])
    finals = [one.final for one in points if one.final is not None]
    if len(finals) < 3:
        return None
    # Each loss counts in the curvature with the weight of its divided difference.
    weights = [1 / math.prod(x[here] - x[there] for there in range(3) if there != here) for here in range(3)]
    cost = sum(weight * one.value for weight, one in zip(weights, finals, strict=True))
    error = math.sqrt(sum((weight * one.error) ** 2 for weight, one in zip(weights, finals, strict=True)))
    if cost <= 0:
        return None
    slope = (finals[1].value - finals[0].value) / (x[1] - x[0])
    lowest_at = 0.5 * (x[0] + x[1]) - slope / (2 * cost)
    lowest = finals[1].value - cost * (x[1] - lowest_at) ** 2
    return Parabola(float(2.0**lowest_at), float(lowest), Estimate(float(cost), float(error), "spread", finals[0].how))


def sensitivity(sweep: Sweep) -> Finding:
    """The best rate, its neighbours, and how sharp the optimum is."""
    id = f"comparison/sweep/{sweep.size}"
    best = sweep.best
    if best is None or (final := sweep.points[best].final) is None:
        return unmeasured(id, "The best learning rate", "no run of the sweep has a late loss", (), CITATION)
    point = sweep.points[best]
    of = f" for {counted(sweep.size, 'parameter')}" if sweep.size else ""
    claim = f"Of {counted(len(sweep.points), 'learning rate')}{of} {point.rate:.4g} has the lowest late loss, {final}"
    gone = [f"{one.rate:.4g}" for one in sweep.points if one.final is None]
    lost = f" No late loss at {', '.join(gone)}." if gone else ""
    return Finding(
        id=id,
        level="ok",
        claim=f"{claim}; {_neighbours(sweep, best)}. {_shape(sweep, best)}",
        value=final,
        threshold="",
        meaning="The loss over the rate, with everything else that the headers tell held fixed. The best rate is one "
        f"for runs of this length: longer ones may prefer another.{lost}",
        advice=_advice(sweep, best),
        evidence=("sweep",),
        method=f"loss over {sweep.steps}: a line through its checks, at its middle",
        citation=CITATION,
    )


def _neighbours(sweep: Sweep, best: int) -> str:
    said = []
    for place, gap in zip((best - 1, best + 1), sweep.gaps, strict=True):
        if gap is not None:
            said.append(
                f"{sweep.points[place].rate:.4g}{_beside(sweep.points[best], sweep.points[place])}, ×{2**gap:.3g}"
            )
    return f"next to it on the grid: {' and '.join(said)}"


def _beside(best: Point, other: Point) -> str:
    if best.final is None or other.final is None:
        return " (no late loss)"
    verdict = judged(best.final, other.final, "lower", log=True)
    return f" ({other.final}{'' if verdict == 'worse' else ', not told apart'})"


def _shape(sweep: Sweep, best: int) -> str:
    """How sharp the optimum is, or why that is open."""
    if None in sweep.gaps:
        return "It lies at the end of the grid: the optimum may be beyond."
    fit = parabola(sweep.points[best - 1 : best + 2])
    if fit is None:
        return "How sharp the optimum is cannot be said: a neighbour has no late loss, or is no higher."
    cost = format_value(fit.cost.value, fit.cost.error)
    if fit.cost.value <= 2 * fit.cost.error:
        return f"The optimum is too flat for its errors: a factor of two in the rate costs {cost}."
    if fit.lowest <= 0:
        below, above = (_rise(sweep.points[best], sweep.points[place]) for place in (best - 1, best + 1))
        return f"The loss rises unevenly from there, by {below} below and {above} above: no parabola fits."
    part = fit.cost.value / fit.lowest
    word = "broad" if part < BROAD else "sharp" if part > SHARP else "of usual width"
    return (
        f"The optimum is {word}: by the parabola through the three it is at {fit.rate:.3g}, and a factor of two away "
        f"costs {cost} in loss ({100 * part:.2g} %)."
    )


def _rise(best: Point, other: Point) -> str:
    return "?" if best.final is None or other.final is None else f"{other.final.value - best.final.value:.3g}"


def _advice(sweep: Sweep, best: int) -> tuple[str, ...]:
    if None not in sweep.gaps:
        return ()
    further = sweep.points[best].rate * (2.0 if sweep.gaps[1] is None else 0.5)
    return (f"Extend the grid: try {further:.3g}.",)
