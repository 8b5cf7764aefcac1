"""Slow twin of unit activity: one unit, one sample at a time, slopes by central differences in float64."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Counts:
    """Units of one layer, and their dormant scores."""

    scores: list[float]
    dormant: int
    dead: int
    saturated: int
    linearised: int


def count_units(
    function: Callable[[Tensor], Tensor], z: Tensor, *, slope: float, bounded: bool, tau: float = 0.025
) -> Counts:
    """Judge pre-activations z (samples, units) of an element-wise function whose working part has this slope."""
    z = z.double()
    h = function(z)
    slopes = (function(z + 1e-6) - function(z - 1e-6)) / 2e-6
    samples, units = z.shape
    means = [sum(abs(h[n, i].item()) for n in range(samples)) / samples for i in range(units)]
    scores = [mean / (sum(means) / units + 1e-9) for mean in means]
    dead = saturated = linearised = 0
    for i in range(units):
        silent = flat = linear = 0
        for n in range(samples):
            steep, output = abs(slopes[n, i].item()), abs(h[n, i].item())
            silent += not bounded and steep < 1e-3 and output <= 1e-2
            flat += steep < 0.03 * slope and (bounded or output > 1e-2)
            linear += abs(steep / slope - 1) <= 0.01
        dead += silent == samples
        saturated += flat >= 0.95 * samples
        linearised += linear >= 0.99 * samples
    return Counts(scores, sum(score <= tau for score in scores), dead, saturated, linearised)


def sign_entropy(z: Tensor) -> float:
    """Mean over units of the entropy of the sign, in bits."""
    total = 0.0
    for i in range(z.shape[1]):
        p = sum(z[n, i].item() > 0 for n in range(len(z))) / len(z)
        total -= sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)
    return total / z.shape[1]


def rms(values: list[float]) -> float:
    """Root of the mean square."""
    return math.sqrt(sum(value * value for value in values) / len(values))


def outlying(h: Tensor, factor: float = 6.0) -> int:
    """Units whose RMS is more than ``factor`` times the median."""
    sizes = [rms(h[:, i].tolist()) for i in range(h.shape[1])]
    return sum(size > factor * statistics.median(sizes) for size in sizes)


def with_duplicate(h: Tensor) -> int:
    """Units that have another one with the same output: cosine, plain and about the mean."""
    units = [h[:, i].tolist() for i in range(h.shape[1])]
    found = 0
    for i, one in enumerate(units):
        found += any(
            _cosine(one, other) > 0.95 and _cosine(_centred(one), _centred(other)) > 0.95
            for j, other in enumerate(units)
            if i != j and _varies(one) and _varies(other)
        )
    return found


def _centred(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    return [value - mean for value in values]


def _varies(values: list[float]) -> bool:
    squares = [value * value for value in _centred(values)]
    if sum(squares) <= 1e-6 * sum(value * value for value in values):
        return False
    return sum(squares) ** 2 / sum(square * square for square in squares) >= 5


def _cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))
