"""In how many directions features spread: five ranks that share a word and are five numbers.

With σ₁ ≥ σ₂ ≥ ... the singular values of the features, a row for each sample and a column for each unit:

* srank: the smallest k with Σ_{i≤k} σ_i ≥ (1 − δ) Σσ, δ = .01 (Kumar et al., arXiv 2010.14498);
* effective rank: exp H(σ/Σσ), H the entropy (Roy and Vetterli, EUSIPCO 2007);
* stable rank: ‖A‖_F²/‖A‖₂² = Σσ²/σ₁²;
* participation ratio: (Σσ²)²/Σσ⁴;
* approximate rank: the smallest k with Σ_{i≤k} σ_i² ≥ (1 − δ) Σσ² (Yang et al., arXiv 1909.12255).

Code in the field calls at least three of these "stable rank". They weigh small directions less and less in the order
srank, effective, participation, stable. All are of the features as they are; a mean that is far from zero is then a
direction of its own, and the largest. ``centred=True`` takes it away first.

Singular values are roots of the eigenvalues of the smaller Gram matrix, AᵀA or AAᵀ, in float64. What lies below about
10⁻⁷ of the largest is rounding, and counts as zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor

from diagnostics.arguments import real_number
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact, listing

CHUNK = 1 << 22
"""Numbers turned into float64 at a time."""

ROUNDING = 1e-9
"""A share that is reached up to this is reached: equal singular values come out unequal in their last digits."""


@dataclass(frozen=True, repr=False)
class FeatureRank:
    """Five ranks of one set of features; ``nan`` with the reason in ``how`` where there are none.

    Attributes:
        srank: directions that hold 99 % of the sum of singular values.
        effective_rank: exponential of the entropy of the singular values.
        stable_rank: squared Frobenius norm over squared spectral norm.
        participation_ratio: squared sum of the squared singular values over the sum of their squares.
        approximate_rank: directions that hold 99 % of the sum of squared singular values.
        spread: ‖A − 1ā‖/‖A‖, the share of the features that differs between samples; 0 where all are the same.
        samples: n, rows: examples, times tokens or pixels.
        units: d, columns: features or channels.
        centred: whether the mean over samples was taken away.
        singular_values: (min(n, d),), float64, largest first.
    """

    srank: Estimate
    effective_rank: Estimate
    stable_rank: Estimate
    participation_ratio: Estimate
    approximate_rank: Estimate
    spread: Estimate
    samples: int
    units: int
    centred: bool
    singular_values: Tensor = field(repr=False, compare=False)

    @property
    def most(self) -> int:
        """No rank can be above this: min(n, d), or with the mean taken away min(n − 1, d)."""
        return min(self.samples - self.centred, self.units)

    @property
    def limited_by_samples(self) -> bool:
        """Whether there are too few samples for the units to reach full rank."""
        return self.most < self.units

    def __str__(self) -> str:
        if not self.srank.determined:
            return f"undetermined ({self.srank.how})"
        return f"{_setting(self.samples, self.units, self.centred)}\n{listing(self)}"

    __repr__ = __str__


def feature_rank(
    features: Tensor | numpy.ndarray, *, centred: bool = False, delta: float = 0.01, axis: int | None = None
) -> FeatureRank:
    """The ranks of features, exact for the samples given.

    Args:
        features: one sample a row, (n, d). Tokens (N, T, d) are N·T samples of d units; images (N, C, H, W) are N·H·W
            samples of C units, as channels are what a convolution has for units. Flatten them yourself where every
            pixel shall be a unit: that is another rank.
        centred: whether to take the mean over samples away first.
        delta: δ of srank and approximate rank.
        axis: which axis holds the units; by default axis 1 of four and more axes, otherwise the last.

    Raises:
        DiagnosticsError: features with fewer than two axes, none at all, complex or not finite; δ out of range.

    Example:
        >>> rank = feature_rank(torch.eye(100))
        >>> print(rank.srank, rank.effective_rank, rank.stable_rank, rank.participation_ratio)
        99 100 100 100
    """
    delta = real_number("delta is out of range", delta, "a share such as 0.01", lambda share: 0 < share < 1)
    with torch.inference_mode(False), torch.no_grad():
        rows = _as_rows(features, axis)
        scale = _largest(rows)
        sigma, size, offset = _singular_values(rows, scale or 1.0, centred)
    samples, units = rows.shape
    setting = _setting(samples, units, centred)
    if samples - centred < units:
        setting += f"; too few samples for the units: no rank can exceed {samples - centred}"
    squares = sigma.square()
    # What is left of equal rows after centring is their rounding.
    if float(squares.sum()) <= (torch.finfo(rows.dtype).eps * size) ** 2:
        reason = "every sample has the same features" if size else "the features are all zero"
        nothing = Estimate(math.nan, math.nan, "exact", f"{reason}, and zero has no rank; {setting}")
        five = (nothing, nothing, nothing, nothing, nothing)
        spread = exact(0.0, f"{reason}; {setting}") if size and samples > 1 else nothing
        return FeatureRank(*five, spread, samples, units, centred, torch.zeros_like(sigma))
    share = sigma / sigma.sum()
    entropy = -float(torch.special.xlogy(share, share).sum())
    return FeatureRank(
        srank=exact(_reaching(sigma, delta), f"fewest directions with {1 - delta:.4g} of Σσ; {setting}"),
        effective_rank=exact(math.exp(entropy), f"exp of the entropy of σ/Σσ; {setting}"),
        stable_rank=exact(float(squares.sum() / squares[0]), f"‖A‖_F²/‖A‖₂²; {setting}"),
        participation_ratio=exact(float(squares.sum() ** 2 / squares.square().sum()), f"(Σσ²)²/Σσ⁴; {setting}"),
        approximate_rank=exact(_reaching(squares, delta), f"fewest directions with {1 - delta:.4g} of Σσ²; {setting}"),
        spread=exact(math.sqrt(max(0.0, 1.0 - (offset / size) ** 2)), f"‖A − 1ā‖/‖A‖; {setting}")
        if samples > 1
        else Estimate(math.nan, math.nan, "exact", f"one sample has no spread; {setting}"),
        samples=samples,
        units=units,
        centred=centred,
        singular_values=scale * sigma,
    )


def _setting(samples: int, units: int, centred: bool) -> str:
    return f"{samples:,} samples × {units:,} units, {'centred' if centred else 'uncentred'}"


def _as_rows(features: Tensor | numpy.ndarray, axis: int | None) -> Tensor:
    """(n, d), real, floating, with something in it."""
    if not isinstance(features, Tensor | numpy.ndarray):
        raise DiagnosticsError(
            "features are not a tensor", given=type(features).__name__, expected="a tensor (samples, units)"
        )
    tensor = torch.as_tensor(features).detach()
    given = f"shape {tuple(tensor.shape)}, {tensor.dtype}"
    if tensor.ndim < 2 or tensor.numel() == 0 or tensor.is_complex():
        raise DiagnosticsError(
            "features are not samples by units", given=given, expected="real numbers (samples, units), some of each"
        )
    if axis is None:
        axis = 1 if tensor.ndim >= 4 else -1
    if not (isinstance(axis, int) and -tensor.ndim <= axis < tensor.ndim):
        raise DiagnosticsError(
            "axis is none of the features'", given=f"{axis!r} of {given}", expected="such as 1 or -1"
        )
    tensor = tensor if tensor.is_floating_point() else tensor.double()
    return tensor.movedim(axis, -1).reshape(-1, tensor.shape[axis])


def _largest(rows: Tensor) -> float:
    low, high = (float(end) for end in torch.aminmax(rows))
    largest = max(-low, high)
    if not math.isfinite(largest):
        bad = int((~rows.isfinite()).sum())
        raise DiagnosticsError(
            "features are not finite",
            given=f"{bad:,} of {rows.numel():,} values are NaN or infinite",
            expected="finite features",
        )
    return largest


def _singular_values(rows: Tensor, scale: float, centred: bool) -> tuple[Tensor, float, float]:
    """Of rows / scale: largest first, float64, on the CPU; and the Frobenius norms before centring, and of 1ā."""
    samples, units = rows.shape
    mean = torch.zeros(units, dtype=torch.float64, device=rows.device)
    for part in rows.split(max(1, CHUNK // units)):
        mean += (part.double() / scale).sum(0) / samples
    offset = math.sqrt(samples) * float(torch.linalg.vector_norm(mean))
    away = mean if centred else torch.zeros_like(mean)
    # The smaller Gram matrix: blocks of rows add up to AᵀA, blocks of columns to AAᵀ.
    tall, away = (rows, away[None]) if samples >= units else (rows.mT, away[:, None])
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=rows.device)
    squares = 0.0
    for start in range(0, len(tall), step := max(1, CHUNK // tall.shape[1])):
        # Squares of very large or very small features would leave the range even of float64.
        part = tall[start : start + step].double() / scale
        squares += float(part.square().sum())
        part = part - (away if samples >= units else away[start : start + step])
        gram += part.mT @ part
    values = torch.linalg.eigvalsh(gram.cpu()).flip(0)
    floor = len(values) * torch.finfo(torch.float64).eps * values[0]
    return values.where(values > floor, 0.0).sqrt(), math.sqrt(squares), offset


def _reaching(parts: Tensor, delta: float) -> int:
    """The smallest number of leading parts that hold a share 1 − δ of the sum."""
    wanted = (1.0 - delta - ROUNDING) * parts.sum()
    return int((parts.cumsum(0) < wanted).sum()) + 1
