"""A case: a model, a whole batch, where to cut it, and every way to write its loss down that a twin may need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import Objective

Batch = Any
Terms = tuple[Tensor, Tensor]
"""One loss per term, and the weight of each in the loss of the batch."""


@dataclass(frozen=True)
class Case:
    """A model, a whole batch, where to cut it, and how to make an Objective and a plain loss of them.

    ``outputs``, ``of_outputs`` and ``terms`` say the plain loss once more in its parts: what the model puts out, the
    loss of that, and the loss of each term of it. A case without them has a loss that cannot be looked into.
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[], Batch]
    wrap: Callable[..., Objective]
    plain: Callable[[nn.Module, Batch], Tensor]
    mode: str = "eval"
    additive: bool = True
    digits: int = 10
    """Of agreement to ask for: Hugging Face computes causal losses in float32, whatever the model's dtype."""
    outputs: Callable[[nn.Module, Batch], Tensor] | None = None
    of_outputs: Callable[[Tensor, Batch], Tensor] | None = None
    terms: Callable[[Tensor, Batch], Terms] | None = None
    summed: bool = False
    """The loss is a sum over its terms: batches are averaged, so the ragged loss is a share of the whole."""
    smooth: bool = True
    """Torch's second derivative of the model is right."""

    def __str__(self) -> str:
        return self.name

    def build(self) -> tuple[nn.Module, Batch]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(7)
            model = self.model().double()
            return model.train(self.mode == "train"), self.data()

    def objective(self, *, ragged: bool = False, **settings: Any) -> Objective:
        model, whole = self.build()
        return self.wrap(model, cut(whole) if ragged else [whole], mode=self.mode, **settings)

    def plain_loss(self, model: nn.Module, whole: Batch) -> Tensor:
        return self.plain(model, whole)


def cut(whole: Batch) -> list[Batch]:
    """The same examples in batches of 1, 4 and the rest."""
    bounds = ((0, 1), (1, 5), (5, None))
    if isinstance(whole, dict):
        return [{name: leaf[a:b] for name, leaf in whole.items()} for a, b in bounds]
    return [tuple(leaf[a:b] for leaf in whole) for a, b in bounds]


def pairs(name: str, model: Callable[[], nn.Module], loss: nn.Module, data: Callable[[], Batch], **rest: Any) -> Case:
    """Batches of (inputs, targets) under one of torch's own losses."""
    loss = loss.double()

    def wrap(module: nn.Module, batches: list[Batch], **settings: Any) -> Objective:
        return Objective(module, loss, batches, **settings)

    return Case(
        name,
        model,
        data,
        wrap,
        lambda module, batch: loss(module(batch[0]), batch[1]),
        outputs=lambda module, batch: module(batch[0]),
        of_outputs=lambda outputs, batch: loss(outputs, batch[1]),
        terms=lambda outputs, batch: terms_of(loss, outputs, batch[1]),
        summed=loss.reduction == "sum",
        **rest,
    )


def terms_of(loss: nn.Module, outputs: Tensor, targets: Tensor) -> Terms:
    """A term is one label for cross-entropy, one example's vector of outputs for an element-wise loss."""
    known = ("weight", "ignore_index", "label_smoothing", "delta", "beta")
    unreduced = type(loss)(reduction="none", **{name: getattr(loss, name) for name in known if hasattr(loss, name)})
    if not isinstance(loss, nn.CrossEntropyLoss):
        losses = unreduced(outputs, targets).flatten(1).sum(1)
        return losses, torch.full_like(losses, 1.0 if loss.reduction == "sum" else 1.0 / targets.numel())
    kept = targets != loss.ignore_index
    # With nothing known every class costs log C: what comes out beyond that is what class weights make of the label.
    weights = (unreduced(torch.zeros_like(outputs), targets) / math.log(outputs.shape[1]))[kept]
    divisor = kept.sum() if loss.weight is None else loss.weight[targets[kept]].sum()
    return unreduced(outputs, targets)[kept] / weights, weights if loss.reduction == "sum" else weights / divisor
