"""Slow twin of unit activity: one unit, one sample at a time, slopes by central differences in float64."""

from __future__ import annotations

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
