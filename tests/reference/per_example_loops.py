"""Slow twins of the gradients of single examples: one backward pass for each, on the live model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Contribution = Callable[[nn.Module, int], Tensor]
"""What the i-th example adds to N times the objective, differentiable in the live parameters."""


def gradients(model: nn.Module, contribution: Contribution, count: int, names: Sequence[str] | None = None) -> Tensor:
    """(N, P), the i-th row the gradient of what the i-th example adds."""
    chosen = [p for name, p in model.named_parameters() if p.requires_grad and (names is None or name in names)]
    rows = []
    for place in range(count):
        loss = contribution(model, place)
        parts = torch.autograd.grad(loss, chosen, allow_unused=True) if loss.requires_grad else [None] * len(chosen)
        filled = (torch.zeros_like(p) if part is None else part for p, part in zip(chosen, parts, strict=True))
        rows.append(torch.cat([(part.to_dense() if part.is_sparse else part).flatten() for part in filled]))
    return torch.stack(rows).double()


def losses(model: nn.Module, contribution: Contribution, count: int) -> Tensor:
    """(N,), the i-th what the i-th example adds."""
    with torch.no_grad():
        return torch.stack([contribution(model, place).double() for place in range(count)])
