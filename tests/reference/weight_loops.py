"""Slow twins for single weights: dense decompositions, all pairs of rows, sorted entries, and conversions by torch."""

from __future__ import annotations

import math

import numpy
import torch
from scipy.special import ndtri
from torch import Tensor


def ranks(weight: Tensor) -> tuple[float, float, float, float]:
    """Spectral norm, condition number, stable and effective rank from a decomposition of the whole matrix."""
    values = torch.linalg.svdvals(weight.double().flatten(1)).tolist()
    shares = [value / sum(values) for value in values if value > 0]
    entropy = -sum(share * math.log(share) for share in shares)
    stable = sum(value**2 for value in values) / values[0] ** 2
    return values[0], values[0] / values[-1], stable, math.exp(entropy)


def repeated_rows(weight: Tensor, alike: float = 0.9999) -> int:
    """Rows beyond the first of each set of alike ones, by comparing all pairs and painting sets in one colour."""
    rows = weight.double().flatten(1)
    colours = list(range(len(rows)))
    for i in range(len(rows)):
        for j in range(i):
            lengths = float(rows[i].norm() * rows[j].norm())
            if lengths > 0 and abs(float(rows[i] @ rows[j])) >= alike * lengths:
                old, new = colours[i], colours[j]
                colours = [new if colour == old else colour for colour in colours]
    return len(rows) - len(set(colours))


def distance_to_shape(weight: Tensor, shape: str, points: int = 200) -> float:
    """Wasserstein-1 from sorted scores: every score against many quantiles of its own slice of the shape."""
    entries = numpy.sort(weight.double().flatten().numpy())
    scores = (entries - entries.mean()) / entries.std()
    grid = (numpy.arange(len(scores) * points) + 0.5) / (len(scores) * points)
    quantiles = ndtri(grid) if shape == "normal" else math.sqrt(3.0) * (2 * grid - 1)
    return float(numpy.abs(numpy.repeat(scores, points) - quantiles).mean())


def in_half(weight: Tensor, dtype: torch.dtype) -> tuple[float, float, int]:
    """Shares of the entries that are not zero which vanish, and which vanish or lose digits, and how many overflow."""
    there = weight.double().flatten()
    there = there[there.isfinite() & (there != 0)]
    converted = there.to(dtype)
    count = max(1, len(there))
    lost = int((there.abs() < torch.finfo(dtype).tiny).sum())
    return int((converted == 0).sum()) / count, lost / count, int(converted.isinf().sum())


def near_sets(points: numpy.ndarray, numbers: list[int], reach: float) -> set[frozenset[int]]:
    """Sets of numbers joined by steps of at most ``reach`` in every coordinate; those alone are left out."""
    sets = {number: frozenset([number]) for number in numbers}
    for i, one in enumerate(points):
        for j, other in enumerate(points[:i]):
            if max(abs(float(a) - float(b)) for a, b in zip(one, other, strict=True)) <= reach:
                joined = sets[numbers[i]] | sets[numbers[j]]
                sets |= dict.fromkeys(joined, joined)
    return {joined for joined in sets.values() if len(joined) > 1}
