"""The gradient noise scale from norms: how many examples a batch needs before its gradient is mostly signal.

With G the gradient of the whole loss and Σ the covariance of single examples' gradients, the mean g_B over B examples
has E‖g_B‖² = |G|² + tr Σ/B. Norms at two batch sizes b < B therefore give both, without bias:

    |G|² ≈ (B ‖g_B‖² − b ‖g_b‖²)/(B − b),    tr Σ ≈ (‖g_b‖² − ‖g_B‖²)/(1/b − 1/B),    B_simple = tr Σ/|G|².

Both are averaged over steps and divided only then. The mean of quotients is too large, ‖g_B‖² itself for |G|² makes the
noise scale too small, and raising a negative |G|² to some ε makes spikes. The quotient's bias and its error are the
jackknife's. Where the interval of |G|² reaches zero there is no noise scale, only a lower bound of it (Fieller's).

Examples are taken as independent. Batches drawn without replacement from N examples have ‖g_B‖² with
(N − B)/(N − 1) of the noise: there tr Σ comes out as N/(N − 1) times the covariance around the mean of the N.

Source: McCandlish et al., arXiv 1812.06162, appendix A.1; Fieller 1954.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from diagnostics.averages import Draws, quotient, tail_warning
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact

ROUNDING = 0.05
"""By how much the norm of a mean may exceed the mean of norms: half precision, and no more."""

NEGATIVE = 0.1
"""Of |G|². A tr Σ so far below zero is no rounding: the norms are of gradients on different scales."""


@dataclass(frozen=True, repr=False)
class GradientNoise:
    """|G|², tr Σ and their quotient.

    Attributes:
        gradient_sq: |G|², squared norm of the noiseless gradient. Unbiased, so it can come out negative.
        trace_covariance: tr Σ, variance of single examples' gradients, summed over parameters. Unbiased too.
        simple: B_simple = tr Σ/|G|², in examples; ``nan`` with the reason where the interval of |G|² reaches zero.
        at_least: B_simple is above this, at 95 %; 0 where that is unknown.
    """

    gradient_sq: Estimate
    trace_covariance: Estimate
    simple: Estimate
    at_least: float

    def coherence(self, examples: int) -> Estimate:
        """m-coherence of m examples, m/(1 + B_simple): m where their gradients are equal, 1 where orthogonal.

        Source: Chatterjee & Zielinski, arXiv 2008.01217.

        Example:
            >>> noise_of_population([1.0, 1.0], 0.5).coherence(2).value  # two orthogonal gradients
            1.0
        """
        value = examples / (1 + self.simple.value)
        return Estimate(value, value / (1 + self.simple.value) * self.simple.error, self.simple.kind, self.simple.how)

    def __str__(self) -> str:
        reason = "" if self.simple.determined else f" ({self.simple.how})"
        return (
            f"B_simple {self.simple}{reason}: tr Σ {self.trace_covariance} over |G|² {self.gradient_sq}\n"
            f"({self.gradient_sq.how})"
        )

    __repr__ = __str__


def noise_from_norms(
    small_squares: ArrayLike, big_squares: ArrayLike, small_size: ArrayLike, big_size: float | None = None
) -> GradientNoise:
    """The noise scale from squared gradient norms at two batch sizes, over K steps.

    Gradients are means over their examples, before clipping; where a loss is divided by the number of micro-batches,
    multiply it back. Steps should be of one stage of training.

    Args:
        small_squares: ‖g_b‖² (K,), or (K, R) for R groups that make up the big batch: ranks, micro-batches, examples.
        big_squares: ‖g_B‖² (K,).
        small_size: b; for groups of different sizes (R,), and g_B must be their mean weighted by size.
        big_size: B; by default all groups together.

    Raises:
        DiagnosticsError: norms or sizes that do not fit, are negative or not finite; ‖g_B‖² above the mean of its
            groups', which no mean can be.

    Source: arXiv 1812.06162.

    Example:
        >>> steps = numpy.random.default_rng(0).normal(1.0, 2.0, (500, 64, 3))  # |G|² = 3, tr Σ = 12
        >>> squares = numpy.square(steps).sum(2), numpy.square(steps.mean(1)).sum(1)
        >>> print(noise_from_norms(*squares, small_size=1).simple)
        4.03 ± 0.06
    """
    small, big = _squares("small_squares", small_squares), _squares("big_squares", big_squares)
    if big.ndim != 1 or small.ndim not in (1, 2) or len(small) != len(big) or not small.size:
        raise DiagnosticsError(
            "small_squares and big_squares do not fit together",
            given=f"shapes {small.shape} and {big.shape}",
            expected="(steps,) or (steps, groups), and (steps,)",
        )
    rows = small if small.ndim == 2 else small[:, None]
    pairs = [unbiased_pair(row, float(one), small_size, big_size) for row, one in zip(rows, big, strict=True)]
    gradients, traces = numpy.asarray(pairs).T
    whole = numpy.broadcast_to(numpy.asarray(small_size), rows.shape[1]).sum() if big_size is None else big_size
    how = f"norms at two batch sizes over {len(big)} {'step' if len(big) == 1 else 'steps'}"
    how += tail_warning(traces.tolist(), int(whole))
    return noise_of_blocks(numpy.ones(len(big)), gradients, traces, how)


def noise_of_population(example_squares: ArrayLike, mean_square: float) -> GradientNoise:
    """The noise scale of exactly these examples: tr Σ around their own mean, nothing drawn and nothing estimated.

    mean ‖g_i‖²/‖ḡ‖² = 1 + B_simple.

    Args:
        example_squares: ‖g_i‖² of every example (N,).
        mean_square: ‖ḡ‖² of the mean of their gradients.

    Raises:
        DiagnosticsError: as ``noise_from_norms``.

    Example:
        >>> noise_of_population([1.0, 1.0], 0.5).simple.value  # two orthogonal gradients
        1.0
    """
    squares = _squares("example_squares", example_squares)
    whole = float(_squares("mean_square", mean_square))
    if squares.ndim != 1 or not squares.size:
        raise DiagnosticsError("example_squares is no row of numbers", given=f"shape {squares.shape}")
    _check_jensen(whole, float(squares.mean()))
    how = f"all {len(squares)} examples"
    gradient, trace = exact(whole, how), exact(float(squares.mean()) - whole, how)
    if whole == 0.0:
        return GradientNoise(gradient, trace, Estimate(math.nan, math.nan, "exact", "the gradient is zero"), 0.0)
    simple = exact(trace.value / whole, how)
    return GradientNoise(gradient, trace, simple, simple.value)


def unbiased_pair(
    small_squares: ArrayLike, big_square: ArrayLike, small_size: ArrayLike, big_size: float | None = None
) -> tuple[float, float]:
    """|G|² and tr Σ of one step, unbiased and noisy: to be averaged before they are divided.

    Weighted by their sizes, R groups of N examples together have mean ‖g_j‖² = |G|² + tr Σ · R/N.

    Args:
        small_squares: one ‖g_b‖², or those of R groups (R,).
        big_square: ‖g_B‖².
        small_size: b, or (R,).
        big_size: B; by default all groups together.

    Raises:
        DiagnosticsError: as ``noise_from_norms``.

    Example:
        >>> unbiased_pair([3.0, 5.0], 3.0, 4)  # (8·3 − 4·4)/(8 − 4), (4 − 3)/(1/4 − 1/8)
        (2.0, 8.0)
    """
    squares = numpy.atleast_1d(_squares("small_squares", small_squares))
    big_squares = _squares("big_square", big_square)
    if big_squares.size != 1:
        raise DiagnosticsError("big_square is not one number", given=f"shape {big_squares.shape}", expected="‖g_B‖²")
    square = float(big_squares.item())
    given = numpy.asarray(small_size, dtype=numpy.float64)
    if not squares.size or squares.ndim != 1 or given.shape not in ((), squares.shape) or not bool((given > 0).all()):
        raise DiagnosticsError(
            "small_size does not fit small_squares",
            given=f"{small_size!r} for shape {squares.shape}",
            expected="a positive number of examples, one for all groups or one for each",
        )
    sizes = numpy.broadcast_to(given, squares.shape)
    mean_square, small = float((sizes * squares).sum() / sizes.sum()), float(sizes.sum()) / len(sizes)
    big = float(sizes.sum()) if big_size is None else float(big_size)
    if not (math.isfinite(big) and big > small):
        raise DiagnosticsError(
            "big_size is not larger than small_size",
            given=f"{big:g} and {small:g}",
            expected="norms at two different batch sizes",
            attempt="big_size=, or the norms of at least two groups",
        )
    if len(squares) > 1 and math.isclose(big, float(sizes.sum())):
        _check_jensen(square, mean_square)
    return (big * square - small * mean_square) / (big - small), (mean_square - square) / (1 / small - 1 / big)


def noise_of_blocks(weights: Draws, gradients: Draws, traces: Draws, how: str) -> GradientNoise:
    """From sums over blocks of steps: of weights, of weighted |G|² and of weighted tr Σ, (blocks,) each.

    Example:
        >>> ones = numpy.ones(3)
        >>> print(noise_of_blocks(ones, ones, 2 * ones, "three steps").simple)
        2
    """
    gradient = quotient(gradients.tolist(), weights.tolist(), how)
    trace = quotient(traces.tolist(), weights.tolist(), how)
    at_least = _lower_bound(weights, gradients, traces)
    if not gradient.interval()[0] > 0.0:
        bound = f": B_simple is above {at_least:.3g} at 95 %" if at_least else ""
        reason = f"the interval of |G|² reaches zero{bound}; {how}"
        return GradientNoise(gradient, trace, Estimate(math.nan, math.nan, "standard error", reason), at_least)
    if trace.interval()[1] < -NEGATIVE * gradient.value:
        reason = f"tr Σ is negative: small and big gradients are not both means over their examples; {how}"
        return GradientNoise(gradient, trace, Estimate(math.nan, math.nan, "standard error", reason), 0.0)
    plain = quotient(traces.tolist(), gradients.tolist(), how)
    without = (traces.sum() - traces) / (gradients.sum() - gradients)
    bias = (len(weights) - 1) * (float(without.mean()) - plain.value)
    return GradientNoise(gradient, trace, Estimate(plain.value - bias, plain.error, plain.kind, how), at_least)


def _lower_bound(weights: Draws, gradients: Draws, traces: Draws) -> float:
    """The smallest B for which Σ(tr Σ − B |G|²) is not above zero by more than its one-sided 95 % error (Fieller)."""
    count = len(weights)
    if count < 2:
        return 0.0
    shares = weights / weights.sum()
    total = numpy.array([traces.sum(), gradients.sum()])
    away = numpy.stack([traces, gradients]) - total[:, None] * shares
    # B does not depend on the unit, and products of numbers far from one are none.
    unit = max(float(numpy.abs(away).max()), float(numpy.abs(total).max())) or 1.0
    total, away = total / unit, away / unit
    # Products of sums, less what chance may have added to them: their sign says whether a sum differs from zero.
    beyond = numpy.outer(total, total) - float(stdtrit(count - 1, 0.95)) ** 2 * count / (count - 1) * away @ away.T
    if total[0] <= 0.0 or beyond[0, 0] <= 0.0:
        return 0.0
    roots = numpy.roots([beyond[1, 1], -2 * beyond[0, 1], beyond[0, 0]])
    return min((float(root.real) for root in roots if root.imag == 0.0 and root.real > 0.0), default=0.0)


def numbers_of(name: str, given: Any) -> Draws:
    """An array of numbers, finite or not.

    Raises:
        DiagnosticsError: something else.
    """
    try:
        return numpy.asarray(given, dtype=numpy.float64)
    except (TypeError, ValueError, RuntimeError) as problem:
        raise DiagnosticsError(
            f"{name} is no squared norm", given=repr(given)[:80], expected="finite numbers from 0 up"
        ) from problem


def _squares(name: str, given: Any) -> Draws:
    found = numbers_of(name, given)
    if not bool((numpy.isfinite(found) & (found >= 0)).all()):
        raise DiagnosticsError(
            f"{name} is no squared norm", given=repr(given)[:80], expected="finite numbers from 0 up"
        )
    return found


def _check_jensen(of_mean: float, mean: float) -> None:
    if of_mean > (1 + ROUNDING) * mean:
        raise DiagnosticsError(
            "the squared norm of a mean gradient is above the mean of its parts' squared norms",
            given=f"{of_mean:.6g} above {mean:.6g}",
            expected="gradients that are all means over their examples",
            attempt="multiply a micro-batch's gradient by the accumulation steps its loss was divided by",
        )
