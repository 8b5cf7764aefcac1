"""The batch size at which a gradient can be trusted: the tests by which adaptive sampling grows its batches.

    norm test:           E‖g_B − G‖² ≤ θ²‖G‖²,                        B ≥ tr Σ/(θ²‖G‖²)
    inner-product test:  Var⟨g_B, G⟩ ≤ θ²‖G‖⁴,                        B ≥ GᵀΣG/(θ²‖G‖⁴)
    orthogonality test:  E‖g_B − G ⟨g_B, G⟩/‖G‖²‖² ≤ ν²‖G‖²,           B ≥ (tr Σ − GᵀΣG/‖G‖²)/(ν²‖G‖²)

The first asks for a gradient close to the true one; the second only that a step descends nearly as often as not, and
the third, with it, that the step is not mostly sideways. Together these two ask for far smaller batches than the norm.

Batches of B independent examples have Σ/B. All three bounds are quotients whose bias and error are the jackknife's
over examples; where the interval of |G|² reaches zero there is none.

Source: Byrd et al. 2012 (norm); Bollapragada, Byrd & Nocedal, arXiv 1710.11258 (the others; θ = .9, ν = tan 80°).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy

from diagnostics.arguments import real_number
from diagnostics.averages import Draws
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, listing
from diagnostics.noise.from_examples import jackknifed, parts_of
from diagnostics.noise.gram import GradientGram, gram_matrix
from diagnostics.objective import Objective

FEWEST = 4
"""Examples without which there is no error."""

THETA, NU = 0.9, math.tan(math.radians(80))


@dataclass(frozen=True, repr=False)
class BatchSizeTests:
    """The smallest batch that passes each test, in examples; ``nan`` with the reason where |G|² is not seen.

    Attributes:
        norm: of the norm test, B_simple/θ².
        inner_product: of the inner-product test.
        orthogonality: of the orthogonality test.
    """

    norm: Estimate
    inner_product: Estimate
    orthogonality: Estimate

    @property
    def augmented(self) -> Estimate:
        """The larger of the last two: what the augmented inner-product test asks for."""
        return max(self.inner_product, self.orthogonality, key=lambda found: found.value)

    def __str__(self) -> str:
        low = any(found.determined and found.value < 1 for found in (self.norm, self.inner_product, self.orthogonality))
        note = "\n(below 1, or by chance below 0: a single example passes)" if low else ""
        return f"smallest batches, in examples:\n{listing(self)}{note}"

    __repr__ = __str__


def batch_size_tests(source: Objective | GradientGram, *, theta: float = THETA, nu: float = NU) -> BatchSizeTests:
    """The smallest batch sizes that pass the norm, inner-product and orthogonality tests.

    Args:
        source: the loss, or its ``gradient_gram``.
        theta: θ, the noise that is allowed along the gradient, relative to it.
        nu: ν, the noise that is allowed across it.

    Raises:
        DiagnosticsError: fewer than four examples, θ or ν not above zero; or as ``gradient_gram``.

    Source: arXiv 1710.11258.

    Example:
        >>> import torch
        >>> noise = torch.randn(400, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> gradients = torch.eye(9, dtype=torch.float64)[0] + noise  # |G|² = 1, tr Σ = 9
        >>> print(batch_size_tests(GradientGram(gradients @ gradients.T, {}, ""), theta=1.0, nu=1.0))
        smallest batches, in examples:
        norm           9 ± 1
        inner_product  1.1 ± 0.1
        orthogonality  8.3 ± 0.9
    """
    theta, nu = (
        real_number(f"{name} is not positive", given, "a number above 0", lambda value: 0 < value < math.inf)
        for name, given in (("theta", theta), ("nu", nu))
    )
    gram = gram_matrix(source)
    count = len(gram)
    if count < FEWEST:
        raise DiagnosticsError(
            "there are too few examples", given=f"{count}", expected=f"some hundreds, at least {FEWEST}"
        )
    how = f"{count} examples"
    # Numbers of examples do not depend on the unit of gradients, and the fourth power of most is no number.
    gram = gram / (float(gram.diagonal().max()) or 1.0)
    own, along, square = gram.diagonal(), gram.mean(1), float(gram.mean())
    seen = parts_of(own, along, square, how)
    if not seen.ratio.determined:
        return BatchSizeTests(seen.ratio, seen.ratio, seen.ratio)
    bounds = _bounds(float(own.mean()), square, float(along.var(ddof=1)), count)
    others = numpy.stack([_without(gram, own, along, square, left) for left in range(count)])
    found = [jackknifed(whole, others[:, index], how) for index, whole in enumerate(bounds)]
    return BatchSizeTests(*(_allowed(one, size) for one, size in zip(found, (theta, theta, nu), strict=True)))


def _allowed(found: Estimate, size: float) -> Estimate:
    return replace(found, value=found.value / size / size, error=found.error / size / size)


def _without(gram: Draws, own: Draws, along: Draws, square: float, left: int) -> Draws:
    """The three bounds with one example left out."""
    count = len(own)
    kept = numpy.delete((count * along - gram[left]) / (count - 1), left)
    mean = (count**2 * square - 2 * count * along[left] + own[left]) / (count - 1) ** 2
    squares = (own.sum() - own[left]) / (count - 1)
    return numpy.array(_bounds(float(squares), float(mean), float(kept.var(ddof=1)), count - 1))


def _bounds(squares: float, square: float, projected: float, count: int) -> tuple[float, float, float]:
    """From mean ‖g_i‖², ‖ḡ‖² and Var⟨g_i, ḡ⟩; for θ = ν = 1."""
    trace = count / (count - 1) * (squares - square)
    signal = square - trace / count
    return (
        trace / signal,
        projected / signal**2,
        (trace - projected / signal) / signal,
    )
