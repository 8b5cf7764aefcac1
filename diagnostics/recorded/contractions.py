"""Norms of the gradients of single examples, without the gradients where that costs less.

With g_i = Σ_t l_it r_itᵀ, ⟨g_i, g_j⟩ = Σ_ts (l_it · l_js)(r_it · r_js): T² (d_out + d_in) products in place of
T d_out d_in. In an embedding only rows of equal ids meet. The contributions of a parameter that is used several times
are summed before any norm is taken: ‖a + b‖² has 2⟨a, b⟩.

Source: Goodfellow, arXiv 1510.01799; ghost norms, Li et al., arXiv 2110.05679; summing rows that share an id,
arXiv 2311.11822.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from diagnostics.recorded.contributions import (
    Contribution,
    Convolved,
    Direct,
    Lookup,
    Outer,
    in_blocks,
    in_order,
    squares_of,
    total_of,
)


def is_cheaper_by_tokens(contributions: Sequence[Contribution], size: int, others: int = 1) -> bool:
    """Whether inner products over tokens cost less than the gradients would.

    Args:
        contributions: of one parameter.
        size: of the parameter.
        others: with how many examples each is multiplied: itself alone for a norm.
    """
    tokens = made = sides = 0
    for one in contributions:
        if isinstance(one, Direct):
            return False
        if isinstance(one, Lookup):
            tokens, made, sides = tokens + one.ids.shape[1], made + size, max(sides, one.values.shape[2] + 1)
        else:
            groups, length, height, width = one.extent()
            if groups > 1 and len(contributions) > 1:
                return False
            tokens, made, sides = tokens + length, made + length * size, max(sides, groups * (height + width))
    return others * tokens**2 * sides <= made + others * size


def is_built(contributions: Sequence[Contribution], size: int) -> bool:
    """Whether norms of gradients are taken of the gradients themselves."""
    if len(contributions) == 1 and isinstance(contributions[0], Lookup):
        return False
    return not is_cheaper_by_tokens(contributions, size)


def squared_norms(contributions: Sequence[Contribution], size: int) -> Tensor:
    """‖g_i‖², (N,), in float64."""
    if not is_built(contributions, size):
        alone = len(contributions) == 1
        contributions = [
            (one.jumbled() if alone else one.outer()) if isinstance(one, Convolved) else one for one in contributions
        ]
        total = torch.stack([_own(one) for one in contributions]).sum(0)
        for one, other in combinations(contributions, 2):
            total = total + 2.0 * between_own(one, other)
        return total.clamp_min(0.0)
    return torch.cat([squares_of(block) for block in in_blocks(contributions, size)])


def norms_and_sum(contributions: Sequence[Contribution], size: int) -> tuple[Tensor, Tensor]:
    """‖g_i‖², (N,), in float64, and Σ g_i, (P,), of gradients that are built."""
    norms: list[Tensor] = []
    total: Tensor | None = None
    for block in in_blocks(contributions, size):
        norms.append(squares_of(block))
        total = block.sum(0) if total is None else total.double().add_(block.sum(0))
    assert total is not None
    return norms[0] if len(norms) == 1 else torch.cat(norms), in_order(contributions, total)


def dots(contributions: Sequence[Contribution], vector: Tensor) -> Tensor:
    """⟨g_i, v⟩, (N,), in float64."""
    return torch.stack([one.dots(vector) for one in contributions]).sum(0)


def _own(one: Contribution) -> Tensor:
    if isinstance(one, Lookup):
        return _lookup_norms(one)
    assert isinstance(one, Outer)
    if one.left.shape[2] == 1:
        left, right = (squares_of(side.flatten(0, 2)) for side in (one.left, one.right))
        return (left * right).view(one.left.shape[:2]).sum(1)
    return between_own(one, one)


def between_own(one: Contribution, other: Contribution) -> Tensor:
    """⟨a_i, b_i⟩ of each example, (N,)."""
    if isinstance(one, Outer) and isinstance(other, Outer):
        return total_of(one.left @ other.left.mT, one.right @ other.right.mT)
    if isinstance(one, Lookup) and isinstance(other, Lookup):
        same = (one.ids[:, :, None] == other.ids[:, None, :]).to(one.values)
        return total_of(same, one.values @ other.values.mT)
    if isinstance(one, Lookup):
        one, other = other, one
    assert isinstance(one, Outer)
    assert isinstance(other, Lookup)
    left, right = one.left.squeeze(1), one.right.squeeze(1)
    chosen = left.gather(2, other.ids[:, None, :].expand(-1, left.shape[1], -1))
    return total_of(chosen, right @ other.values.mT)


def _lookup_norms(one: Lookup) -> Tensor:
    """Rows of equal ids are summed first: no product between tokens at all."""
    count, _, width = one.values.shape
    offset = torch.arange(count, device=one.ids.device)[:, None] * one.table
    keys, places = torch.unique((one.ids + offset).flatten(), return_inverse=True)
    summed = one.values.new_zeros(len(keys), width).index_add_(0, places, one.values.flatten(0, 1))
    norms = torch.zeros(count, dtype=torch.float64, device=summed.device)
    return norms.index_add_(0, keys // one.table, squares_of(summed))
