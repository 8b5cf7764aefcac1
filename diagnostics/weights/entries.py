"""The numbers in a weight one by one: are they finite, how are they spread, and would half precision hold them.

Initialisation draws from a normal or a uniform distribution, training bends that. How far is the Wasserstein-1
distance between the entries, less their mean and over their standard deviation, and a normal or uniform distribution
of mean 0 and variance 1: how far, in standard deviations, a number has to be moved on average. It compares shapes
alone; the scale stands beside it. n draws of the very distribution are about 0.8/√n away from it by chance, and hardly
ever 1.5/√n.

The share of entries below each of 32 769 edges decides it, so nothing is sorted, and 0.0005 is the most that is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.estimate import Estimate
from diagnostics.weights.blocks import Done, nothing, pieces

BY_CHANCE = 1.5
"""Over √n: farther than this from their own distribution are about 1 % of samples."""

REACH = 8.0
BINS = 1 << 15

HALF = torch.finfo(torch.float16)
BFLOAT = torch.finfo(torch.bfloat16)
HALF_OVERFLOW = 65_520.0
"""From here on the nearest float16 is infinite."""
BFLOAT_OVERFLOW = (2 - 2**-8) * 2.0**127
HALF_VANISHES = 2.0**-25
"""Up to here the nearest float16 is zero."""
BFLOAT_VANISHES = 2.0**-134


@dataclass(frozen=True)
class Entries:
    """The entries of one weight; counts are of entries, shares are of the finite ones that are not zero.

    Attributes:
        count: how many there are.
        non_finite: NaN or infinite.
        zeros: exactly zero.
        largest: largest magnitude of the finite ones.
        mean: of the finite ones.
        rms: root of their mean square.
        half_vanishing: share that is zero in float16.
        half_subnormal: share that is zero or has fewer digits than usual in float16.
        half_overflow: how many are infinite in float16.
        bfloat_subnormal: share that is zero or has fewer digits in bfloat16.
        bfloat_overflow: how many are infinite in bfloat16.
    """

    count: int
    non_finite: int
    zeros: int
    largest: float
    mean: float
    rms: float
    half_vanishing: float
    half_subnormal: float
    half_overflow: int
    bfloat_subnormal: float
    bfloat_overflow: int


def read_entries(matrix: Tensor, done: Done = nothing) -> Entries:
    """Count and add up all entries, piece by piece in float64.

    Args:
        matrix: (rows, columns).
        done: told after each piece.

    Example:
        >>> found = read_entries(torch.tensor([[1e5, 1.0, 1e-9, 0.0]]))
        >>> found.half_overflow, found.bfloat_overflow, round(found.half_vanishing, 3), found.zeros
        (1, 0, 0.333, 1)
    """
    finite = zeros = vanishing = subnormal = overflow = tiny = huge = 0
    largest = total = norm = 0.0
    for piece in pieces(matrix, done):
        values = piece.to(torch.float64)
        sizes = values.abs()
        peak = float(sizes.max()) if len(sizes) else 0.0
        if not math.isfinite(peak):
            values = values[values.isfinite()]
            sizes = values.abs()
            peak = float(sizes.max()) if len(sizes) else 0.0
        finite += len(sizes)
        here = int(sizes.count_nonzero())
        zeros += len(sizes) - here
        if not peak:
            continue
        largest = max(largest, peak)
        total += float(values.sum()) if peak < 1e290 else math.nan
        norm = math.hypot(norm, peak * float(torch.linalg.vector_norm(sizes / peak)))
        empty = len(sizes) - here
        vanishing += int((sizes <= HALF_VANISHES).sum()) - empty
        subnormal += int((sizes < HALF.tiny).sum()) - empty
        if peak >= HALF_OVERFLOW:
            overflow += int((sizes >= HALF_OVERFLOW).sum())
            huge += int((sizes >= BFLOAT_OVERFLOW).sum())
        tiny += int((sizes < BFLOAT.tiny).sum()) - empty
    real = max(1, finite - zeros)
    return Entries(
        count=matrix.numel(),
        non_finite=matrix.numel() - finite,
        zeros=zeros,
        largest=largest,
        mean=total / finite if finite else math.nan,
        rms=norm / math.sqrt(finite) if finite else math.nan,
        half_vanishing=vanishing / real,
        half_subnormal=subnormal / real,
        half_overflow=overflow,
        bfloat_subnormal=tiny / real,
        bfloat_overflow=huge,
    )


@dataclass(frozen=True)
class ShapeDistances:
    """Wasserstein-1 distances, in standard deviations, of a weight's entries to two shapes of the same scale."""

    normal: Estimate
    uniform: Estimate


def shape_distances(matrix: Tensor, entries: Entries, done: Done = nothing) -> ShapeDistances:
    """How far the entries are from a normal and from a uniform distribution of their own mean and variance.

    Args:
        matrix: (rows, columns), all finite.
        entries: what ``read_entries`` found in it.
        done: told after each piece.

    Example:
        >>> weight = 3 + 0.1 * torch.rand(200, 200, generator=torch.Generator().manual_seed(0))
        >>> found = shape_distances(weight, read_entries(weight))
        >>> round(found.normal.value, 2), found.uniform.value < 0.005
        (0.15, True)
    """
    ratio = entries.mean / entries.rms if entries.rms else math.nan
    # Of nearly equal entries the differences are the rounding of the mean.
    if not abs(ratio) < 1 - 1e-9 or entries.count < 2:
        nothing_there = Estimate(math.nan, math.nan, "exact", "all entries are the same")
        return ShapeDistances(nothing_there, nothing_there)
    deviation = entries.rms * math.sqrt(1 - ratio**2)
    counts = torch.zeros(BINS + 2, dtype=torch.float64)
    beyond = 0.0
    for piece in pieces(matrix, done):
        scores = (piece.to(torch.float64) - entries.mean) / deviation
        beyond += float((scores.abs() - REACH).clamp_min_(0.0).sum())
        # In the first and last bin lies what is beyond the reach.
        places = ((scores + REACH) * (BINS / (2 * REACH)) + 1).floor_().clamp_(0, BINS + 1).to(torch.int64)
        counts += torch.bincount(places, minlength=BINS + 2)
    below = counts[:-1].cumsum(0) / entries.count
    edges = torch.linspace(-REACH, REACH, BINS + 1, dtype=torch.float64)
    width = 2 * REACH / BINS
    half = math.sqrt(3.0)
    shapes = {"normal": torch.special.ndtr(edges), "uniform": ((edges + half) / (2 * half)).clamp(0, 1)}
    found = {}
    for name, shape in shapes.items():
        gaps = below - shape
        distance = float((gaps[:-1] + gaps[1:]).abs().sum()) / 2 * width + beyond / entries.count
        how = f"against a {name} distribution of the same scale; by chance {0.8 / math.sqrt(entries.count):.1g}"
        found[name] = Estimate(distance, width, "residual", how)
    return ShapeDistances(**found)
