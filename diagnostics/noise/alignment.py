"""Whether the gradients of single examples point the same way: their cosines, and how diverse they are.

With c_ij the cosine of g_i and g_j, the mean over pairs is the cosine stiffness, and the lowest the gradient
confusion: where it is far below zero a step on one example undoes that on another. Diversity
Σ‖g_i‖²/‖Σ g_i‖² bounds the batch size N·Δ up to which steps on batches are as good as steps on their examples one
after the other; N·Δ = mean ‖g_i‖²/‖ḡ‖² is one more than the noise scale of exactly these examples.

Cosines of pairs are averages over independent examples taken two at a time, and have the jackknife's error. The lowest
falls with the number of examples, so it is of these and no others.

Source: confusion, Sankararaman et al., arXiv 1904.06963; stiffness, Fort et al., arXiv 1901.09491; diversity, Yin et
al., arXiv 1706.05699.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy

from diagnostics.averages import Draws
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact, listing
from diagnostics.noise.from_examples import jackknifed
from diagnostics.noise.gram import GradientGram, gram_matrix, mean_square_of
from diagnostics.objective import Objective

FEWEST = 4
"""Examples whose gradients are not zero; with fewer there is no error."""


@dataclass(frozen=True, repr=False)
class GradientAlignment:
    """How the gradients of single examples stand to one another.

    Attributes:
        mean_cosine: over all pairs: 1 where all are parallel, 0 where they have nothing in common.
        lowest_cosine: of the two that are most opposed.
        opposed: share of pairs with a negative cosine.
        diversity: N Σ‖g_i‖²/‖Σ g_i‖², in examples: the batch size up to which nothing is lost by averaging.
        pair: the two that are most opposed, counted from 0 over all batches.
        zero: examples without a gradient, in no pair.
        examples: N.
    """

    mean_cosine: Estimate
    lowest_cosine: Estimate
    opposed: Estimate
    diversity: Estimate
    pair: tuple[int, int]
    zero: int
    examples: int

    def __str__(self) -> str:
        return f"{listing(self)}\nmost opposed: examples {self.pair[0]} and {self.pair[1]} of {self.examples}"

    __repr__ = __str__


def gradient_alignment(source: Objective | GradientGram) -> GradientAlignment:
    """Cosines between the gradients of all pairs of examples, and their diversity.

    Args:
        source: the loss, or its ``gradient_gram``, to measure more than one thing of.

    Raises:
        DiagnosticsError: fewer than four examples with a gradient; or as ``gradient_gram``.

    Source: arXiv 1904.06963, 1901.09491, 1706.05699.

    Example:
        >>> import torch
        >>> gradients = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> found = gradient_alignment(GradientGram(gradients @ gradients.T, {}, "by hand"))
        >>> float(found.lowest_cosine), found.pair, float(found.diversity)
        (-1.0, (0, 2), 4.0)
        >>> print(found.mean_cosine)
        0.0 ± 0.9
    """
    gram = gram_matrix(source)
    count, norms = len(gram), numpy.sqrt(gram.diagonal())
    # What is rounding beside the longest is no gradient, and has no direction.
    kept = numpy.flatnonzero(norms > 1e-12 * norms.max(initial=0.0))
    if len(kept) < FEWEST:
        raise DiagnosticsError(
            "too few examples have a gradient",
            given=f"{len(kept)} of {count}",
            expected=f"at least {FEWEST}, some hundreds for a small error",
        )
    cosines = numpy.clip(gram[numpy.ix_(kept, kept)] / numpy.outer(norms[kept], norms[kept]), -1.0, 1.0)
    how = f"all pairs of {len(kept)} examples"
    numpy.fill_diagonal(cosines, numpy.inf)
    first, second = numpy.unravel_index(int(cosines.argmin()), cosines.shape)
    lowest = float(cosines[first, second])
    numpy.fill_diagonal(cosines, 0.0)
    below = (cosines < 0).astype(numpy.float64)
    square = mean_square_of(gram)
    diversity = (
        exact(float(gram.diagonal().mean()) / square, f"these {count} examples")
        if square
        else Estimate(math.nan, math.nan, "exact", "the mean gradient is zero")
    )
    return GradientAlignment(
        mean_cosine=_over_pairs(cosines, how),
        lowest_cosine=exact(lowest, f"these {len(kept)} examples"),
        opposed=_over_pairs(below, how),
        diversity=diversity,
        pair=(int(kept[first]), int(kept[second])),
        zero=count - len(kept),
        examples=count,
    )


def _over_pairs(values: Draws, how: str) -> Estimate:
    """The mean off the diagonal, which is zero; each example left out in turn."""
    count, total = len(values), float(values.sum())
    without = (total - 2 * values.sum(1)) / ((count - 1) * (count - 2))
    return jackknifed(total / (count * (count - 1)), without, how, unbiased=True)
