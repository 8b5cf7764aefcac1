"""Lazy or rich: whether the network still is the linear model that it was at the start.

Three numbers say so. The first-order prediction of all that has happened to the outputs decides: it is nearly right in
the lazy regime and worth nothing in the rich one. The distance of the kernel from where it began goes along with it,
and ‖θ − θ₀‖/‖θ₀‖ is told. Neither regime is wrong by itself.

The limits were set on the digits. Networks of one hidden layer whose outputs were scaled by 10 to 100 ended with errors
of .003 to .036 and distances of 2e-6 to 2e-4; networks of usual scale, width 32 and 256, under SGD, Adam and AdamW with
errors of .85 to .96 and distances of .03 to .3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate
from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import method_of, step_table
from reports.document import Figure
from reports.finding import Finding

ID = "tangent_kernel/regime"
PROBE = "tangent_kernel"
CITATION = "Chizat et al., arXiv 1812.07956; Fort et al., arXiv 2010.15110"

Words = tuple[str, str]


@dataclass(frozen=True)
class Gauge:
    """One number between lazy and rich: lazy up to one limit, rich from another on."""

    name: str
    label: str
    lazy: float
    rich: float

    def says(self, value: float) -> str:
        """Lazy, rich, or between."""
        return "lazy" if value <= self.lazy else "rich" if value >= self.rich else "between"


LINEARISATION = Gauge("linearisation", "error of the first-order\nprediction from the start", 0.1, 0.5)
DISTANCE = Gauge("distance", "distance of the kernel\nfrom the first", 3e-3, 2e-2)
MOVED = Gauge("moved", "‖θ − θ₀‖/‖θ₀‖", 0.1, 0.3)
GAUGES = (LINEARISATION, DISTANCE, MOVED)

LEAST = 1e-6
"""The left end of the drawing, at the most."""

MEANING = {
    "lazy": "Outputs have changed as those of the linear model that the network was at the start. It has learned with "
    "the features it began with: what those make hard to see stays hard to learn.",
    "rich": "The tangents of the start say little of where the outputs are now. Features have changed with "
    "what was learned, and theory of a fixed kernel does not hold.",
    "between": "The linear model of the start describes part of what has happened. Features have begun to change.",
}


def regime(run: Run) -> list[Finding]:
    """Where the network stands between lazy and rich; nothing is alleged."""
    error, distance = run.last(PROBE, LINEARISATION.name), run.last(PROBE, DISTANCE.name)
    if error is None or error.value is None or distance is None or distance.value is None:
        return []
    first = _first(run)
    if error.step <= first:
        return []
    word = verdict(error.value, distance.value)
    where = {"lazy": "is lazy", "rich": "is rich", "between": "is between lazy and rich"}[word]
    claim = (
        f"Training {where}: by step {error.step} the first-order prediction from step {first} is off by "
        f"{error.value:.2g} times the change of the outputs, and the kernel is at a distance of {distance.value:.2g} "
        f"from the one of step {first}"
    )
    moved = run.last(PROBE, MOVED.name)
    if moved is not None and moved.value is not None:
        claim += f"; parameters have moved by {moved.value:.2g} of their norm"
    return [
        Finding(
            id=ID,
            level="ok",
            claim=f"{claim}.",
            value=Estimate(error.value, error.error or 0.0, "residual", method_of(error)),
            threshold=f"lazy where the error is at most {LINEARISATION.lazy:g} and the distance at most "
            f"{DISTANCE.lazy:g}; rich from {LINEARISATION.rich:g} and {DISTANCE.rich:g} on",
            meaning=MEANING[word],
            advice=(),
            evidence=("lazy-rich",),
            method=method_of(error),
            citation=CITATION,
        )
    ]


def verdict(error: float, distance: float) -> str:
    """Lazy or rich where both numbers say so, between otherwise."""
    said = {LINEARISATION.says(error), DISTANCE.says(distance)}
    return said.pop() if len(said) == 1 else "between"


def figure(run: Run) -> list[Figure]:
    """The gauge: each number between lazy and rich, with the way it has come."""
    series = [run.series(PROBE, gauge.name) for gauge in GAUGES]
    # At the start itself there is nothing to see.
    first = _first(run)
    series = [_later(one, first) for one in series]
    if not len(series[0]) or not len(series[1]):
        return []
    error, distance = float(series[0].values[-1]), float(series[1].values[-1])
    return [
        Figure(
            id="lazy-rich",
            title="Between lazy and rich",
            caption="Each row is a number that is small where training is lazy: the large dot is the last check, small "
            "ones the checks before it. In the blue zone it says lazy, in the orange one rich. The first two decide; "
            "the third depends on width and is told beside them.",
            alt=f"Error of the first-order prediction {error:.3g}, distance of the kernel {distance:.3g}: "
            f"{verdict(error, distance)}.",
            draw=partial(_draw, series),
            table=step_table(tuple(gauge.name for gauge in GAUGES), series),
            size=(7.2, 2.9),
        )
    ]


def _first(run: Run) -> int:
    """The step that the numbers are since: the first, or where the run was last resumed."""
    still = run.series(PROBE, MOVED.name)
    steps = still.steps[still.values == 0.0]
    return int(steps[-1]) if len(steps) else 0


def _later(series: Series, first: int) -> Series:
    kept = (series.steps > first) & numpy.isfinite(series.values)
    return Series(series.steps[kept], series.values[kept], series.errors[kept])


def _draw(series: list[Series], canvas: Canvas) -> None:
    axes = canvas.subplots()
    # Wide enough for both zones of every row and for what was seen, so that nobody scrolls through an empty zone.
    seen = [float(value) for one in series for value in one.values if value > 0]
    left = max(LEAST, 10.0 ** math.floor(math.log10(min([DISTANCE.lazy, *seen])) - 0.05))
    right = 10.0 ** math.ceil(math.log10(max([2.0, *seen])) + 0.05)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(len(GAUGES) - 0.45, -0.75)
    for row, (gauge, one) in enumerate(zip(GAUGES, series, strict=True)):
        low, high = row - 0.32, row + 0.32
        for begin, end, color in ((left, gauge.lazy, palette.SERIES[0]), (gauge.rich, right, palette.SERIES[1])):
            axes.fill_betweenx([low, high], begin, end, color=color, alpha=0.22, linewidth=0)
        values = one.values.clip(left * 1.3, right)
        axes.plot(values, [row] * len(values), color=palette.MUTED, linewidth=0.8, marker="o", markersize=2.5)
        if len(values):
            axes.plot(values[-1:], [row], "o", color=palette.INK, markersize=7)
            axes.annotate(
                f"{one.values[-1]:.2g}",
                (values[-1], row),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
            )
    axes.text(left * 1.3, -0.5, "lazy", color=palette.SERIES[0], fontsize=9, va="center")
    axes.text(right / 1.3, -0.5, "rich", color=palette.SERIES[1], fontsize=9, va="center", ha="right")
    axes.set_yticks(range(len(GAUGES)), [gauge.label for gauge in GAUGES])
    axes.grid(False, axis="y")
