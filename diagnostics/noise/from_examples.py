"""Noise and signal from inner products of single examples' gradients, with the jackknife's errors over the examples.

With q_i = ⟨g_i, g_i⟩, a_i = ⟨g_i, ḡ⟩ and m = ⟨ḡ, ḡ⟩ in any inner product, and N examples drawn from the data,

    noise ≈ N/(N − 1) (mean q − m),    signal ≈ m − noise/N,

both unbiased. What leaving one example out changes follows from q_i and a_i, so no gradient is built a second time.
In the plain inner product these are tr Σ and |G|²; in that of H tr(HΣ) and GᵀHG; in an optimizer's metric those of the
coordinates in which it takes plain steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy
from scipy.special import stdtrit

from diagnostics.averages import Draws, deviation
from diagnostics.estimate import Estimate


@dataclass(frozen=True)
class Parts:
    """Signal, noise and their quotient: ``nan`` with the reason where the interval of the signal reaches zero."""

    signal: Estimate
    noise: Estimate
    ratio: Estimate


def parts_of(own: Draws, along: Draws, mean: float, how: str, *, signal: str = "|G|²", rounding: float = 0.0) -> Parts:
    """From q (N,), a (N,) and m, of at least three examples.

    Args:
        own: q.
        along: a.
        mean: m.
        how: the method, for the Estimates.
        signal: what it is called where it cannot be told from zero.
        rounding: one standard error of q and m from the precision of the gradients, in units of q. It is in both, and
            stays where noise is the difference of nearly equal numbers.

    Example:
        >>> g = numpy.array([1.0, 2.0, 3.0])  # one parameter: variance 1, and 4 − 1/3 for the square of the mean
        >>> parts = parts_of(g * g, g * g.mean(), g.mean() ** 2, "by hand")
        >>> round(parts.noise.value, 9), round(parts.signal.value, 9), parts.ratio.determined
        (1.0, 3.666666667, False)
    """
    count = len(own)
    whole = _unbiased(float(own.mean()), mean, count)
    left = _unbiased(
        (own.sum() - own) / (count - 1),
        (count**2 * mean - 2 * count * along + own) / (count - 1) ** 2,
        count - 1,
    )
    signals, noises = (jackknifed(whole[part], left[part], how, unbiased=True) for part in (0, 1))
    lost = rounding * float(own.mean())
    noises = replace(noises, error=math.hypot(noises.error, lost))
    if not signals.interval()[0] > 0.0:
        reason = "the gradient of every example is zero"
        if own.any():
            reason = f"the interval of {signal} reaches zero: more examples are needed to tell signal from noise"
        return Parts(signals, noises, Estimate(math.nan, math.nan, "standard error", f"{reason}; {how}"))
    with numpy.errstate(all="ignore"):
        ratios = left[1] / left[0]
    ratio = jackknifed(whole[1] / whole[0], ratios, how)
    return Parts(signals, noises, replace(ratio, error=math.hypot(ratio.error, lost / whole[0])))


def jackknifed(value: float, without: Draws, how: str, *, unbiased: bool = False) -> Estimate:
    """A statistic with its bias taken out and its error, from its values with one example left out, (N,).

    Example:
        >>> x = numpy.array([1.0, 2.0, 6.0])
        >>> float(jackknifed(x.mean(), (x.sum() - x) / 2, "the mean is its own jackknife"))
        3.0
    """
    count = len(without)
    centre = float(without.mean())
    spread = math.sqrt((count - 1) / count) * deviation(without)
    shifted = value if unbiased else count * value - (count - 1) * centre
    return Estimate(float(shifted), float(stdtrit(count - 1, 0.975)) / 1.96 * spread, "standard error", how)


def _unbiased(mean_of_squares: Any, square_of_mean: Any, count: int) -> tuple[Any, Any]:
    """Signal and noise, for numbers or for arrays of them."""
    noise = count / (count - 1) * (mean_of_squares - square_of_mean)
    return square_of_mean - noise / count, noise
