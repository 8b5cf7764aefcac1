"""Norms of the gradients of single examples, without the gradients where that costs less.

With g_i = Σ_t l_it r_itᵀ, ⟨g_i, g_j⟩ = Σ_ts (l_it · l_js)(r_it · r_js): T² (d_out + d_in) products in place of
T d_out d_in. In an embedding only rows of equal ids meet. The contributions of a parameter that is used several times
are summed before any norm is taken: ‖a + b‖² has 2⟨a, b⟩.

Source: Goodfellow, arXiv 1510.01799; ghost norms, Li et al., arXiv 2110.05679; summing rows that share an id,
arXiv 2311.11822.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from diagnostics.recorded.contributions import (
    LARGE,
    PIECE,
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

BUILT = 26
"""Products that take as long as it takes to write and read again one number of a gradient; seen on the CPU."""

SHORTEST_STRIP = 128
"""Tokens whose products with all that follow are taken at once: with fewer, they would take as long as with these."""


def is_cheaper_by_tokens(contributions: Sequence[Contribution], size: int, others: int = 1) -> bool:
    """Whether inner products over tokens cost less than the gradients would.

    Args:
        contributions: of one parameter.
        size: of the parameter.
        others: with how many examples each is multiplied: itself alone for a norm.
    """
    if not _has_tokens(contributions):
        return False
    tokens, made, sides = _extent(contributions, size)
    return others * tokens**2 * sides <= made + others * size


def _has_tokens(contributions: Sequence[Contribution]) -> bool:
    """Whether inner products over tokens are known."""
    several = len(contributions) > 1
    return not any(
        isinstance(one, Direct) or (several and not isinstance(one, Lookup) and one.extent()[0] > 1)
        for one in contributions
    )


def _extent(contributions: Sequence[Contribution], size: int) -> tuple[int, int, int]:
    """Tokens, products for one gradient, and products for the inner product of two tokens."""
    tokens = made = sides = 0
    for one in contributions:
        if isinstance(one, Lookup):
            tokens, made, sides = tokens + one.ids.shape[1], made + size, max(sides, one.values.shape[2] + 1)
        elif not isinstance(one, Direct):
            groups, length, height, width = one.extent()
            tokens, made, sides = tokens + length, made + length * size, max(sides, groups * (height + width))
    return tokens, made, sides


def is_built(contributions: Sequence[Contribution], size: int) -> bool:
    """Whether gradients are built for their norms, where their sum is wanted as well and is then had with them."""
    if len(contributions) == 1 and isinstance(contributions[0], Lookup):
        return False
    if not _has_tokens(contributions):
        return True
    tokens, _, sides = _extent(contributions, size)
    return tokens**2 * sides > BUILT * size


def squared_norms(contributions: Sequence[Contribution], size: int) -> Tensor:
    """‖g_i‖², (N,), in float64."""
    one = contributions[0]
    if is_cheaper_by_tokens(contributions, size) or (len(contributions) == 1 and isinstance(one, Lookup)):
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
    one = contributions[0]
    if len(contributions) == 1 and isinstance(one, Outer | Convolved) and size >= LARGE and one.extent()[0] == 1:
        if isinstance(one, Outer):
            return _one_by_one([one])
        if not one.is_cheaper_by_groups():
            norms, total = _one_by_one(one.pieces())
            return norms, one.in_order(total)
    if len(contributions) == 1 and isinstance(one, Direct):
        rows = one.rows(size)
        return squares_of(rows), rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32))
    squares: list[Tensor] = []
    summed: Tensor | None = None
    for block in in_blocks(contributions, size):
        squares.append(squares_of(block))
        precise = torch.promote_types(block.dtype, torch.float32)
        added = block[0] if len(block) == 1 else block.sum(0, dtype=precise)
        summed = added.to(precise, copy=True) if summed is None else summed.add_(added)
    assert summed is not None
    return squares[0] if len(squares) == 1 else torch.cat(squares), in_order(contributions, summed)


def _one_by_one(parts: Iterable[Outer]) -> tuple[Tensor, Tensor]:
    """``norms_and_sum`` of large gradients, each written over the one before: memory that the cache holds."""
    made = total = pieces = torch.empty(0)
    norms: list[Tensor] = []
    for part in parts:
        if not norms:
            _, _, height, width = part.extent()
            made = part.left.new_empty(height, width)
            pieces = made.view(-1, PIECE) if made.numel() % PIECE == 0 else made
            total = torch.zeros_like(made, dtype=torch.promote_types(made.dtype, torch.float32))
        for left, right in zip(part.left.squeeze(1).mT.unbind(), part.right.squeeze(1).unbind(), strict=True):
            torch.mm(left, right, out=made)
            norms.append(torch.linalg.vector_norm(pieces, dim=1, dtype=total.dtype))
            total.add_(made)
    return torch.stack(norms).double().square().sum(1), total.flatten()


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
    return _token_norms(one)


def _token_norms(one: Outer) -> Tensor:
    """Every pair of tokens once, in strips: what lies off the diagonal counts twice."""
    tokens = one.left.shape[2]
    step = max(SHORTEST_STRIP, -(-tokens // 4))
    total = torch.zeros(len(one.left), dtype=torch.float64, device=one.left.device)
    for at in range(0, tokens, step):
        left, right = (side[:, :, at : at + step] @ side[:, :, at:].mT for side in (one.left, one.right))
        products = left.mul_(right)
        products[..., step:].mul_(2.0)
        total += products.flatten(1).sum(1, dtype=torch.float64)
    return total


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
