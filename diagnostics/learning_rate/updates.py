"""What one step did to a weight: how far, in how many directions, and as seen by what flows through it.

The entry-wise size ‖ΔW‖/‖W‖ tells how much of a weight a step replaces. What a layer does to its input is bounded by
the operator norm instead; from root mean square to root mean square it is σ_max(W) / √(fan_out/fan_in). Kept near 1
for weights, and at one size for updates, features change at the same pace at every width.

Rows are the first axis: fan_out is its length, fan_in all other axes together. So a convolution (c_o, c_i, k, k) counts
as its action on patches, (c_o, c_i k²), which bounds the RMS → RMS norm of the convolution as a whole. A lookup table
(tokens, features) is no such map: look at its rows.

Source: Yang et al., arXiv 2310.17813 (spectral condition); You et al., arXiv 1904.00962 (trust ratio).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.curvature.eigen.eigenpairs import top_eigenpairs
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact, listing
from diagnostics.learning_rate.rotation import as_rows, require_alike, row_norms

DENSE = 512
"""Up to so many rows or columns, all of WᵀW (or WWᵀ) is made and decomposed: as fast as an iteration, and exact."""

DENSE_PRODUCTS = 10**10
"""But not where making it takes more multiplications than these: half a second on one core."""

TOL = 5e-2
"""Relative residual of σ_max² for larger weights; σ_max itself is known to half of it, and mostly far better."""

SAFE = (1e-12, 1e12)
"""Largest entries between which float32 holds the squares."""


@dataclass(frozen=True, repr=False)
class UpdateStatistics:
    """One step of one weight. What is not defined is ``nan``, with the reason in ``how``.

    Attributes:
        relative: ‖ΔW‖/‖W‖, W before the step.
        relative_rows: root mean square of ‖Δw_i‖/‖w_i‖ over rows, with their standard deviation.
        trust_ratio: η‖W‖/‖ΔW‖: the factor by which LAMB would scale this step's direction.
        operator_norm_ratio: σ_max(W) / √(fan_out/fan_in), W after the step; None with fewer than two axes.
        update_norm_ratio: the same of ΔW; None likewise.
        update_stable_rank: ‖ΔW‖²/σ_max(ΔW)²; None likewise.
        drift_stable_rank: the same of W − W0; None likewise, or without ``initial``.
        distance: ‖W − W0‖/‖W0‖; None without ``initial``.
    """

    relative: Estimate
    relative_rows: Estimate
    trust_ratio: Estimate
    operator_norm_ratio: Estimate | None
    update_norm_ratio: Estimate | None
    update_stable_rank: Estimate | None
    drift_stable_rank: Estimate | None
    distance: Estimate | None

    def __str__(self) -> str:
        return listing(self)

    __repr__ = __str__


def update_statistics(
    before: Tensor, after: Tensor, *, initial: Tensor | None = None, lr: float = 1.0
) -> UpdateStatistics:
    """How far a step moved a weight, and how its map changed.

    Args:
        before: the weight before the step.
        after: of the same shape, after it.
        initial: the weight at the start of training, for the distance from there.
        lr: η of the step, for ``trust_ratio``; with 1 it is ‖W‖/‖ΔW‖.

    Raises:
        DiagnosticsError: shapes that differ, no entries, complex ones, or values that are not finite.

    Example:
        >>> before = torch.eye(4)
        >>> step = update_statistics(before, before + 0.1 * torch.ones(4, 4), lr=0.1)
        >>> print(step.relative, step.trust_ratio, step.update_norm_ratio, step.update_stable_rank)
        0.2 0.5 0.4 1
    """
    require_alike(before, after)
    if initial is not None:
        require_alike(initial, after)
    with torch.inference_mode(False), torch.no_grad():
        # In half precision a difference would be rounded once more.
        wide = torch.promote_types(after.dtype, torch.float32)
        before, after = before.detach().to(wide), after.detach().to(wide)
        delta = after - before
        sizes, changes = row_norms(before), row_norms(delta)
        size, change = _whole(sizes), _whole(changes)
        if not (math.isfinite(size) and math.isfinite(change)):
            raise DiagnosticsError("the weight is not finite", given=f"norm {size:g}, change {change:g}")
        matrix = before.ndim >= 2
        widest = largest_singular_value(delta) if matrix else None
        distance = drift_stable_rank = None
        if initial is not None:
            drift = after - initial.detach().to(after.device, wide)
            way, began = _whole(row_norms(drift)), _whole(row_norms(initial))
            distance = _ratio(way, began, "‖W−W0‖/‖W0‖", "the weight was all zero at the start")
            drift_stable_rank = _squared_share(way, largest_singular_value(drift)) if matrix else None
        return UpdateStatistics(
            relative=_ratio(change, size, "norm of the realised step over the norm before", "the weight was all zero"),
            relative_rows=_rms_of_ratios(changes, sizes),
            trust_ratio=_ratio(lr * size, change, f"η‖W‖/‖ΔW‖ with η = {lr:g}", "the step moved nothing"),
            operator_norm_ratio=operator_norm_ratio(after) if matrix else None,
            update_norm_ratio=None if widest is None else _over_fans(widest, delta),
            update_stable_rank=None if widest is None else _squared_share(change, widest),
            drift_stable_rank=drift_stable_rank,
            distance=distance,
        )


def operator_norm_ratio(weight: Tensor) -> Estimate:
    """σ_max(W) / √(fan_out/fan_in), the norm of the map from root mean square to root mean square.

    Example:
        >>> print(operator_norm_ratio(torch.eye(3, 12) * 2))
        4
    """
    return _over_fans(largest_singular_value(weight), weight)


def stable_rank(weight: Tensor) -> Estimate:
    """‖W‖²/σ_max(W)²: in how many directions a weight is about as large as in its largest; ``nan`` for zero.

    Example:
        >>> print(stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))))
        1.5
    """
    largest = largest_singular_value(weight)
    return _squared_share(_whole(row_norms(weight)), largest)


def largest_singular_value(weight: Tensor) -> Estimate:
    """σ_max of a weight as a matrix (rows, all other axes).

    Raises:
        DiagnosticsError: values that are not finite, or complex, or none at all.
    """
    require_alike(weight, weight)
    with torch.inference_mode(False), torch.no_grad():
        matrix = as_rows(weight)
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        # The smaller Gram matrix has the same largest eigenvalue.
        matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
        low, high = (float(end) for end in torch.aminmax(matrix))
        largest = max(-low, high)
        if not math.isfinite(largest):
            raise DiagnosticsError("the weight is not finite", given=f"entries from {low:g} to {high:g}")
        if largest == 0.0:
            return exact(0.0, "all zero")
        scale = 1.0 if SAFE[0] < largest < SAFE[1] else largest
        matrix = matrix if scale == 1.0 else matrix / scale
        rows, columns = matrix.shape
        if columns <= DENSE and rows * columns**2 <= DENSE_PRODUCTS:
            square = float(torch.linalg.eigvalsh((matrix.mT @ matrix).double())[-1])
            return exact(scale * math.sqrt(square), "all eigenvalues of the smaller Gram matrix")
        found = top_eigenpairs(_Gram(matrix), tol=TOL).estimate()
        below, above = math.sqrt(max(found.value - found.error, 0.0)), math.sqrt(found.value + found.error)
        return Estimate(scale * math.sqrt(found.value), scale * (above - below) / 2, "residual", f"of WᵀW: {found.how}")


class _Gram:
    """WᵀW of a tall matrix, by its products."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.shape = (matrix.shape[1], matrix.shape[1])
        self.dtype = matrix.dtype
        self.device = matrix.device

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        product: Tensor = self.matrix.mT @ (self.matrix @ vectors)
        return product


def _over_fans(norm: Estimate, weight: Tensor) -> Estimate:
    rows, columns = as_rows(weight).shape
    scale = math.sqrt(rows / columns)
    how = f"σ_max/√({rows}/{columns}), {norm.how}"
    return Estimate(norm.value / scale, norm.error / scale, norm.kind, how)


def _squared_share(norm: float, largest: Estimate) -> Estimate:
    if largest.value == 0.0:
        return Estimate(math.nan, math.nan, "exact", "of zero, which has no rank")
    rank = (norm / largest.value) ** 2
    return Estimate(rank, 2 * rank * largest.error / largest.value, largest.kind, f"‖·‖²/σ_max², {largest.how}")


def _ratio(above: float, below: float, how: str, otherwise: str) -> Estimate:
    return exact(above / below, how) if below > 0 else Estimate(math.nan, math.nan, "exact", otherwise)


def _rms_of_ratios(changes: Tensor, sizes: Tensor) -> Estimate:
    ratios = (changes / sizes)[sizes > 0]
    if not len(ratios):
        return Estimate(math.nan, math.nan, "spread", "every row was zero")
    how = f"rms of ‖Δw‖/‖w‖ over {len(ratios):,} rows"
    return Estimate(math.sqrt(float(ratios.square().mean())), float(ratios.std(correction=0)), "spread", how)


def _whole(norms: Tensor) -> float:
    return math.sqrt(float(norms.square().sum()))
