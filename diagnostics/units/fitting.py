"""Training from a point for a few steps, on copies: what the trainer would do, without the run being moved.

The step is that of a fresh Adam, or of a copy of the run's optimizer, with its moments or without. With ``centred`` the
outputs are counted from where they are at the start: what is fitted is the change of the outputs. A network that is
sure of its answers otherwise spends its first steps on unlearning them, and that is another thing than being unable to
learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.output_loss import Categorical, Elementwise, OutputLoss
from diagnostics.parameters import ParameterSpace
from diagnostics.stability.optimizer_twin import held_by, reached_optimizers, twin_of
from diagnostics.stability.rules import unwrap_optimizer
from diagnostics.stability.trial_step import global_hooks_aside, untouched

Trainer = tuple[Optimizer, list[nn.Parameter]]
Training = Callable[[Sequence[Tensor]], AbstractContextManager[Trainer]]
"""From where the selected parameters start to an optimizer over copies of them."""


@dataclass(frozen=True)
class Fit:
    """What some steps led to.

    Attributes:
        start: the loss before.
        loss: the loss after; ``nan`` where it ran away.
        accuracy: share of labels that are right after; None where there are no classes.
    """

    start: float
    loss: float
    accuracy: float | None


@contextmanager
def adam(values: Sequence[Tensor], lr: float) -> Iterator[Trainer]:
    """A fresh Adam over copies of the values."""
    leaves = [nn.Parameter(value.detach().clone()) for value in values]
    yield torch.optim.Adam(leaves, lr=lr), leaves


@contextmanager
def like(optimizer: Optimizer, space: ParameterSpace, moments: bool, values: Sequence[Tensor]) -> Iterator[Trainer]:
    """A copy of an optimizer over copies of the values, with its state or without."""
    inner = unwrap_optimizer(optimizer)
    with untouched(held_by(reached_optimizers(inner))), twin_of(inner) as (twin, places):
        if not moments:
            twin.state.clear()
        leaves = [
            places[id(tensor)] if id(tensor) in places else nn.Parameter(value.detach().clone())
            for tensor, value in zip(space.tensors, values, strict=True)
        ]
        with torch.no_grad():
            for leaf, value in zip(leaves, values, strict=True):
                leaf.requires_grad_(True).copy_(value)
        yield twin, leaves


@dataclass(frozen=True)
class Fitting:
    """How to train, the same for every network that is compared.

    Attributes:
        training: makes the optimizer.
        steps: how many it takes, batch after batch.
        centred: whether outputs are counted from where they are at the start.
        seen: whether outputs and loss can be told apart; without that, labels cannot be counted.
    """

    training: Training
    steps: int
    centred: bool
    seen: bool

    def fit(self, objective: Objective, values: Sequence[Tensor]) -> Fit:
        """Train from the values. To be called inside ``quiet``.

        Costs as many gradients as steps, one forward pass over all batches before and one after, and one more for what
        outputs are counted from.
        """
        bases = _outputs(objective, values) if self.centred else {}
        counted = [index for index, weight in enumerate(objective.weights) if weight]
        start, _ = self._measured(objective, values, bases)
        with self.training(values) as (optimizer, leaves), global_hooks_aside():
            for step in range(self.steps):
                index = counted[step % len(counted)]
                loss, gradients = _gradient(objective, index, leaves, bases.get(index))
                if not math.isfinite(loss):
                    return Fit(start, math.nan, None)
                for leaf, gradient in zip(leaves, gradients, strict=True):
                    leaf.grad = gradient
                _step(optimizer)
            end, accuracy = self._measured(objective, leaves, bases)
        return Fit(start, end if math.isfinite(end) else math.nan, accuracy)

    def _measured(
        self, objective: Objective, values: Sequence[Tensor], bases: dict[int, Tensor]
    ) -> tuple[float, float | None]:
        """The loss over all batches, and the share of labels that are right."""
        total, right, labels = 0.0, 0.0, 0.0
        for index, weight in enumerate(objective.weights):
            if not weight:
                continue
            with torch.no_grad():
                if not self.seen:
                    total += weight * float(objective.batch_loss(index, values))
                    continue
                at = objective.batch_outputs(index, values)
                base = bases.get(index)
                loss = at.loss if base is None else centred_loss(at, base, objective.batches[index])
                total += weight * float(loss)
                if isinstance(at.kind, Categorical):
                    hits, count = _right(at.kind, at.outputs if base is None else at.outputs - base)
                    right, labels = right + hits, labels + count
        return total, right / labels if labels else None


def _step(optimizer: Optimizer) -> None:
    try:
        optimizer.step()
    # Optimizers are anybody's code, and may need what a copy does not have.
    except Exception as problem:
        if isinstance(problem, torch.OutOfMemoryError):
            raise
        raise DiagnosticsError(
            "a copy of the optimizer cannot take a step by itself",
            given=f"{type(optimizer).__name__}: {type(problem).__name__}: {problem}",
            expected="an optimizer whose step() needs gradients only",
            attempt="optimizer=None, for a fresh Adam",
        ) from problem


def _outputs(objective: Objective, values: Sequence[Tensor]) -> dict[int, Tensor]:
    with torch.no_grad():
        return {
            index: objective.batch_outputs(index, values).outputs
            for index, weight in enumerate(objective.weights)
            if weight
        }


def _gradient(
    objective: Objective, index: int, leaves: Sequence[Tensor], base: Tensor | None
) -> tuple[float, Sequence[Tensor | None]]:
    """The loss of a batch and its gradients."""
    if base is None:
        whole, gradients = objective.batch_gradient(index, leaves)
        return float(whole.detach()), gradients

    def differentiated() -> tuple[Tensor, Sequence[Tensor | None]]:
        loss = centred_loss(objective.batch_outputs(index, leaves), base, objective.batches[index])
        return loss, torch.autograd.grad(loss, leaves, allow_unused=True)

    loss, parts = objective.placed(leaves, differentiated)
    return float(loss.detach()), parts


def centred_loss(at: OutputLoss, base: Tensor, batch: Any) -> Tensor:
    """The loss at the outputs less what they were at the start."""
    away = at.outputs - base
    if isinstance(at.kind, Categorical):
        wanted = at.kind.wanted if at.kind.wanted.ndim == 1 else at.kind.wanted.to(away)
        terms = nn.functional.cross_entropy(at.kind.rows(away), wanted, reduction="none")
        return (at.kind.weight * terms.where(at.kind.weight != 0, 0.0)).sum()
    assert isinstance(at.kind, Elementwise)
    labels = batch["labels"] if isinstance(batch, dict) else batch[1]
    # Models of the Hugging Face kind compare flattened outputs with flattened labels.
    loss: Tensor = at.kind.criterion(away.reshape(labels.shape) if isinstance(batch, dict) else away, labels)
    return loss


def _right(kind: Categorical, outputs: Tensor) -> tuple[float, float]:
    """How many labels that count are predicted, and how many there are."""
    counts = kind.weight > 0
    wanted = kind.wanted if kind.wanted.ndim == 1 else kind.wanted.argmax(dim=1)
    hits = (kind.rows(outputs).argmax(dim=1) == wanted) & counts
    return float(hits.sum()), float(counts.sum())
