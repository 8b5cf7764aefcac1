"""Averages over drawn minibatches, each with an interval that covers: the error behind every stochastic measure here.

The interval of a mean over n draws is Student's: with thirty draws the normal one is too short. Estimates give it as
value ± 1.96 errors, so the error is t/1.96 standard errors. Where draws are skewed, as squares of noise are, Student's
too covers less than it says; by how much is the first term of its Edgeworth expansion (Hall 1992, The Bootstrap and
Edgeworth Expansion), and by that the interval is widened. Looking after every draw and stopping at the first error that
happens to be small would make intervals too short again; so there are few looks, at growing numbers of draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy
from scipy.special import stdtrit

from diagnostics.estimate import Estimate, exact

Draws = numpy.ndarray[Any, numpy.dtype[numpy.float64]]

FEWEST = 30
"""Draws before the first look."""

GROWTH = 1.5
"""From one look to the next."""

HEAVY = 0.3
"""One draw that makes more of the variance than this is a heavy tail: even among thirty normal draws it is .15."""

FEW = 2
"""Up to so many examples, tails are taken to be heavy: a few hard examples make most of the mean, if they are met."""


def looks(most: int) -> Iterator[int]:
    """Numbers of draws at which to look whether they are enough: 30, 45, 68, ... up to ``most``.

    Example:
        >>> list(looks(100)), list(looks(10))
        ([30, 45, 68, 100], [10])
    """
    count = min(FEWEST, most)
    while count < most:
        yield count
        count = min(most, math.ceil(GROWTH * count))
    yield most


def mean(values: Sequence[float], how: str, *, everything: bool = False) -> Estimate:
    """The mean of independent draws, or with ``everything`` of all there is to draw.

    Example:
        >>> print(mean([1.0, 2.0, 3.0], "three draws")), mean([1.0, 2.0], "all", everything=True).kind
        2 ± 1
        (None, 'exact')
    """
    drawn = numpy.asarray(values, dtype=numpy.float64)
    if everything:
        return exact(float(drawn.mean()), how)
    if len(drawn) < 2:
        return Estimate(float(drawn.mean()), math.inf, "standard error", how)
    error = _reach(drawn) * deviation(drawn) / math.sqrt(len(drawn) * (len(drawn) - 1))
    return Estimate(float(drawn.mean()), error, "standard error", how)


def quotient(above: Sequence[float], below: Sequence[float], how: str, *, everything: bool = False) -> Estimate:
    """The quotient of two means over the same draws, its error by the jackknife.

    Example:
        >>> float(quotient([2.0, 4.0], [1.0, 3.0], "two draws"))
        1.5
    """
    tops, bottoms = numpy.asarray(above, dtype=numpy.float64), numpy.asarray(below, dtype=numpy.float64)
    value, count = float(tops.sum() / bottoms.sum()), len(tops)
    if everything:
        return exact(value, how)
    if count < 2:
        return Estimate(value, math.inf, "standard error", how)
    without = (tops.sum() - tops) / (bottoms.sum() - bottoms)
    error = math.sqrt((count - 1) / count) * deviation(without)
    return Estimate(value, _reach(-without) * error, "standard error", how)


def deviation(values: Draws) -> float:
    """√Σ(x − x̄)², for numbers of any size: squares of gradients are no longer numbers where these are 1e±80.

    Example:
        >>> values = numpy.array([1.0, 1.0, 5.0, 5.0])
        >>> deviation(values), round(deviation(1e200 * values) / 1e200, 9)
        (4.0, 4.0)
    """
    away = values - values.mean()
    size = float(numpy.abs(away).max(initial=0.0))
    return size * math.sqrt(float(numpy.square(away / size).sum())) if 0.0 < size < math.inf else size


def tail_warning(values: Sequence[float], batch_size: int) -> str:
    """What to say of an interval that cannot be trusted: one draw makes up much of the variance, or may do so unseen.

    Example:
        >>> tail_warning([1.0, 2.0] * 20, 16), tail_warning([1.0, 2.0] * 20 + [50.0], 16)[:13]
        ('', '; heavy tails')
    """
    squares = numpy.square(numpy.asarray(values, dtype=numpy.float64) - numpy.mean(values))
    if batch_size > FEW and (len(values) < FEWEST or squares.max() <= HEAVY * squares.sum()):
        return ""
    return "; heavy tails: a few minibatches make most of the mean, and the interval may be too short"


def _reach(drawn: Draws) -> float:
    """The half-width of a 95 % interval in units of 1.96 standard errors."""
    count, z = len(drawn), 1.96
    quantile = float(stdtrit(count - 1, 0.975))
    away = drawn - drawn.mean()
    size = float(numpy.abs(away).max())
    if 0.0 < size < math.inf:
        # Moments are compared with powers of each other, which are none where draws are very small or large.
        away = away / size
        variance = float(numpy.square(away).mean())
        skewness = float((away**3).mean()) / variance**1.5
        kurtosis = float((away**4).mean()) / variance**2 - 3.0
        missing = skewness**2 / 18 * (z**5 + 2 * z**3 - 3 * z) - kurtosis / 12 * (z**3 - 3 * z)
        quantile += max(0.0, missing) / count
    return quantile / 1.96
