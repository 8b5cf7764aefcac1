"""Drawing spectral densities: one ridge for each check, on an axis that shows a bulk around zero and outliers far out.

The axis is asinh(λ/width): linear around zero, logarithmic beyond, on both sides. Heights are logarithmic too, since
all but a few of some million eigenvalues lie in the bulk. Each node of a Gauss rule is drawn as wide as it is
uncertain, so a resolved outlier is a needle, and a bulk that few nodes have to stand for is no row of needles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes

from reports import palette

POINTS = 240, 5000
"""Of each ridge at most, and of all together about: more cannot be seen, and a page has to stay small."""

MOST_RIDGES = 40
"""More than this, and they can no longer be told apart: neighbours are left out then."""

NARROWEST = 0.16
"""Half the width of a resolved eigenvalue's kernel, in units of the axis."""

OVERLAP = 1.9, 3.2
"""The highest ridge over the distance of two of them: for few, and at most for many."""


@dataclass(frozen=True)
class Ridge:
    """One check.

    Attributes:
        step: when it was made.
        nodes: (directions, steps) of the Gauss rules.
        weights: likewise; each row sums to 1.
        residuals: likewise; some eigenvalue lies within so much of the node.
        dimension: how many eigenvalues there are.
        outliers: (n,) eigenvalues apart from the bulk.
        ends: the smallest and the largest eigenvalue; NaN where one was not measured.
        threshold: curvature at which steps stop contracting; NaN where that is unknown.
    """

    step: int
    nodes: numpy.ndarray
    weights: numpy.ndarray
    residuals: numpy.ndarray
    dimension: int
    outliers: numpy.ndarray
    ends: tuple[float, float]
    threshold: float = math.nan

    @property
    def scale(self) -> float:
        """The largest magnitude."""
        return float(numpy.abs(self.nodes).max())


@dataclass(frozen=True)
class Scale:
    """The common axis of all ridges: linear up to ``width``."""

    width: float

    def place(self, eigenvalues: numpy.ndarray | float) -> numpy.ndarray:
        """Where eigenvalues stand."""
        return numpy.asarray(numpy.arcsinh(numpy.asarray(eigenvalues, dtype=float) / self.width))

    def heights(self, ridge: Ridge, places: numpy.ndarray) -> numpy.ndarray:
        """log₁₀(1 + eigenvalues per unit of the axis) at each place."""
        kept = ridge.weights > 0
        nodes, residuals = ridge.nodes[kept], ridge.residuals[kept]
        counts = ridge.weights[kept] * ridge.dimension / len(ridge.nodes)
        # Kernels end somewhere, for on a logarithmic height the tails of a Gaussian would be hills of their own; and
        # none reaches beyond the ends, where nothing is.
        low, high = self.reach(ridge)
        left = numpy.maximum(self.place(nodes - residuals), low)
        right = numpy.minimum(self.place(nodes + residuals), high)
        left, right = (
            numpy.minimum(left, self.place(nodes) - NARROWEST),
            numpy.maximum(right, self.place(nodes) + NARROWEST),
        )
        middle, half = (left + right) / 2, (right - left) / 2
        distances = numpy.clip((places[:, None] - middle) / half, -1, 1)
        kernels = (1 - distances**2) ** 2 * (15 / 16) / half
        return numpy.asarray(numpy.log10(1 + kernels @ counts))

    def reach(self, ridge: Ridge) -> tuple[float, float]:
        """Between which places this check's eigenvalues lie."""
        low, high = (end for end in ridge.ends)
        low = min(low if math.isfinite(low) else math.inf, float(ridge.nodes.min()))
        high = max(high if math.isfinite(high) else -math.inf, float(ridge.nodes.max()))
        return float(self.place(low)), float(self.place(high))


def scale_of(ridges: Sequence[Ridge]) -> Scale:
    """Linear up to one per cent of the largest magnitude, at the check where that is least."""
    sizes = [ridge.scale for ridge in ridges if ridge.scale > 0] or [1.0]
    return Scale(0.01 * max(min(sizes), 0.01 * max(sizes)))


def waterfall(axes: Axes, ridges: Sequence[Ridge]) -> None:
    """All checks, the first on top, with outliers, both ends, and the threshold marked."""
    scale = scale_of(ridges)
    low, high = _limits(ridges, scale)
    points = max(100, min(POINTS[0], POINTS[1] // len(ridges)))
    places = numpy.union1d(numpy.linspace(low, high, points), [0.0])
    curves = [scale.heights(ridge, places) for ridge in ridges]
    overlap = min(max(OVERLAP[0], len(ridges) / 10), OVERLAP[1])
    unit = overlap / max(1e-9, max(float(curve.max()) for curve in curves))
    for row, curve in enumerate(curves):
        _ridge(axes, places, -row, unit * curve, order=2 * row)
    over = 2 * len(ridges)
    axes.axvline(0.0, color=palette.MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=over)
    axes.set_xlim(low, high)
    axes.set_ylim(-len(ridges) + 0.55, unit * float(curves[0].max()) + 0.15)
    _threshold(axes, scale, ridges, over)
    for row, ridge in enumerate(ridges):
        _marks(axes, scale, -row, ridge, order=over + 1)
    _label(axes, scale, ridges, low, high)


def _limits(ridges: Sequence[Ridge], scale: Scale) -> tuple[float, float]:
    everything = [value for ridge in ridges for value in (*ridge.nodes.flat, *ridge.ends, ridge.threshold)]
    seen = scale.place(numpy.array([value for value in everything if math.isfinite(value)]))
    return min(float(seen.min()), -1.0) - 0.35, max(float(seen.max()), 1.0) + 0.35


def _ridge(axes: Axes, places: numpy.ndarray, base: float, heights: numpy.ndarray, order: int) -> None:
    axes.axhline(base, color=palette.GRID, linewidth=0.8, zorder=order)
    for side, color in ((places >= 0, palette.SERIES[0]), (places <= 0, palette.SERIES[1])):
        for hill in _hills(places[side], heights[side]):
            along, top = hill[0], base + hill[1]
            outline = numpy.concatenate([along, along[[-1, 0]]]), numpy.concatenate([top, [base, base]])
            # Paper first: a ridge hides what is behind it, and its colour stays light.
            axes.fill(*outline, color=palette.PAPER, linewidth=0, zorder=order)
            axes.fill(*outline, color=color, alpha=0.28, linewidth=0, zorder=order)
            axes.plot(along, top, color=color, linewidth=0.9, zorder=order + 1)


def _hills(places: numpy.ndarray, heights: numpy.ndarray) -> list[tuple[numpy.ndarray, numpy.ndarray]]:
    """Where a ridge is above its base, in pieces, each with the point before and after."""
    above = heights > 1e-3
    starts = numpy.flatnonzero(above & ~numpy.concatenate([[False], above[:-1]]))
    stops = numpy.flatnonzero(above & ~numpy.concatenate([above[1:], [False]]))
    pieces = [slice(max(0, start - 1), stop + 2) for start, stop in zip(starts, stops, strict=True)]
    return [(places[piece], heights[piece]) for piece in pieces]


def _marks(axes: Axes, scale: Scale, base: float, ridge: Ridge, order: int) -> None:
    outliers = scale.place(ridge.outliers)
    axes.plot(
        outliers, [base] * len(outliers), marker="|", markersize=6, linestyle="none", color=palette.INK, zorder=order
    )
    for end, color in zip(ridge.ends, (palette.SERIES[1], palette.SERIES[0]), strict=True):
        if math.isfinite(end):
            axes.plot(scale.place(end), base, marker="o", markersize=4, color=color, zorder=order)


def _threshold(axes: Axes, scale: Scale, ridges: Sequence[Ridge], order: int) -> None:
    known = [(float(scale.place(one.threshold)), -row) for row, one in enumerate(ridges) if one.threshold > 0]
    if not known:
        return
    across = [place for place, _ in known for _ in range(2)]
    down = [edge for _, row in known for edge in (row + 0.5, row - 0.5)]
    down[0] = axes.get_ylim()[1]
    axes.plot(across, down, color=palette.EDGE, linewidth=1.2, linestyle=(0, (5, 2)), zorder=order)
    axes.annotate(
        "edge of stability",
        xy=(across[0], down[0]),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=palette.EDGE,
        fontsize=8.5,
        zorder=order,
    )


def _label(axes: Axes, scale: Scale, ridges: Sequence[Ridge], low: float, high: float) -> None:
    axes.set_yticks([-row for row in range(len(ridges))], [_thousands(ridge.step) for ridge in ridges])
    every = math.ceil(len(ridges) / 14)
    for row, label in enumerate(axes.get_yticklabels()):
        label.set_visible(row % every == 0)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(False)
    ticks = _ticks(scale, low, high)
    axes.set_xticks(scale.place(numpy.array(ticks)).tolist(), [_plain(tick) for tick in ticks])
    axes.set_xlabel("eigenvalue (linear around zero, logarithmic beyond)")
    axes.set_ylabel("optimizer step")


def _ticks(scale: Scale, low: float, high: float) -> list[float]:
    """Zero and powers of ten, as many as have room: about nine to the axis."""
    first = math.ceil(math.log10(scale.width))
    last = math.floor(math.log10(scale.width * math.sinh(max(high, -low))))
    stride = max(1, math.ceil((high - low) / math.log(10) / 9))
    powers = [10.0**power for power in range(last, first - 1, -stride)]
    within = [sign * power for power in powers for sign in (-1, 1) if low < float(scale.place(sign * power)) < high]
    return sorted([0.0, *(tick for tick in within if abs(float(scale.place(tick))) > 0.9)])


def _plain(value: float) -> str:
    if value == 0.0:
        return "0"
    power = round(math.log10(abs(value)))
    sign = "−" if value < 0 else ""
    if -3 <= power <= 3:
        return f"{sign}{10.0**power:g}"
    return f"{sign}10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _thousands(step: int) -> str:
    return f"{step:,}"
