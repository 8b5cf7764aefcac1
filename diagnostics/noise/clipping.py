"""What clipping does to the gradient it is meant to tame: how often, how much is left, and where it points instead.

A batch gradient g_B is multiplied by c(g_B) = min(1, C/‖g_B‖). Where norms differ between batches, the mean of what is
left is not a multiple of ∇L: large gradients lose more than small ones. With E the mean over batches,

    rate = P(‖g_B‖ > C),    kept = ⟨E c g_B, ∇L⟩/‖∇L‖²,    bias = ‖E c g_B − ∇L‖/‖∇L‖,

and the sideways part of the bias is what no learning rate can make good. All of it follows from inner products of
single examples' gradients, for any batch size, without another gradient. The mean of c g_B is that of (c − λ) g_B and
λ∇L, which is known, with λ the median of c: zero for batches that are not clipped while most are not, and small where
nearly all are clipped, by much the same factor.

Source: Chen, Wu & Hong, arXiv 2006.15429; Koloskova, Hendrikx & Stich, arXiv 2305.01588.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
import torch

from diagnostics.arguments import real_number, whole_number
from diagnostics.averages import Draws, mean
from diagnostics.curvature.draws import random_stream
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact, listing
from diagnostics.noise.from_examples import parts_of
from diagnostics.noise.gram import GradientGram, gram_matrix, mean_square_of
from diagnostics.objective import Objective

MOST = 2**27
"""Batches times examples: a gigabyte for each of the few arrays of this size."""

ROUNDING = 1e-14
"""Of ‖∇L‖²: what is left of a square whose part along ∇L was all of it."""


@dataclass(frozen=True, repr=False)
class Clipping:
    """How batches of one size fare.

    Attributes:
        rate: share of batches whose gradient is longer than the threshold.
        kept: what is left of the mean step along ∇L; 1 is all of it.
        bias: distance between the mean clipped gradient and ∇L, relative to ∇L; ``nan`` with the reason where it is
            within its error of zero.
        sideways: the part of it that is not along ∇L.
        median_norm: of batch gradients, to hold against the threshold.
    """

    rate: Estimate
    kept: Estimate
    bias: Estimate
    sideways: Estimate
    median_norm: Estimate

    def __str__(self) -> str:
        return listing(self)

    __repr__ = __str__


def clipping(
    source: Objective | GradientGram, max_norm: float, batch_size: int = 1, *, draws: int = 1000, seed: int = 0
) -> Clipping:
    """The rate and the bias of clipping batch gradients to a norm.

    Args:
        source: the loss, or its ``gradient_gram``.
        max_norm: C, as given to ``clip_grad_norm_``; infinity clips nothing.
        batch_size: B; 1 is clipping of every example, as differential privacy does, and exact for these examples.
        draws: of batches, without replacement, where B is above 1.
        seed: of the draws.

    Raises:
        DiagnosticsError: a threshold that is not positive, a batch size that is not from 1 to N, fewer than 30 draws
            or more than are held at once; a gradient that is zero; or as ``gradient_gram``.

    Source: arXiv 2006.15429.

    Example:
        >>> import torch
        >>> gradients = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
        >>> found = clipping(GradientGram(gradients @ gradients.T, {}, "by hand"), max_norm=2.5)
        >>> float(found.rate), round(float(found.kept), 6)  # (3, 4) becomes (1.5, 2)
        (0.5, 0.5625)
    """
    limit = real_number("max_norm is not positive", max_norm, "a number above 0", lambda value: value > 0)
    size = whole_number("batch_size is not a number of examples", batch_size, "at least 1", 1)
    draws = whole_number("draws is not a number of batches", draws, "at least 30", 30)
    gram = gram_matrix(source)
    count = len(gram)
    if size > count:
        raise DiagnosticsError("batch_size is larger than the number of examples", given=f"{size} of {count}")
    whole = mean_square_of(gram)
    if not whole:
        raise DiagnosticsError("the gradient is zero", expected="a gradient that clipping can turn")
    if size in (1, count):
        return _of_all(gram, limit, size, whole)
    if draws * count > MOST:
        raise DiagnosticsError(
            "draws is more batches than are held at once",
            given=f"{draws:,} from {count:,} examples",
            expected=f"at most {MOST // count:,}; the error falls with the root of their number",
        )
    return _of_draws(gram, limit, size, whole, draws, seed)


def _of_all(gram: Draws, limit: float, size: int, whole: float) -> Clipping:
    """Every batch there is."""
    count = len(gram)
    how = f"all {count} examples" if size == 1 else f"the one batch of {count}"
    rows = numpy.eye(count) if size == 1 else numpy.full((1, count), 1 / count)
    norms = numpy.sqrt(numpy.einsum("bi,ij,bj->b", rows, gram, rows)) if size > 1 else numpy.sqrt(gram.diagonal())
    change = ((_factors(norms, limit) - 1)[:, None] * rows).mean(0)
    bias, along = float(change @ gram @ change), float((change @ gram).mean()) / whole
    across = change - along / count
    return Clipping(
        rate=exact(float((norms > limit).mean()), how),
        kept=exact(1 + along, how),
        bias=exact(math.sqrt(max(bias, 0.0) / whole), how),
        sideways=exact(math.sqrt(max(float(across @ gram @ across), 0.0) / whole), how),
        median_norm=exact(float(numpy.median(norms)), how),
    )


def _of_draws(gram: Draws, limit: float, size: int, whole: float, draws: int, seed: int) -> Clipping:
    count, random = len(gram), random_stream(seed)
    how = f"{draws} batches of {size} from {count} examples"
    rows = numpy.zeros((draws, count))
    for row in rows:
        row[torch.randperm(count, generator=random)[:size].numpy()] = 1 / size
    inner = rows @ gram
    norms = numpy.sqrt((inner * rows).sum(1))
    factors = _factors(norms, limit)
    usual = float(numpy.median(factors))
    # Of each draw what it adds to the mean of c g_B − ∇L, and its inner products with all examples.
    rows = (factors - usual)[:, None] * rows + (usual - 1) / count
    inner = (factors - usual)[:, None] * inner + (usual - 1) * gram.mean(0)
    change = rows.mean(0)
    mine, along, toward = (inner * rows).sum(1), inner.mean(1) / whole, inner @ change
    bias = parts_of(mine, toward, float(change @ gram @ change), how).signal
    # The same with the part along ∇L taken out of every draw's change.
    middle = float(along.mean())
    across = parts_of(
        mine - along**2 * whole, toward - along * middle * whole, float(change @ gram @ change) - middle**2 * whole, how
    ).signal
    return Clipping(
        rate=_share(norms > limit, how),
        kept=mean((1 + along).tolist(), how),
        bias=_root(bias, whole, bool((norms > limit).any())),
        sideways=_root(across, whole, bool((norms > limit).any())),
        median_norm=_median(norms, how),
    )


def _factors(norms: Draws, limit: float) -> Draws:
    found: Draws = numpy.minimum(1.0, limit / numpy.maximum(norms, 1e-300))
    return found


def _share(hits: Draws, how: str) -> Estimate:
    """A share of draws; none, or all, of n leave room for 3/n (the rule of three)."""
    count, share = len(hits), float(hits.mean())
    if share in (0.0, 1.0):
        return Estimate(share, 3 / count, "bound", how)
    return Estimate(share, math.sqrt(share * (1 - share) / (count - 1)), "standard error", how)


def _root(square: Estimate, whole: float, clipped: bool) -> Estimate:
    """The length of what has this square, relative to ∇L."""
    if not square.interval()[0] > ROUNDING * whole:
        reason = "it is within its error of zero" if clipped else "no batch was clipped"
        return Estimate(math.nan, math.nan, "standard error", f"{reason}; {square.how}")
    value = math.sqrt(square.value / whole)
    return Estimate(value, square.error / (2 * value * whole), "standard error", square.how)


def _median(norms: Draws, how: str) -> Estimate:
    low, middle, high = (float(value) for value in numpy.quantile(norms, (0.25, 0.5, 0.75)))
    return Estimate(middle, (high - low) / 2, "spread", f"{how}; half the interquartile range")
