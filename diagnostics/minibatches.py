"""Minibatches as a trainer draws them, each an Objective of its own: the trainer's loss on a few examples.

An example is a row along the leading dimension of a batch. The examples of all batches are one population; a minibatch
is a set of them, drawn without replacement, and each draw is independent of the others. Its loss is what the loss
function says of those rows put together, whatever its reduction: a mean over them, or their sum, as the trainer's step
has it. Batch normalisation in train mode takes its statistics from the minibatch, as it does in training.

Rows of batches whose shapes differ (sentences padded to other lengths) cannot be put together. Such a minibatch is in
several pieces, a mean weighted by their loss terms or a sum, and a loss that comes apart that way is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from diagnostics.arguments import require_objective, whole_number
from diagnostics.batch_coupling import require_statistics, require_uncoupled
from diagnostics.errors import DiagnosticsError
from diagnostics.forms import Batch, PairForm
from diagnostics.loss_terms import as_module, is_stock, leading_dimension, reduction
from diagnostics.microbatch import in_microbatches
from diagnostics.objective import Objective

REDRAWS = 1000
"""How often a minibatch without a single loss term is drawn again before that is called an error."""


class Minibatches:
    """All minibatches of so many examples of an Objective.

    Args:
        objective: whose examples, model and loss. Its batches are only where the examples lie: how it was cut into
            batches does not matter.
        size: examples in a minibatch.

    Attributes:
        examples: N, how many there are to draw from.
        size: as given.
        distinct: how many different minibatches there are.

    Raises:
        DiagnosticsError: a size that is not between 1 and N, batches without a leading dimension.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> objective = Objective(model, torch.nn.MSELoss(), (torch.randn(5, 2), torch.randn(5, 1)))
        >>> pairs = Minibatches(objective, 2)
        >>> pairs.examples, pairs.distinct, len(list(pairs.every()))
        (5, 10, 10)
        >>> pairs.draw(torch.Generator().manual_seed(0)).batches[0][0].shape
        torch.Size([2, 2])
    """

    def __init__(self, objective: Objective, size: int) -> None:
        require_objective(objective)
        size = whole_number("batch_size is not a number of examples", size, "at least 1", 1)
        self.objective = objective
        self.size = size
        self._pools = _pooled(objective.batches)
        self.examples = sum(pool.length for pool in self._pools)
        if size > self.examples:
            raise DiagnosticsError(
                "batch_size is larger than the number of examples in the objective",
                given=f"{size} of {self.examples}",
                expected="minibatches as large as the trainer's, drawn from more examples than they hold",
                attempt=f"more batches in the Objective, or batch_size={self.examples} if the trainer has no more data",
            )
        self.distinct = math.comb(self.examples, size)
        self._summed: bool | None = None
        self._seen = False

    @property
    def summed(self) -> bool:
        """Whether the loss adds its examples up, in place of averaging them.

        Raises:
            DiagnosticsError: a loss of the user's own does neither.
        """
        if self._summed is None:
            self._summed = _adds_up(self.objective)
        return self._summed

    @property
    def scale(self) -> float:
        """The s of E_B ℓ_B = s L: 1 for a loss that averages; a sum over a minibatch is a part of the sum over a batch.

        A loss of the user's own that cannot be told to do either is taken for an average.
        """
        try:
            if not self.summed:
                return 1.0
        except DiagnosticsError:
            return 1.0
        counted = [weight for weight in self.objective.weights if weight]
        return self.size / self.examples / (sum(counted) / len(counted))

    def draw(self, generator: torch.Generator) -> Objective:
        """One minibatch at random; those without a single loss term are drawn again.

        Raises:
            DiagnosticsError: none is found that has any.
        """
        for _ in range(REDRAWS):
            places = _some_of(self.examples, self.size, generator)
            minibatch = self.of(places)
            if sum(minibatch.terms) > 0:
                return minibatch
        raise DiagnosticsError(
            "minibatches of this size hold no loss terms",
            given=f"{REDRAWS} draws of {self.size} of {self.examples} examples",
            expected="labels that are not all ignored",
            attempt="a larger batch_size",
        )

    def every(self) -> Iterator[Objective]:
        """Each distinct minibatch once, without those that hold no loss term."""
        for places in combinations(range(self.examples), self.size):
            minibatch = self.of(places)
            if sum(minibatch.terms) > 0:
                yield minibatch

    def of(self, places: Sequence[int]) -> Objective:
        """The minibatch of these examples, counted from 0 over all batches.

        Raises:
            DiagnosticsError: a single example under batch normalisation in train mode, or one in several pieces.
        """
        pieces: list[Batch] = []
        first = 0
        for pool in self._pools:
            rows = sorted(place - first for place in places if first <= place < first + pool.length)
            if rows:
                pieces.append(pool.rows(rows))
            first += pool.length
        counts = [self.objective.count_terms(piece) for piece in pieces]
        if len(pieces) == 1:
            weights = [1.0]
        else:
            require_uncoupled(self.objective)
            total = sum(counts)
            weights = [1.0 if self.summed else count / total if total else 0.0 for count in counts]
        minibatch = self.objective.rebatched(pieces, weights, counts, [(index, 0) for index in range(len(pieces))])
        # One dictionary for all: a route that was checked on one minibatch is the same on the next.
        minibatch.verified_routes = self.objective.verified_routes
        if self.size == 1 and not self._seen:
            require_statistics(minibatch)
        self._seen = True
        return minibatch


@dataclass(frozen=True)
class _Pool:
    """Rows that can be put together: leaves that run along the examples, and others that are the same for all."""

    leaves: tuple[Any, ...]
    along: tuple[bool, ...]
    structure: Any
    length: int

    def rows(self, places: Sequence[int]) -> Batch:
        chosen = torch.tensor(places)
        return tree_unflatten(
            [
                leaf.index_select(0, chosen.to(leaf.device)) if along else leaf
                for leaf, along in zip(self.leaves, self.along, strict=True)
            ],
            self.structure,
        )

    def accepts(self, other: _Pool) -> bool:
        """Whether another batch's rows have the same form."""
        if (self.structure, self.along) != (other.structure, other.along):
            return False
        return all(
            (mine.shape[1:], mine.dtype) == (theirs.shape[1:], theirs.dtype) if along else _same(mine, theirs)
            for mine, theirs, along in zip(self.leaves, other.leaves, self.along, strict=True)
        )


def _pooled(batches: Sequence[Batch]) -> list[_Pool]:
    groups: list[list[_Pool]] = []
    for batch in batches:
        pool = _pool(batch)
        for group in groups:
            if group[0].accepts(pool):
                group.append(pool)
                break
        else:
            groups.append([pool])
    return [_joined(group) for group in groups]


def _pool(batch: Batch) -> _Pool:
    length = int(leading_dimension(batch))
    leaves, structure = tree_flatten(batch)
    along = tuple(isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == length for leaf in leaves)
    return _Pool(tuple(leaves), along, structure, length)


def _joined(group: list[_Pool]) -> _Pool:
    first = group[0]
    if len(group) == 1:
        return first
    leaves = tuple(
        torch.cat([pool.leaves[place] for pool in group]) if along else first.leaves[place]
        for place, along in enumerate(first.along)
    )
    return _Pool(leaves, first.along, first.structure, sum(pool.length for pool in group))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
    return type(one) is type(other) and bool(one == other)


def _some_of(examples: int, size: int, generator: torch.Generator) -> list[int]:
    """``size`` different numbers below ``examples``, without shuffling a large data set for a few of them."""
    if 4 * size > examples:
        return [int(place) for place in torch.randperm(examples, generator=generator)[:size]]
    chosen: dict[int, None] = {}
    while len(chosen) < size:
        chosen.setdefault(int(torch.randint(examples, (1,), generator=generator)))
    return list(chosen)


def _adds_up(objective: Objective) -> bool:
    form = objective.form
    if isinstance(form, PairForm) and is_stock(as_module(form.criterion)):
        return reduction(form.criterion) == "sum"
    for index, (batch, weight, terms) in enumerate(
        zip(objective.batches, objective.weights, objective.terms, strict=True)
    ):
        length = int(leading_dimension(batch))
        if weight and length > 1:
            alone = objective.rebatched([batch], [1.0], [terms], [(index, 0)])
            # Shares of a mean add up to 1; in a sum each piece counts in full.
            return sum(in_microbatches(alone, -(-length // 2)).weights) > 1.5
    return False
