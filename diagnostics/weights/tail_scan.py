"""The search for the start of a power-law tail, compiled: each value is tried, and almost none is looked at twice.

For a start x_j with n values from there on, P(x) = 1 − (x/x_j)^(1−α) is the fitted share below x and S(x) the
observed one. Both only rise, so from a known gap the next place that could show a larger one is some steps away: S
rises by 1/n at each value, and P not at all at worst. One pass upwards with such strides finds every S − P that
counts, one downwards every P − S. A start is given up as soon as its gap exceeds the smallest so far, and the place
where the last one failed is tried first. The answer is that of trying all pairs, in some ten thousand evaluations for
four thousand values instead of eight million.

Importing this imports numba, so it is imported with the first fit. Nothing is cached on disk: an installation may be
read-only.
"""

from __future__ import annotations

import math

import numba
import numpy


@numba.njit(nogil=True)
def best_start(
    logs: numpy.ndarray, first: numpy.ndarray, owner: numpy.ndarray, sums: numpy.ndarray, size: int
) -> tuple[int, float]:
    """The start whose tail is closest to a power law, and the largest gap between the two shares there.

    Args:
        logs: (m,) logarithms of the distinct values, increasing.
        first: (m,) how many values are smaller than each.
        owner: (size + 1,) the first distinct value that has at least so many smaller ones.
        sums: (m,) sum of the logarithms of all values from each on.
        size: how many values there are, repeated ones included.
    """
    distinct = len(logs)
    best, start, hint = math.inf, -1, 0
    # Two distinct values are met by any exponent, so a tail has three at least.
    for j in range(distinct - 2):
        n = size - first[j]
        rate = n / (sums[j] - n * logs[j])
        k = max(hint, j)
        gap = 1.0 - math.exp(rate * (logs[j] - logs[k])) - (first[k] - first[j]) / n
        worst, worst_at = abs(gap), k
        k = j
        while k < distinct and worst < best:
            gap = 1.0 - math.exp(rate * (logs[j] - logs[k])) - (first[k] - first[j]) / n
            if abs(gap) > worst:
                worst, worst_at = abs(gap), k
            # Rounded down twice over: a step too short costs a moment, a step too long the truth.
            stride = int(n * (worst + gap) - 1e-9)
            k = max(k + 1, owner[min(first[k] + stride, size)])
        k = distinct - 1
        while k > j and worst < best:
            gap = 1.0 - math.exp(rate * (logs[j] - logs[k])) - (first[k] - first[j]) / n
            if abs(gap) > worst:
                worst, worst_at = abs(gap), k
            stride = int(n * (worst - gap) - 1e-9)
            k = min(k - 1, owner[max(first[k] - stride, 0)])
        hint = worst_at
        if worst < best:
            best, start = worst, j
    return start, best
