"""Squares of single entries of the gradients of examples: norms in a diagonal metric, and second moments by parameter.

With g = l rᵀ, as a linear layer has it without tokens, g_ab² = l_a² r_b²: both are matrix products of squares, and no
gradient is built. Gradients that are sums over tokens are built, some examples at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diagnostics.recorded.contributions import Contribution, Outer, in_blocks, in_order


def squares_in(contributions: Sequence[Contribution], size: int, metric: Tensor) -> Tensor:
    """Σ_j d_j g_ij², (N,), in float64.

    Args:
        contributions: of one parameter.
        size: of the parameter.
        metric: d, (size,), in float64.
    """
    if (sides := _single(contributions)) is not None:
        left, right = sides
        return ((left @ metric.view(left.shape[1], right.shape[1])) * right).sum(1)
    return torch.cat(
        [in_order(contributions, block).double().square() @ metric for block in in_blocks(contributions, size)]
    )


def sum_of_squares(contributions: Sequence[Contribution], size: int) -> Tensor:
    """Σ_i g_ij² over the examples, (size,), in float64."""
    if (sides := _single(contributions)) is not None:
        left, right = sides
        return (left.T @ right).flatten()
    total = torch.zeros(size, dtype=torch.float64, device=_device(contributions))
    for block in in_blocks(contributions, size):
        total += block.double().square().sum(0)
    return in_order(contributions, total)


def _single(contributions: Sequence[Contribution]) -> tuple[Tensor, Tensor] | None:
    """l² and r², where a gradient is one outer product."""
    if len(contributions) != 1 or not isinstance(contributions[0], Outer):
        return None
    groups, tokens, _, _ = contributions[0].extent()
    if groups != 1 or tokens != 1:
        return None
    left, right = (side.flatten(0, 2).double().square() for side in (contributions[0].left, contributions[0].right))
    return left, right


def _device(contributions: Sequence[Contribution]) -> torch.device:
    return next(value.device for value in vars(contributions[0]).values() if isinstance(value, Tensor))
