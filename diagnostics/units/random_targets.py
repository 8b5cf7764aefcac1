"""Targets that have nothing to do with the inputs, for the objective's own loss.

* cross-entropy: labels drawn evenly from all classes; what is ignored stays ignored;
* squared error and its robust relatives: normal targets, as spread as the objective's own, output by output;
* binary cross-entropy: fair bits.

Two losses give the scale: that of the best prediction that is the same for every example (nothing learned), and that of
a perfect one, which is above zero with smoothed labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.batches import describe, keep
from diagnostics.errors import DiagnosticsError
from diagnostics.forms import Batch, FunctionForm, PairForm
from diagnostics.loss_terms import as_module
from diagnostics.objective import Objective
from diagnostics.output_loss import Categorical, Elementwise, OutputLoss

Targets = Callable[[Batch, torch.Generator], Batch]

REGRESSION = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


@dataclass(frozen=True)
class RandomTask:
    """The objective's inputs with targets that were drawn.

    Attributes:
        objective: the same loss on the same inputs.
        constant: loss of the best prediction that is the same for every example; None where that is not known.
        perfect: loss of a perfect prediction.
    """

    objective: Objective
    constant: float | None
    perfect: float


class RandomTargets:
    """Draws targets for an objective. To be made and used inside ``quiet``.

    Args:
        objective: whose loss and inputs.
        targets: ``(batch, generator) -> batch`` for losses of the user's own; None where the loss is known.
        centred: whether outputs are counted from where they are now: targets of a regression then lie around zero.

    Raises:
        DiagnosticsError: no targets can be made for this loss.
    """

    def __init__(self, objective: Objective, targets: Targets | None, centred: bool) -> None:
        self._objective, self._targets, self._centred = objective, targets, centred
        self.known: Categorical | Elementwise | None = None
        if targets is None:
            self.known, self._classes = _known(objective)
            self._mean, self._spread = self._scale()

    def draw(self, generator: torch.Generator) -> RandomTask:
        """A task with new targets from the generator's stream."""
        batches = [self._drawn(batch, generator) for batch in self._objective.batches]
        terms = [self._objective.count_terms(batch) for batch in batches]
        weights = [count / sum(terms) for count in terms]
        task = self._objective.rebatched(batches, weights, terms, self._objective.origins)
        if isinstance(self.known, Categorical):
            return RandomTask(task, *_categorical_scale(task))
        return RandomTask(task, None if self.known is None else self._constant(task), 0.0)

    def _drawn(self, batch: Batch, generator: torch.Generator) -> Batch:
        device = self._objective.space.device
        if self._targets is not None:
            return keep(self._targets(batch, generator), device)
        labels = _labels(batch)
        if isinstance(self.known, Categorical):
            drawn = self._random_labels(labels, generator)
        elif self._binary:
            drawn = torch.randint(2, labels.shape, generator=generator).to(labels.dtype)
        else:
            normal = torch.randn(labels.shape, generator=generator, dtype=torch.float64)
            drawn = (self._mean + self._spread * normal).to(labels.dtype)
        drawn = drawn.to(device)
        return {**batch, "labels": drawn} if isinstance(batch, dict) else (batch[0], drawn)

    def _random_labels(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        assert isinstance(self.known, Categorical)
        if labels.is_floating_point():
            axis = self.known.axis % labels.ndim
            shape = [size for place, size in enumerate(labels.shape) if place != axis]
            drawn = torch.randint(self._classes, shape, generator=generator)
            return nn.functional.one_hot(drawn, self._classes).movedim(-1, axis).to(labels.dtype)
        drawn = torch.randint(self._classes, labels.shape, generator=generator).to(labels.device, labels.dtype)
        return drawn.where(labels != _ignored(self._objective), labels)

    @property
    def _binary(self) -> bool:
        return isinstance(self.known, Elementwise) and isinstance(self.known.criterion, nn.BCEWithLogitsLoss)

    def _scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the objective's own targets in a regression, output by output."""
        nothing = torch.zeros((), dtype=torch.float64)
        if isinstance(self.known, Categorical) or self._binary:
            return nothing, nothing
        every = _over_examples([_labels(batch) for batch in self._objective.batches])
        spread = every.std(0, correction=0)
        if not bool((spread > 0).any()):
            raise DiagnosticsError(
                "the targets do not vary, so there is no scale to draw others at",
                given=f"{len(every)} targets, all alike",
                expected="a regression whose targets vary",
                attempt="targets=lambda batch, generator: (batch[0], torch.randn(batch[1].shape, generator=generator))",
            )
        return (nothing if self._centred else every.mean(0)), spread

    def _constant(self, task: Objective) -> float:
        """Loss of the mean target, or of the logit of the mean bit, as a prediction for every example."""
        assert isinstance(self.known, Elementwise)
        labels = [_labels(batch) for batch in task.batches]
        mean = _over_examples(labels).mean(0)
        if self._binary:
            mean = torch.logit(mean, eps=1e-6)
        losses = [float(self.known.criterion(mean.to(one).expand_as(one), one)) for one in labels]
        return sum(weight * loss for weight, loss in zip(task.weights, losses, strict=True))


def _known(objective: Objective) -> tuple[Categorical | Elementwise, int]:
    """What the loss is, and the number of classes."""
    if isinstance(objective.form, FunctionForm):
        raise _unknown("an Objective made with Objective.from_loss")
    at = first_outputs(objective)
    if isinstance(at.kind, Categorical):
        classes = at.outputs.shape[at.kind.axis]
        if classes < 2:
            raise DiagnosticsError(
                "there is one class only", given=f"{classes} output", expected="a classifier of two classes or more"
            )
        return at.kind, classes
    if at.kind is None or not isinstance(at.kind.criterion, (*REGRESSION, nn.BCEWithLogitsLoss)):
        loss = objective.form.criterion if isinstance(objective.form, PairForm) else "the model's own loss"
        raise _unknown(describe(loss) if not isinstance(loss, str) else loss)
    return at.kind, 0


def first_outputs(objective: Objective) -> OutputLoss:
    """The outputs on the first batch that counts, and what is known of the loss. To be called inside ``quiet``."""
    index = next(index for index, weight in enumerate(objective.weights) if weight)
    with torch.no_grad():
        return objective.batch_outputs(index, objective.space.values())


def _unknown(given: str) -> DiagnosticsError:
    return DiagnosticsError(
        "random targets cannot be made for this loss",
        given=given,
        expected="cross-entropy, binary cross-entropy of logits, squared, absolute or Huber error",
        attempt="targets=lambda batch, generator: batch, with targets that were drawn from the generator in it",
    )


def _labels(batch: Batch) -> Tensor:
    labels: Any = batch["labels"] if isinstance(batch, dict) else batch[1]
    if not isinstance(labels, Tensor):
        raise _unknown(f"targets that are {describe(labels)}")
    return labels


def _ignored(objective: Objective) -> int:
    """The label that counts for nothing."""
    criterion = as_module(objective.form.criterion) if isinstance(objective.form, PairForm) else None
    return criterion.ignore_index if isinstance(criterion, nn.CrossEntropyLoss) else -100


def _over_examples(parts: Sequence[Tensor]) -> Tensor:
    """All of them along one axis, float64; one number at a time where batches differ in shape."""
    wide = [part.detach().cpu().double() for part in parts]
    alike = all(part.ndim and part.shape[1:] == wide[0].shape[1:] for part in wide)
    return torch.cat(wide if alike else [part.reshape(-1) for part in wide])


def _categorical_scale(task: Objective) -> tuple[float, float]:
    """Entropy of the labels over all examples, and what is left of it when every label is known."""
    parts, perfect = [], 0.0
    for index, weight in enumerate(task.weights):
        if not weight:
            continue
        with torch.no_grad():
            at = task.batch_outputs(index, task.space.values())
        assert isinstance(at.kind, Categorical)
        terms, wanted = weight * at.kind.weight.double(), at.kind.wanted
        if wanted.ndim == 1:
            parts.append(torch.bincount(wanted, weights=terms, minlength=at.outputs.shape[at.kind.axis]))
        else:
            parts.append((terms[:, None] * wanted.double()).sum(0))
            perfect += float((terms * torch.special.entr(wanted.double()).sum(1)).sum())
    total = torch.stack(parts).sum(0)
    return float(torch.special.entr(total / total.sum()).sum() * total.sum()), perfect
