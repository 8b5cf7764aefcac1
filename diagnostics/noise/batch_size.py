"""What a noise scale says of the batch size and of the learning rate that goes with it.

With B_noise the noise scale, S steps and E examples to a target loss, S_min and E_min the fewest of each,

    SGD:                η(B) = η_max/(1 + B_noise/B),
    Adam and the like:  η(B) = η_max/[½(√(B_noise/B) + √(B/B_noise))],  largest at B = B_noise,
    (S/S_min − 1)(E/E_min − 1) = 1,  S/S_min = 1 + B_crit/B,  E/E_min = 1 + B/B_crit,  B_crit = B_noise.

So a batch of B_crit needs twice the steps and twice the examples of the best in either. The SGD law holds for a loss
that is quadratic along the step; the Adam law for steps along the sign of a gradient that is mostly noise.

Where curvature is equal in all directions B_noise is B_simple; elsewhere B_simple is a proxy, often within a small
factor. It starts near zero and grows as the loss falls, and measured critical batch sizes do not always follow it.

Source: McCandlish et al., arXiv 1812.06162; Adam: Li et al., arXiv 2405.14578; the doubts: Merrill et al., 2505.23971.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from diagnostics.arguments import real_number
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate
from diagnostics.noise.estimators import GradientNoise
from diagnostics.noise.noise_scale import NoiseScale

Law = Literal["sgd", "adam"]

CAVEAT = "B_simple is a proxy: it takes curvature as equal in all directions, and it grows as the loss falls"


@dataclass(frozen=True, repr=False)
class BatchSizeAdvice:
    """What a batch of this size costs in steps and in examples.

    Attributes:
        batch_size: B, in examples per step.
        critical: B_crit, in examples; ``nan`` with the reason where the noise scale is.
        steps: S/S_min, steps over those of a very large batch.
        examples: E/E_min, examples over those of a very small batch.
        at_least: B_crit is above this, at 95 %; 0 where that is unknown.
    """

    batch_size: float
    critical: Estimate
    steps: Estimate
    examples: Estimate
    at_least: float

    def __str__(self) -> str:
        if self.critical.determined:
            low, high = self.critical.interval()
            first = f"critical batch size {self.critical}, 95 % interval {max(low, 0.0):.3g} to {high:.3g}"
            second = f"a batch of {self.batch_size:g} takes {self.steps} of the fewest steps"
            return f"{first}\n{second} and {self.examples} of the fewest examples\n({CAVEAT})"
        if self.at_least > self.batch_size:
            return (
                f"critical batch size above {self.at_least:.3g}: a batch of {self.batch_size:g} is below it, and a "
                f"larger one saves steps at little cost in examples\n({CAVEAT})"
            )
        return f"critical batch size undetermined ({self.critical.how})"

    __repr__ = __str__


def batch_size_advice(noise: GradientNoise | NoiseScale, batch_size: float) -> BatchSizeAdvice:
    """The critical batch size, taken to be B_simple, and where this batch size stands.

    Args:
        noise: from ``noise_scale``, a ``NoiseTracker`` (its ``noise``), or ``noise_from_norms``.
        batch_size: examples per optimizer step, over all ranks and micro-batches.

    Raises:
        DiagnosticsError: another kind of noise; a batch size that is not positive.

    Source: arXiv 1812.06162.

    Example:
        >>> from diagnostics.noise.estimators import noise_of_population
        >>> print(batch_size_advice(noise_of_population([400.0] * 9, 4.0), 33))
        critical batch size 99, 95 % interval 99 to 99
        a batch of 33 takes 4 of the fewest steps and 1.333 of the fewest examples
        (B_simple is a proxy: it takes curvature as equal in all directions, and it grows as the loss falls)
    """
    if not isinstance(noise, GradientNoise | NoiseScale):
        raise DiagnosticsError(
            "noise is not what a noise scale was measured as",
            given=type(noise).__name__,
            expected="a GradientNoise or a NoiseScale",
            attempt="noise_scale(objective), or tracker.noise",
        )
    size = _positive("batch_size", batch_size)
    return BatchSizeAdvice(
        batch_size=size,
        critical=noise.simple,
        steps=_carried(noise.simple, lambda scale: 1 + scale / size),
        examples=_carried(noise.simple, lambda scale: 1 + size / scale if scale > 0 else math.inf),
        at_least=noise.at_least if isinstance(noise, GradientNoise) else 0.0,
    )


def optimal_learning_rate(batch_size: float, noise_scale: Estimate, largest: float, law: Law = "sgd") -> Estimate:
    """The learning rate that lowers the loss most per step, in the units of ``largest``.

    Args:
        batch_size: B, in examples.
        noise_scale: B_noise, the ``hessian`` of a ``NoiseScale``; ``noise.simple`` is its proxy.
        largest: η_max, best at a very large batch for ``"sgd"``, and at B = B_noise for ``"adam"``.
        law: ``"sgd"``, or ``"adam"`` for Adam, AdamW, Lion and other steps of about fixed size.

    Raises:
        DiagnosticsError: a size or rate that is not positive; a noise scale that is no Estimate; another law.

    Source: arXiv 1812.06162, 2405.14578.

    Example:
        >>> from diagnostics.estimate import exact
        >>> print(optimal_learning_rate(25, exact(100, "known"), 0.5))
        0.1
        >>> print(optimal_learning_rate(25, exact(100, "known"), 1e-3, "adam"))
        0.0008
    """
    size, rate = _positive("batch_size", batch_size), _positive("largest", largest)
    factor = _law(law)
    return _carried(noise_scale, lambda scale: rate * factor(scale / size), peak=size)


def rescaled_learning_rate(
    lr: float, batch_size: float, new_batch_size: float, noise_scale: Estimate, law: Law = "sgd"
) -> Estimate:
    """The learning rate for another batch size, where ``lr`` is right for this one: η_max need not be known.

    Between the linear rule (far below B_noise) and no change (far above) for SGD; the square root below B_noise, and
    its inverse above, for Adam.

    Args:
        lr: tuned at ``batch_size``.
        batch_size: the present one, in examples.
        new_batch_size: the one to go to.
        noise_scale: as for ``optimal_learning_rate``.
        law: as there.

    Raises:
        DiagnosticsError: as there.

    Source: as there.

    Example:
        >>> from diagnostics.estimate import exact
        >>> print(rescaled_learning_rate(0.1, 25, 100, exact(100, "known")))  # the linear rule would say 0.4
        0.25
    """
    rate, size, new = (
        _positive("lr", lr),
        _positive("batch_size", batch_size),
        _positive("new_batch_size", new_batch_size),
    )
    factor, linear = _law(law), math.sqrt(size / new) if law == "adam" else 1.0

    def rescaled(scale: float) -> float:
        # Without noise the Adam law is 0/0: the limit is the inverse square root.
        return rate * (factor(scale / new) / factor(scale / size) if scale > 0 else linear)

    return _carried(noise_scale, rescaled)


def _sgd(ratio: float) -> float:
    return 1 / (1 + ratio)


def _adam(ratio: float) -> float:
    return 2 * math.sqrt(ratio) / (1 + ratio)


def _law(law: Any) -> Callable[[float], float]:
    if law not in get_args(Law):
        raise DiagnosticsError("law is unknown", given=repr(law), expected="'sgd' or 'adam'")
    return _sgd if law == "sgd" else _adam


def _positive(name: str, given: Any) -> float:
    return real_number(f"{name} is not positive", given, "a finite number above 0", lambda x: 0 < x < math.inf)


def _carried(noise_scale: Estimate, f: Callable[[float], float], peak: float | None = None) -> Estimate:
    """A function of an Estimate, its error from the interval's ends: a slope would say 0 where f has its peak."""
    if not isinstance(noise_scale, Estimate):
        raise DiagnosticsError(
            "noise_scale is not an Estimate",
            given=type(noise_scale).__name__,
            expected="B_noise, or B_simple as its proxy, with its error",
            attempt="noise.hessian or noise.simple",
        )
    if not noise_scale.determined:
        return Estimate(math.nan, math.nan, noise_scale.kind, noise_scale.how)
    ends = [max(end, 0.0) for end in noise_scale.interval()]
    if peak is not None and ends[0] < peak < ends[1]:
        ends.append(peak)
    value = f(max(noise_scale.value, 0.0))
    reach = max(abs(f(end) - value) for end in ends) if math.isfinite(value) else math.inf
    return Estimate(
        value, reach / (1.96 if noise_scale.kind == "standard error" else 1.0), noise_scale.kind, noise_scale.how
    )
