"""Batches in pieces: the same loss, with the memory of one piece.

A mean over a batch is the mean over its pieces weighted by their loss terms; a sum is their sum. Which of the two a
loss is, and whether it comes apart at all, is seen from its value. Batch normalisation in train mode does not come
apart: every example changes the statistics of the others.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from diagnostics.errors import DiagnosticsError
from diagnostics.forms import Batch
from diagnostics.loss_terms import leading_dimension
from diagnostics.objective import Objective
from diagnostics.quiet import Mode


def in_microbatches(objective: Objective, size: int) -> Objective:
    """The same function, its batches cut into pieces of at most ``size`` examples.

    Raises:
        DiagnosticsError: the loss would change.

    Example:
        >>> model, data = nn.Linear(2, 1), (torch.randn(7, 2), torch.randn(7, 1))
        >>> whole = Objective(model, nn.MSELoss(), data)
        >>> pieces = in_microbatches(whole, 3)
        >>> len(pieces.batches), abs(pieces.loss() - whole.loss()) < 1e-6
        (3, True)
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise DiagnosticsError("microbatch is not a number of examples", given=repr(size), expected="at least 1")
    _require_uncoupled(objective.model, objective.mode)
    values = objective.space.values()
    pieces: list[tuple[Batch, float, float, tuple[int, int]]] = []
    whole = objective.batch_losses(values)
    for index, (batch, weight, terms) in enumerate(
        zip(objective.batches, objective.weights, objective.terms, strict=True)
    ):
        cut = _chunks(batch, size)
        counts = [objective.count_terms(piece) for piece in cut]
        starts = [(index, size * place) for place in range(len(cut))]
        shares = [count / sum(counts) if sum(counts) else 0.0 for count in counts]
        losses = objective.rebatched(cut, shares, counts, starts).batch_losses(values)
        mean = sum(share * loss for share, loss in zip(shares, losses, strict=True))
        # Models in float64 may compute their loss in float32.
        tolerance = max(1e-6, 100 * torch.finfo(objective.space.dtype).eps ** 0.75)
        if weight and len(cut) > 1 and not math.isclose(mean, whole[index], rel_tol=tolerance, abs_tol=tolerance):
            if not math.isclose(sum(losses), whole[index], rel_tol=tolerance, abs_tol=tolerance):
                raise DiagnosticsError(
                    f"microbatch={size} would change the loss of batch {index}",
                    given=f"{whole[index]:.9g} whole, {mean:.9g} in {len(cut)} pieces",
                    expected="a loss that is a mean or a sum over examples, each by itself",
                    attempt="mode='eval' if dropout is the reason, or smaller batches to begin with",
                )
            shares = [1.0] * len(cut)
        pieces += [
            (piece, weight * share, terms * count / sum(counts) if sum(counts) else 0.0, start)
            for piece, share, count, start in zip(cut, shares, counts, starts, strict=True)
        ]
    return objective.rebatched(*zip(*pieces, strict=True))


def _require_uncoupled(model: nn.Module, mode: Mode) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (mode == "train" or module.running_mean is None):
            raise DiagnosticsError(
                "microbatch would change the loss: batch normalisation couples the examples of a batch",
                given=f"module {name!r} ({type(module).__name__}) with the statistics of the batch itself",
                expected="a loss that is a mean over examples, each by itself",
                attempt="Objective(..., mode='eval'), or smaller batches to begin with",
            )


def _chunks(batch: Batch, size: int) -> list[Batch]:
    length = int(leading_dimension(batch))

    def piece(start: int) -> Any:
        def part(leaf: Any) -> Any:
            along = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == length
            return leaf[start : start + size] if along else leaf

        return tree_map(part, batch)

    return [piece(start) for start in range(0, length, size)]
