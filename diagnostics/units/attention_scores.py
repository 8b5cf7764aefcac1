"""The scores of an attention, worked out again for some of its queries, in float32 or better."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

MASKED = -5e3
"""Added to a score, this or less is a mask: -inf, the smallest number of a dtype, or the -10,000 of older models."""

Scores = Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]
"""From places of queries (n,): the logits as they enter the softmax, (B, H, n, S); which keys are allowed, of the same
shape; and the products q·k before their scale, where that is known."""


def fused(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> tuple[Scores, float]:
    """Scores of ``F.scaled_dot_product_attention``, and the scale of its products.

    Args:
        query: (..., H, T, E).
        key: (..., G, S, E); H / G heads in a row share one of them.
        mask: boolean, True where a key is allowed, or added to the scores; may be broadcast to (..., H, T, S).
        causal: whether key s is allowed for queries from s on.
        scale: 1/√E where it is None.
    """
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    heads, groups = query.shape[-3], key.shape[-3]
    kind = torch.promote_types(query.dtype, torch.float32)
    query, key = query.detach(), key.detach()
    shape = (*query.shape[:-1], key.shape[-2])

    def scores(queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = (*shape[:-2], len(queries), shape[-1])
        chosen = query.index_select(-2, queries).to(kind)
        # The query heads of a group stand below one another, which spares a copy of its keys for each.
        grouped = chosen.reshape(*shape[:-3], groups, heads // groups * len(queries), query.shape[-1])
        products = (grouped @ key.to(kind).mT).reshape(size)
        logits, allowed = products * factor, torch.ones_like(products, dtype=torch.bool)
        if mask is not None:
            some = mask.detach().expand(shape).index_select(-2, queries)
            allowed = some if some.dtype == torch.bool else ~(some <= MASKED)
            logits = logits if some.dtype == torch.bool else logits + some
        if causal:
            allowed = allowed & (torch.arange(shape[-1], device=queries.device) <= queries[:, None])
        flat = (-1, *size[-3:])
        return logits.reshape(flat), allowed.reshape(flat), products.reshape(flat)

    return scores, factor


def written_out(logits: Tensor) -> Scores:
    """Scores (B, H, T, S) that the model made itself, masks and biases included."""
    kind = torch.promote_types(logits.dtype, torch.float32)

    def scores(queries: Tensor) -> tuple[Tensor, Tensor, None]:
        some = logits.index_select(-2, queries).to(kind)
        # NaN is no mask: it is for whoever looks to complain.
        return some, ~(some <= MASKED), None

    return scores
