"""The three forms in which a model, its loss and a batch go together.

A form says what the trainer's loss on a batch is, how many loss terms it holds, and, where it can be seen, what the
model puts out before the loss: Gauss-Newton, Fisher and the tangent kernel need the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics.batches import describe
from diagnostics.errors import DiagnosticsError
from diagnostics.loss_terms import as_module, huggingface_terms, is_stock, pair_terms, reduction, shifts_labels
from diagnostics.output_loss import Categorical, Elementwise, OutputLoss

Batch = Any


class Form(Protocol):
    """How a loss comes out of a model and a batch."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss that the trainer sees, a scalar."""

    def terms(self, model: nn.Module, batch: Batch) -> float:
        """How many loss terms the batch holds."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model puts out before the loss."""

    def at_outputs(self, model: nn.Module, batch: Batch) -> OutputLoss:
        """The outputs and the loss computed from them, in one graph."""


@dataclass(frozen=True)
class PairForm:
    """``criterion(model(inputs), targets)``."""

    criterion: Callable[[Any, Any], Tensor]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The criterion's value."""
        inputs, targets = batch
        return self.criterion(model(inputs), targets)

    def terms(self, model: nn.Module, batch: Batch) -> float:
        """As the criterion reduces."""
        return pair_terms(self.criterion, batch[1])

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's output, which must be one tensor."""
        outputs = model(batch[0])
        if not isinstance(outputs, Tensor):
            raise DiagnosticsError(
                "the model's outputs are not one tensor",
                given=describe(outputs),
                expected="a tensor, for what looks at the loss as a function of the outputs",
                attempt="a thin module around the model that returns the logits",
            )
        return outputs

    def at_outputs(self, model: nn.Module, batch: Batch) -> OutputLoss:
        """The model's output and the criterion's value."""
        outputs, targets = self.outputs(model, batch), batch[1]
        loss = scalar(self.criterion(outputs, targets))
        criterion = as_module(self.criterion)
        if not is_stock(criterion):
            return OutputLoss(outputs, loss, None, summed=reduction(self.criterion) == "sum")
        if isinstance(criterion, nn.CrossEntropyLoss):
            kind = _categorical(criterion, outputs, targets)
            known = kind.gives(loss, outputs)
            return OutputLoss(outputs, loss, kind if known else None, summed=criterion.reduction == "sum")
        if isinstance(criterion, nn.NLLLoss | nn.KLDivLoss):
            raise DiagnosticsError(
                "the loss is linear in the model's outputs",
                given=f"{type(criterion).__name__} on log-probabilities, for which the Gauss-Newton matrix is zero",
                expected="a model that returns logits, with CrossEntropyLoss",
            )
        return OutputLoss(outputs, loss, Elementwise.of(criterion, outputs))


@dataclass(frozen=True)
class MappingForm:
    """``model(**batch).loss``, as Hugging Face models have it."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss that the model computes itself."""
        return self._run(model, batch)[0]

    def terms(self, model: nn.Module, batch: Batch) -> float:
        """Labels that count."""
        return huggingface_terms(model, batch)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """The logits."""
        return _logits(self._run(model, batch)[1])

    def at_outputs(self, model: nn.Module, batch: Batch) -> OutputLoss:
        """The logits, with a cross-entropy recognised by its value."""
        loss, result = self._run(model, batch)
        loss, logits = scalar(loss), _logits(result)
        return OutputLoss(logits, loss, _recognised(logits, loss, batch.get("labels"), shifts_labels(model)))

    def _run(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        result = model(**batch)
        loss = getattr(result, "loss", None)
        if loss is None:
            raise DiagnosticsError(
                "the model returned no loss", given=describe(batch), expected="a batch with 'labels'"
            )
        return loss, result


def _logits(result: Any) -> Tensor:
    logits = getattr(result, "logits", None)
    if not isinstance(logits, Tensor):
        raise DiagnosticsError(
            "the model returns no logits",
            given=type(result).__name__,
            expected="an output with .loss and .logits",
            attempt="Objective(model, loss, batches) with a module that returns the outputs",
        )
    return logits


@dataclass(frozen=True)
class FunctionForm:
    """``loss_fn(model, batch)``: nothing is known of what happens inside."""

    function: Callable[[nn.Module, Batch], Tensor]
    count: Callable[[Batch], float]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The function's value."""
        return self.function(model, batch)

    def terms(self, model: nn.Module, batch: Batch) -> float:
        """As the user counts."""
        count = self.count(batch)
        try:
            number = math.nan if isinstance(count, str | bytes) else float(count)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if not 0 <= number < math.inf:
            raise DiagnosticsError(
                "terms does not give a number of loss terms",
                given=repr(count) if isinstance(count, float | int | str | None) else describe(count),
                expected="a number, zero or more, for each batch",
                attempt="terms=lambda batch: len(batch[0])",
            )
        return number

    def outputs(self, model: nn.Module, batch: Batch) -> NoReturn:
        """Cannot be told."""
        raise DiagnosticsError(
            "the model's outputs cannot be seen inside loss_fn",
            given="an Objective made with Objective.from_loss",
            expected="one that knows the outputs and the loss apart",
            attempt="Objective(model, loss, batches) or Objective.huggingface(model, batches)",
        )

    def at_outputs(self, model: nn.Module, batch: Batch) -> OutputLoss:
        """Cannot be told either."""
        self.outputs(model, batch)


def scalar(loss: Any) -> Tensor:
    """A loss as a tensor of no dimensions; anything but one floating-point number is refused."""
    if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point()):
        raise DiagnosticsError(
            "the loss is not a scalar",
            given=describe(loss),
            expected="one floating-point number per batch",
            attempt="reduction='mean' in the loss",
        )
    return loss.reshape(())


def _categorical(criterion: nn.CrossEntropyLoss, outputs: Tensor, targets: Tensor) -> Categorical:
    axis = 1 if outputs.ndim > 1 else 0
    classes = outputs.shape[axis]
    class_weight = None if criterion.weight is None else criterion.weight.to(outputs.device, outputs.dtype)
    if targets.is_floating_point():
        wanted = targets.movedim(axis, -1).reshape(-1, classes).to(outputs.dtype)
        kept = torch.ones(len(wanted), dtype=outputs.dtype, device=outputs.device)
        divisor = kept.sum()
    else:
        kept = (targets.reshape(-1) != criterion.ignore_index).to(outputs.dtype)
        wanted = targets.reshape(-1).where(kept > 0, 0)
        divisor = kept.sum() if class_weight is None else (kept * class_weight[wanted]).sum()
    weight = kept if criterion.reduction == "sum" else kept / divisor
    if targets.is_floating_point() or criterion.label_smoothing > 0:
        spread = wanted if wanted.ndim == 2 else F.one_hot(wanted, classes).to(outputs.dtype)
        spread = (1.0 - criterion.label_smoothing) * spread + criterion.label_smoothing / classes
        if class_weight is not None:
            spread = spread * class_weight
        share = spread.sum(dim=1)
        return Categorical(axis, spread / share.where(share > 0, 1.0)[:, None], weight * share)
    return Categorical(axis, wanted, weight if class_weight is None else weight * class_weight[wanted])


def _recognised(logits: Tensor, loss: Tensor, labels: Any, shifted: bool) -> Categorical | Elementwise | None:
    """The loss that gives this value for these labels, among those that Hugging Face models compute."""
    if not isinstance(labels, Tensor):
        return None
    flat = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))

    def gives(value: Tensor) -> bool:
        return bool(torch.isclose(value.to(loss.dtype), loss.detach(), rtol=1e-3, atol=1e-6))

    if labels.is_floating_point():
        if labels.numel() != logits.numel():
            return None
        criteria = (nn.MSELoss(), nn.BCEWithLogitsLoss())
        found = (criterion for criterion in criteria if gives(criterion(flat.reshape(labels.shape), labels.to(flat))))
        return next((Elementwise.of(criterion, logits) for criterion in found), None)
    if labels.shape != logits.shape[:-1]:
        return None
    wanted = F.pad(labels, (0, 1), value=-100)[..., 1:] if shifted else labels
    kept = (wanted != -100).reshape(-1)
    classes = wanted.reshape(-1).where(kept, 0)
    if not bool(kept.any()) or not gives(F.cross_entropy(flat.reshape(-1, flat.shape[-1])[kept], classes[kept])):
        return None
    return Categorical(-1, classes, kept.to(logits.dtype) / kept.sum())
