"""The noisy quadratic model: how steps to a target depend on the batch size, from a spectrum alone.

The loss ½ Σ h_i θ_i² is descended along g_i = h_i θ_i + √(c_i/B) ξ_i, ξ standard normal, without noise at B = ∞; the
optimizer has momentum β and divides by h^p. Expected losses are in closed form (``quadratic_moments``), no step is
simulated. Noise follows curvature near a minimum (c = h for a log-likelihood), which is the default.

What the model shows: with small batches momentum only multiplies the learning rate by 1/(1 − β), with large ones it
saves steps; preconditioning saves steps, the more so with large batches; both raise the batch size up to which steps
fall as 1/B.

Source: Zhang et al., arXiv 1907.04164.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import ArrayLike

from diagnostics.arguments import real_number, whole_number
from diagnostics.averages import Draws
from diagnostics.curvature.spectrum import Spectrum
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.noise.quadratic_moments import Descent

RATES = 0.95 * 10.0 ** (-numpy.arange(0, 120) / 16)
"""Learning rates that are tried, as shares of the largest stable one: 16 per decade, over seven and a half decades."""


@dataclass(frozen=True, repr=False)
class StepsToTarget:
    """The fewest steps at one batch size, over the learning rates tried.

    Attributes:
        batch_size: B.
        steps: S(B), exact for the model; ``nan`` with the reason where the target is out of reach.
        lr: the learning rate that takes them.
    """

    batch_size: float
    steps: Estimate
    lr: float

    @property
    def examples(self) -> float:
        """S · B."""
        return self.steps.value * self.batch_size

    def __str__(self) -> str:
        if not self.steps.determined:
            return f"no number of steps at batch size {self.batch_size:g}: {self.steps.how}"
        steps = f"{self.steps.value:,.0f} step{'' if self.steps.value == 1 else 's'}"
        return f"{steps} at batch size {self.batch_size:g}, with a learning rate of {self.lr:.3g}"

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class NoisyQuadratic:
    """Eigenvalues with noise, as ``noisy_quadratic`` makes it; all float64, one entry for each distinct eigenvalue.

    Attributes:
        eigenvalues: h (n,), above zero.
        noise: c (n,), variance of a single example's gradient in each direction.
        multiplicities: how many directions each entry stands for (n,), not necessarily whole.
        start: E θ² at step 0 (n,).
    """

    eigenvalues: Draws
    noise: Draws
    multiplicities: Draws
    start: Draws

    def __repr__(self) -> str:
        h = self.eigenvalues
        return f"NoisyQuadratic({self.multiplicities.sum():g} eigenvalues from {h.min():.3g} to {h.max():.3g})"

    def loss(
        self, steps: int, lr: float, batch_size: float, *, momentum: float = 0.0, preconditioning: float = 0.0
    ) -> float:
        """Expected loss after so many steps; ``inf`` where it has grown beyond all numbers.

        Args:
            steps: t.
            lr: η.
            batch_size: B, up to ``math.inf``.
            momentum: β in [0, 1), of the heavy ball.
            preconditioning: p in [0, 1]: steps are divided by h^p. 1 is Newton's.

        Raises:
            DiagnosticsError: an argument out of range.

        Example:
            >>> model = noisy_quadratic([1.0])
            >>> model.loss(0, 0.5, 1), model.loss(1, 0.5, 1)  # ½, then ½ (0.25 + 0.25)
            (0.5, 0.25)
        """
        descent = self._descent(batch_size, momentum, preconditioning)
        rate = _within("lr", lr, "a number above 0", lambda value: 0 < value < math.inf)
        count = whole_number("steps is out of range", steps, "a whole number from 0", 0)
        return float(descent.losses(numpy.array([rate]), count)[0])

    def steps_to(
        self,
        target: float,
        batch_size: float,
        *,
        momentum: float = 0.0,
        preconditioning: float = 0.0,
        rates: ArrayLike | None = None,
    ) -> StepsToTarget:
        """The fewest steps to an expected loss, with the best constant learning rate.

        Swings of the loss that are shorter than a sixteenth of the time to the target can go unseen.

        Args:
            target: expected loss to come down to.
            batch_size: B, up to ``math.inf``.
            momentum: as for ``loss``.
            preconditioning: as for ``loss``.
            rates: learning rates to try; by default 16 per decade below the largest stable one.

        Raises:
            DiagnosticsError: an argument out of range.

        Example:
            >>> model = noisy_quadratic([1.0, 0.1])
            >>> [model.steps_to(0.01, size).steps.value for size in (1, 10, math.inf)]
            [556.0, 62.0, 6.0]
        """
        aim = _within("target", target, "a loss above 0", lambda value: 0 < value < math.inf)
        descent = self._descent(batch_size, momentum, preconditioning)
        tried = RATES * descent.largest_rate if rates is None else numpy.ravel(numpy.asarray(rates, numpy.float64))
        if not tried.size or not bool((numpy.isfinite(tried) & (tried > 0)).all()):
            raise DiagnosticsError("rates are no learning rates", given=repr(rates)[:80], expected="numbers above 0")
        before, after = descent.bracket(tried, aim)
        if after is None:
            reason = f"the loss does not come down to {aim:g} within {before:,} steps at any of {len(tried)} rates"
            return StepsToTarget(float(batch_size), Estimate(math.nan, math.nan, "exact", reason), math.nan)
        while after - before > 1:
            middle = (before + after) // 2
            before, after = (before, middle) if bool((descent.losses(tried, middle) <= aim).any()) else (middle, after)
        best = float(tried[numpy.argmin(descent.losses(tried, after))])
        last = "; the smallest of them, so that fewer may do" if len(tried) > 1 and best == tried.min() else ""
        how = f"closed form, best of {len(tried)} learning rates{last}"
        return StepsToTarget(float(batch_size), exact(after, how), best)

    def steps_by_batch_size(
        self, target: float, batch_sizes: Iterable[float], *, momentum: float = 0.0, preconditioning: float = 0.0
    ) -> tuple[StepsToTarget, ...]:
        """S(B): ``steps_to`` for each batch size.

        Raises:
            DiagnosticsError: as ``steps_to``.
        """
        return tuple(
            self.steps_to(target, size, momentum=momentum, preconditioning=preconditioning) for size in batch_sizes
        )

    def critical_batch_size(self, target: float, *, momentum: float = 0.0, preconditioning: float = 0.0) -> Estimate:
        """E_min/S_min, where steps and examples are equal multiples of the fewest: 2 by the law of one curvature.

        E_min is taken at B = 1 and S_min without noise.

        Raises:
            DiagnosticsError: as ``steps_to``.

        Example:
            >>> noisy_quadratic([1.0, 0.1]).critical_batch_size(0.01).value  # 556 examples over 6 steps
            92.66666666666667
        """
        one, whole = self.steps_by_batch_size(
            target, (1.0, math.inf), momentum=momentum, preconditioning=preconditioning
        )
        for end in (one, whole):
            if not end.steps.determined:
                return end.steps
        return exact(one.examples / whole.steps.value, "examples at B = 1 over steps without noise")

    def _descent(self, batch_size: float, momentum: float, preconditioning: float) -> Descent:
        size = _within("batch_size", batch_size, "a number above 0", lambda value: value > 0)
        beta = _within("momentum", momentum, "a number in [0, 1)", lambda value: 0 <= value < 1)
        power = _within("preconditioning", preconditioning, "a number in [0, 1]", lambda value: 0 <= value <= 1)
        h = self.eigenvalues
        weights = 0.5 * h * self.multiplicities
        return Descent(h ** (1 - power), self.noise * h ** (-2 * power) / size, weights, self.start, beta)


def noisy_quadratic(
    eigenvalues: Spectrum | ArrayLike,
    noise: ArrayLike | None = None,
    *,
    multiplicities: ArrayLike | None = None,
    start: ArrayLike = 1.0,
) -> NoisyQuadratic:
    """The model with these eigenvalues.

    Args:
        eigenvalues: h (n,), above zero; or a measured ``Spectrum``, whose nodes count by their weights. Those within
            rounding of zero are left out, and those below it within ``near_zero``.
        noise: c (n,); by default h, for a loss whose noise covariance is its curvature.
        multiplicities: directions per eigenvalue (n,); by default one each.
        start: E θ² at step 0, one number or (n,).

    Raises:
        DiagnosticsError: an eigenvalue that is not positive, a noise or start below zero, or shapes that do not fit.

    Source: arXiv 1907.04164.

    Example:
        >>> noisy_quadratic([1 / i for i in range(1, 101)])
        NoisyQuadratic(100 eigenvalues from 0.01 to 1)
    """
    if isinstance(eigenvalues, Spectrum):
        if noise is not None or multiplicities is not None:
            raise DiagnosticsError(
                "noise and multiplicities are for eigenvalues, not for a Spectrum", attempt="nodes and weights by hand"
            )
        h, counts = _of_spectrum(eigenvalues)
    else:
        h = numpy.atleast_1d(_row("eigenvalues", eigenvalues))
        counts = _row("multiplicities", 1.0 if multiplicities is None else multiplicities)
    c, first = _row("noise", h if noise is None else noise), _row("start", start)
    if h.ndim != 1 or not h.size or not bool((h > 0).all()):
        raise DiagnosticsError(
            "eigenvalues are not all positive", given=repr(eigenvalues)[:80], expected="numbers above 0, (n,)"
        )
    for name, values in (("noise", c), ("multiplicities", counts), ("start", first)):
        if values.shape not in ((), h.shape) or bool((values < 0).any()):
            raise DiagnosticsError(
                f"{name} does not fit the eigenvalues",
                given=f"shape {values.shape}, from {values.min(initial=0.0):g}",
                expected=f"shape {h.shape}, nothing below zero",
            )
    return NoisyQuadratic(h, *(numpy.broadcast_to(values, h.shape) for values in (c, counts, first)))


def _of_spectrum(spectrum: Spectrum) -> tuple[Draws, Draws]:
    nodes, weights = spectrum.nodes.numpy(), spectrum.weights.numpy()
    if float(nodes.min()) < -spectrum.near_zero:
        raise DiagnosticsError(
            "the spectrum has negative eigenvalues",
            given=f"down to {spectrum.smallest}",
            expected="a quadratic that has a minimum",
            attempt="the spectrum of GaussNewton(objective)",
        )
    # Zeros come back as roundings, and preconditioning would divide by them.
    kept = (nodes > spectrum.rounding * abs(nodes).max()) & (weights > 0)
    return nodes[kept], weights[kept] * spectrum.dimension / len(nodes)


def _row(name: str, given: Any) -> Draws:
    try:
        found = numpy.asarray(given, dtype=numpy.float64)
    except (TypeError, ValueError):
        found = numpy.array(math.nan)
    if not bool(numpy.isfinite(found).all()):
        raise DiagnosticsError(f"{name} are not finite numbers", given=repr(given)[:80])
    return found


def _within(name: str, given: Any, expected: str, within: Callable[[float], bool]) -> float:
    return real_number(f"{name} is out of range", given, expected, within)
