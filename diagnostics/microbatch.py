"""Batches in pieces: the same loss, with the memory of one piece.

A mean over a batch is the mean over its pieces weighted by their loss terms; a sum is their sum. Which of the two a
loss is, and whether it comes apart at all, is seen from its value, at θ and at parameters moved at random: near a
perfect fit, or with a head of zeros, θ alone tells nothing. Batch normalisation in train mode does not come apart:
every example changes the statistics of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from diagnostics.batch_coupling import coupling_of
from diagnostics.errors import DiagnosticsError
from diagnostics.forms import Batch, PairForm
from diagnostics.loss_terms import as_module, is_stock, leading_dimension, reduction
from diagnostics.objective import Objective
from diagnostics.quiet import quiet

MOVES = (0.1, 1.0)
"""How far θ is moved, relative to its size: the second if the first shows no difference between a mean and a sum."""


def in_microbatches(objective: Objective, size: int) -> Objective:
    """The same function, its batches cut into pieces of at most ``size`` examples.

    Raises:
        DiagnosticsError: the loss would change, or is not finite.

    Example:
        >>> model, data = torch.nn.Linear(2, 1), (torch.randn(7, 2), torch.randn(7, 1))
        >>> whole = Objective(model, torch.nn.MSELoss(), data)
        >>> pieces = in_microbatches(whole, 3)
        >>> len(pieces.batches), abs(pieces.loss() - whole.loss()) < 1e-6
        (3, True)
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise DiagnosticsError("microbatch is not a number of examples", given=repr(size), expected="at least 1")
    _require_uncoupled(objective)
    values = objective.space.values()

    @cache
    def moved(distance: float) -> Sequence[Tensor]:
        return _moved(values, distance) if distance else values

    pieces: list[tuple[Batch, float, float, tuple[int, int]]] = []
    for index, (batch, weight, terms) in enumerate(
        zip(objective.batches, objective.weights, objective.terms, strict=True)
    ):
        cut = _chunks(batch, size)
        counts = [objective.count_terms(piece) for piece in cut]
        starts = [(index, size * place) for place in range(len(cut))]
        shares = [count / sum(counts) if sum(counts) else 0.0 for count in counts]
        if weight and len(cut) > 1:
            rebatched = objective.rebatched(cut, shares, counts, starts)
            shares = [1.0] * len(cut) if _is_sum(objective, index, rebatched, moved) else shares
        pieces += [
            (piece, weight * share, terms * count / sum(counts) if sum(counts) else 0.0, start)
            for piece, share, count, start in zip(cut, shares, counts, starts, strict=True)
        ]
    return objective.rebatched(*zip(*pieces, strict=True))


@dataclass(frozen=True)
class _Seen:
    """The loss of a batch at some parameters, what its pieces would make of it, and how far these may be off."""

    whole: float
    mean: float
    sum: float
    slack: float

    def agrees(self, summed: bool) -> bool:
        return abs((self.sum if summed else self.mean) - self.whole) <= self.slack


def _is_sum(objective: Objective, index: int, pieces: Objective, moved: Callable[[float], Sequence[Tensor]]) -> bool:
    """Whether the loss of a batch is the sum of its pieces' losses; it is their mean otherwise.

    Raises:
        DiagnosticsError: it is neither; or nothing tells which.
    """
    form = objective.form
    known = reduction(form.criterion) if isinstance(form, PairForm) else None
    possible = [False, True]
    # Losses of the user's own may say how they reduce and do something else.
    if isinstance(form, PairForm) and is_stock(as_module(form.criterion)):
        possible = [known == "sum"]
    for distance in (0.0, *MOVES):
        try:
            seen = _see(objective, index, pieces, moved(distance))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, DiagnosticsError | torch.OutOfMemoryError):
                raise
            if distance:
                continue
            raise DiagnosticsError(
                f"microbatch does not work on batch {index}: the loss of its pieces cannot be computed",
                given=f"{len(pieces.batches)} pieces; {type(error).__name__}: {error}",
                expected="a loss that is a mean or a sum over examples, each by itself",
                attempt="mode='eval' if batch normalisation is the reason, or smaller batches to begin with",
            ) from error
        if not math.isfinite(seen.whole):
            if distance:
                continue
            raise DiagnosticsError(
                f"the loss of batch {index} is not finite",
                given=f"{seen.whole:g}",
                expected="finite parameters and data",
            )
        possible = [summed for summed in possible if seen.agrees(summed)]
        if not possible:
            raise DiagnosticsError(
                f"microbatch would change the loss of batch {index}",
                given=f"{seen.whole:.9g} whole, {seen.mean:.9g} in {len(pieces.batches)} pieces"
                + (", at parameters moved at random" if distance else ""),
                expected="a loss that is a mean or a sum over examples, each by itself",
                attempt="mode='eval' if dropout is the reason, or smaller batches to begin with",
            )
        if distance and len(possible) == 1 and not seen.agrees(not possible[0]):
            return possible[0]
    if len(possible) > 1 and known is None:
        raise DiagnosticsError(
            f"microbatch cannot tell whether the loss of batch {index} is a mean or a sum over examples",
            given=f"{seen.whole:.9g} whole, {seen.mean:.9g} as a mean and {seen.sum:.9g} as a sum of its pieces",
            expected="a loss large enough to tell, or one of torch.nn, which says how it reduces",
            attempt="smaller batches to begin with",
        )
    return possible[0] if len(possible) == 1 else known == "sum"


def _see(objective: Objective, index: int, pieces: Objective, values: Sequence[Tensor]) -> _Seen:
    with quiet(objective.model, objective.mode), torch.no_grad():
        whole = objective.batch_loss(index, values)
        losses = [
            float(pieces.batch_loss(place, values)) if share else 0.0 for place, share in enumerate(pieces.weights)
        ]
    mean = sum(share * loss for share, loss in zip(pieces.weights, losses, strict=True))
    size = max(abs(float(whole)), sum(share * abs(loss) for share, loss in zip(pieces.weights, losses, strict=True)))
    return _Seen(float(whole), mean, sum(losses), slack_of(objective, whole, size))


def slack_of(objective: Objective, loss: Tensor, size: float) -> float:
    """How far a loss and what it is made of may be apart by rounding, where the parts are ``size`` together."""
    # Models in float64 may compute their loss in float32.
    eps: float = max(torch.finfo(dtype).eps for dtype in (loss.dtype, objective.space.dtype))
    return float(min(0.05, max(1e-6, 20 * eps**0.75)) * size + 100 * eps)


def _moved(values: Sequence[Tensor], distance: float) -> list[Tensor]:
    """θ with a random step, for each tensor relative to its size; those of zeros go to where others begin."""
    generator = torch.Generator().manual_seed(0)

    def step(value: Tensor) -> float:
        size = float(value.double().square().mean()) ** 0.5 if value.numel() else 0.0
        usual = (len(value) / max(1, value.numel())) ** 0.5 if value.ndim > 1 else 0.1
        return distance * size if size > 0.01 * usual else usual

    return [value + step(value) * torch.randn(value.shape, generator=generator).to(value) for value in values]


def _require_uncoupled(objective: Objective) -> None:
    if (coupling := coupling_of(objective)) is not None:
        raise DiagnosticsError(
            "microbatch would change the loss: batch normalisation couples the examples of a batch",
            given=coupling,
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
