"""Which part of a batch is one example, and what share of the batch's loss it is.

An example is a row along the leading dimension of a batch: for a language model a sequence, not a token. Its gradient
is scaled such that the mean over all examples is ∇L: g_i = N w_b s_i ∇ℓ_i, with ℓ_i the loss of the example alone,
w_b the weight of its batch, and s_i its share there: its part of the loss terms, or 1 where the loss is a sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from diagnostics.batch_coupling import coupling_of
from diagnostics.errors import DiagnosticsError
from diagnostics.forms import Batch, PairForm
from diagnostics.loss_terms import as_module, is_stock, leading_dimension, reduction
from diagnostics.objective import Objective
from diagnostics.recorded.contributions import squares_of
from diagnostics.recorded.outputs import OutputForm

AGREEMENT = 1e-3
"""How far gradients that ought to be equal may be apart, relative to their size: rounding in float32 is far below, a
mean taken for a sum or batch statistics far above."""


def agreement(objective: Objective) -> float:
    """The same, for the precision of the model."""
    return max(AGREEMENT, 8.0 * torch.finfo(objective.space.dtype).eps)


def rows(batch: Batch, places: Sequence[int]) -> Batch:
    """Some examples of a batch."""
    length = int(leading_dimension(batch))
    chosen = torch.tensor(places)

    def part(leaf: object) -> object:
        return leaf.index_select(0, chosen.to(leaf.device)) if runs_over_examples(leaf, length) else leaf

    return tree_map(part, batch)


def runs_over_examples(leaf: object, length: int) -> TypeGuard[Tensor]:
    """Whether part of a batch of so many examples holds something of each."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == length


def some(objective: Objective, index: int, groups: Sequence[Sequence[int]]) -> Objective:
    """An Objective with one batch for each group of examples of a batch."""
    pieces = [rows(objective.batches[index], places) for places in groups]
    counts = [objective.count_terms(piece) for piece in pieces]
    return objective.rebatched(pieces, [1.0] * len(pieces), counts, [(index, places[0]) for places in groups])


def mean_gradient(objective: Objective, chosen: Tensor, summed: bool) -> Tensor:
    """The mean of g_i over some examples, (P,).

    Args:
        objective: the whole.
        chosen: marks (N,), over the examples of all batches in order.
        summed: whether the loss adds its examples up.
    """
    pieces, weights, terms, origins = [], [], [], []
    first = 0
    for index, (batch, weight, whole) in enumerate(
        zip(objective.batches, objective.weights, objective.terms, strict=True)
    ):
        length = int(leading_dimension(batch))
        places = chosen[first : first + length].nonzero().flatten().tolist()
        first += length
        if not (places and weight):
            continue
        piece = rows(batch, places)
        held = objective.count_terms(piece)
        share = float(held > 0) if summed else held / whole
        if not share:
            continue
        pieces.append(piece)
        terms.append(held)
        weights.append(weight * share * len(chosen) / int(chosen.sum()))
        origins.append((index, places[0]))
    if not pieces:
        # Chosen examples without a loss term have no gradient.
        return torch.zeros(objective.num_parameters, dtype=objective.space.dtype, device=objective.space.device)
    return objective.rebatched(pieces, weights, terms, origins).gradient()


def lengths(objective: Objective) -> list[int]:
    """How many examples each batch holds."""
    return [int(leading_dimension(batch)) for batch in objective.batches]


def known_sum(objective: Objective) -> bool | None:
    """Whether a loss adds its examples up in place of averaging them; None where only its values can tell."""
    form = objective.form
    if isinstance(form, OutputForm):
        return True
    if isinstance(form, PairForm) and is_stock(as_module(form.criterion)):
        return reduction(form.criterion) == "sum"
    return None


def shares(counts: Sequence[float], summed: bool) -> list[float]:
    """s_i of each example."""
    total = sum(counts)
    return [0.0 if not count else 1.0 if summed else count / total for count in counts]


def adds_up(objective: Objective, whole: Tensor, parts: Sequence[Tensor], counts: Sequence[float], what: str) -> bool:
    """Whether a gradient (P,) is the sum of its examples' gradients; it is their weighted mean otherwise.

    Raises:
        DiagnosticsError: it is neither, or not finite.
    """
    if not all(math.isfinite(square(part)) for part in (whole, *parts)):
        raise DiagnosticsError("the gradient of an example is not finite", expected="finite parameters and data")
    known = known_sum(objective)
    for summed in (False, True) if known is None else (known,):
        weights = shares(counts, summed)
        size, off = 0.0, whole
        for weight, part in zip(weights, parts, strict=True):
            size += weight * square(part) ** 0.5
            off = off - weight * part
        if square(off) <= (agreement(objective) * size) ** 2:
            return summed
    raise DiagnosticsError(
        "the gradient of a batch is not the mean of its examples' gradients",
        given=f"{what}, in {objective.mode} mode",
        expected="a loss that is a mean or a sum over examples, each by itself",
        attempt=remedy(objective),
    )


def remedy(objective: Objective) -> str:
    """What to try where a batch is not made of its examples."""
    dropout = "" if objective.mode == "eval" else "mode='eval' if dropout is the reason; "
    return (
        f"{dropout}Objective.from_loss(..., terms=) to say how much each batch counts, where labels are ignored or "
        "examples weigh differently; a loss between examples, as contrastive ones, has no gradients of single examples"
    )


def square(part: Tensor) -> float:
    """‖part‖², in float64."""
    return float(squares_of(part.reshape(1, -1)))


def require_uncoupled(objective: Objective) -> None:
    """Refuse a model whose normalisation mixes the examples of a batch.

    Raises:
        DiagnosticsError: there is batch normalisation that takes its statistics from the batch.
    """
    if (coupling := coupling_of(objective)) is not None:
        raise DiagnosticsError(
            "examples have no gradients of their own: batch normalisation couples the examples of a batch",
            given=coupling,
            expected="a loss that is a mean over examples, each by itself",
            attempt="Objective(..., mode='eval')",
        )
