"""Slow twin of the power-law fit: every start, every value above it, straight from the definition."""

from __future__ import annotations

import math
from collections.abc import Sequence


def fit_tail(values: Sequence[float]) -> tuple[float, float, int, float]:
    """α, x_min, the length of the tail and D of the best of all tails with three distinct values or more."""
    best = (math.nan, math.nan, 0, math.inf)
    for x_min in sorted(set(values))[:-2]:
        tail = sorted(value for value in values if value >= x_min)
        n = len(tail)
        alpha = 1 + n / sum(math.log(value / x_min) for value in tail)
        gaps = [
            abs((1 - (value / x_min) ** (1 - alpha)) - sum(other < value for other in tail) / n) for value in set(tail)
        ]
        if max(gaps) < best[3]:
            best = (alpha, x_min, n, max(gaps))
    return best
