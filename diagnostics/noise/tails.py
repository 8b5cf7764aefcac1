"""How heavy the tail of gradient noise is, and whether its variance says anything.

Where P(‖g_i − G‖ > x) falls as x^−α with α ≤ 2, Σ does not exist: the variance of any sample is that of its few
largest members, it grows with the sample, and so does every noise scale made of it. α is the Hill estimator's on the k
largest of N distances,

    1/α ≈ mean ln(x_i/x_(k+1)) over the k largest,    error α/√k,

of independent examples. It takes the tail to be a power law beyond x_(k+1); a tail that is none, as that of Gaussian
noise, comes out as a large α, and one that is broad over the sample and bounded beyond it, as after most examples
have been learned, as a small one. Both are what the sample's variance feels.

Source: Hill 1975; heavy tails in SGD: Simsekli et al., arXiv 1901.06053; doubts: Xie et al., arXiv 2002.03495.
"""

from __future__ import annotations

import math
from typing import Any

import numpy
from numpy.typing import ArrayLike

from diagnostics.averages import Draws
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact

SHARE = 0.1
"""Of the examples that count as the tail."""

FEWEST = 10
"""Members of a tail: below, the error is a third of the index."""

TOP = 0.01
"""Of the examples whose share of the noise is told."""

HEAVY = 2.0
"""The index up to which there is no variance."""


def tail_index(distances: ArrayLike) -> Estimate:
    """α of the tail of positive numbers, such as ‖g_i − ḡ‖ of every example; 2 and less: they have no variance.

    Args:
        distances: (N,), finite and not negative; at least a hundred, for a tail of ten.

    Returns:
        α with one standard error; ``nan`` with the reason where there are too few, or too many equal ones.

    Raises:
        DiagnosticsError: no row of finite numbers from 0 up.

    Source: Hill 1975; arXiv 1901.06053.

    Example:
        >>> uniform = (numpy.arange(1000) + 0.5) / 1000
        >>> print(tail_index(uniform ** (-1 / 1.5)))  # P(x > t) = t^-1.5
        1.5 ± 0.1
    """
    values = _distances(distances)
    count = int(SHARE * len(values))
    how = f"Hill's estimator on the {count} largest of {len(values)}"
    if count < FEWEST:
        return _nothing(f"{len(values)} examples have too short a tail: at least {math.ceil(FEWEST / SHARE)}; {how}")
    ordered = numpy.sort(values)[::-1]
    if not ordered[count] > 0:
        return _nothing(f"most are zero; {how}")
    excess = float(numpy.log(ordered[:count] / ordered[count]).mean())
    if not excess > 0:
        return _nothing(f"the largest are all equal; {how}")
    # (k − 1)/k makes 1/mean unbiased for exponential excesses.
    value = (count - 1) / count / excess
    return Estimate(value, value / math.sqrt(count), "standard error", how)


def top_share(distances: ArrayLike) -> Estimate:
    """The share of Σ ‖g_i − ḡ‖² that the hundredth of examples with the longest of these carries, at least one.

    Of Gaussian noise in many dimensions it is a hundredth too.

    Args:
        distances: (N,), finite and not negative.

    Raises:
        DiagnosticsError: no row of finite numbers from 0 up.

    Example:
        >>> float(top_share([1.0] * 99 + [9.0]))  # 81 of 180
        0.45
    """
    values = numpy.sort(_distances(distances))[::-1]
    # Beside the longest: squares of very small or large ones are no numbers.
    squares = numpy.square(numpy.ldexp(values, -math.frexp(float(values.max(initial=0.0)))[1]))
    count = max(1, round(TOP * len(squares)))
    how = f"the {count} longest of {len(squares)}"
    if not (len(squares) and squares.sum() > 0):
        return Estimate(math.nan, math.nan, "exact", f"there is no noise; {how}")
    return exact(float(squares[:count].sum() / squares.sum()), how)


def is_heavy(index: Estimate) -> bool:
    """Whether the variance behind a tail index is not to be relied on: all of its interval is below two.

    Example:
        >>> is_heavy(Estimate(1.2, 0.1, "standard error", "")), is_heavy(Estimate(1.9, 0.2, "standard error", ""))
        (True, False)
    """
    return index.determined and index.interval()[1] < HEAVY


def _distances(given: Any) -> Draws:
    try:
        found = numpy.asarray(given, dtype=numpy.float64)
    except (TypeError, ValueError, RuntimeError):
        found = numpy.array(math.nan)
    if found.ndim != 1 or not bool((numpy.isfinite(found) & (found >= 0)).all()):
        raise DiagnosticsError("distances are no row of sizes", given=repr(given)[:80], expected="(N,), finite, from 0")
    return found


def _nothing(reason: str) -> Estimate:
    return Estimate(math.nan, math.nan, "standard error", reason)
