"""The product that every operator must hold on: every model under every loss, and language models under their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tests.cases import models
from tests.cases.case import Batch, Case, pairs
from tests.cases.language import bert, gpt2, huggingface, language, llama, t5


@dataclass(frozen=True)
class _Model:
    """How to make one, the shape of an example, and that of its outputs, classes first."""

    make: Callable[[], nn.Module]
    inputs: tuple[int, ...] = (3,)
    outputs: tuple[int, ...] = (3,)
    tokens: int = 0
    """In the vocabulary, for a model that takes them."""
    mode: str = "eval"
    additive: bool = True
    smooth: bool = True


_MODELS = {
    "linear": _Model(models.linear),
    "mlp": _Model(partial(models.mlp, outputs=3)),
    "batch norm eval": _Model(models.convolutional, (1, 5, 5)),
    "batch norm train": _Model(models.convolutional, (1, 5, 5), mode="train", additive=False),
    "layer norm": _Model(models.normalised),
    "rms norm": _Model(lambda: models.normalised(nn.RMSNorm(6))),
    "group norm": _Model(lambda: models.normalised(nn.GroupNorm(2, 6))),
    "instance norm": _Model(models.instance_normalised, (2, 5)),
    "lstm": _Model(lambda: models.Recurrent(nn.LSTM, 3), (4, 2)),
    "gru": _Model(lambda: models.Recurrent(nn.GRU, 3), (4, 2)),
    "attention": _Model(models.Attention, (5, 4)),
    "transformer encoder": _Model(models.Encoder, (5, 4)),
    "tokens": _Model(models.Tagger, (5,), (4, 5), tokens=6),
    "tied embedding": _Model(models.TiedTagger, (3,), (4, 3), tokens=4),
    "weight norm": _Model(lambda: models.weight_normed(3), smooth=False),
    "dropout in train mode": _Model(models.dropped, mode="train", additive=False),
    "unused parameter": _Model(lambda: models.Unused(3)),
    "frozen parameter": _Model(lambda: models.frozen(3)),
    "functional": _Model(models.Functional),
}

_LOSSES = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "cross-entropy sum": nn.CrossEntropyLoss(reduction="sum"),
    "ignored labels": nn.CrossEntropyLoss(ignore_index=2),
    "label smoothing": nn.CrossEntropyLoss(label_smoothing=0.3),
    "mse": nn.MSELoss(),
    "mse sum": nn.MSELoss(reduction="sum"),
    "bce": nn.BCEWithLogitsLoss(),
    "huber": nn.HuberLoss(delta=0.5),
}

_EXAMPLES = 7


def _data(model: _Model, loss: nn.Module) -> Batch:
    classes, *rest = model.outputs
    inputs: Tensor = (
        torch.randint(model.tokens, (_EXAMPLES, *model.inputs))
        if model.tokens
        else torch.randn(_EXAMPLES, *model.inputs, dtype=torch.float64)
    )
    if isinstance(loss, nn.CrossEntropyLoss):
        targets = torch.randint(classes, (_EXAMPLES, *rest))
        # The first batch of a ragged cut is this example alone: it may have nothing to say, and a loss of 0 / 0.
        targets[0] = loss.ignore_index if loss.ignore_index >= 0 else targets[0]
        return inputs, targets
    drawn = torch.rand if isinstance(loss, nn.BCEWithLogitsLoss) else torch.randn
    return inputs, drawn(_EXAMPLES, classes, *rest, dtype=torch.float64)


def _pair(model_name: str, loss_name: str) -> Case:
    model, loss = _MODELS[model_name], _LOSSES[loss_name]
    return pairs(
        f"{model_name}, {loss_name}",
        model.make,
        loss,
        partial(_data, model, loss),
        mode=model.mode,
        additive=model.additive,
        smooth=model.smooth,
    )


_SENTENCES = language(2, examples=6, tokens=3)

LANGUAGE_MODELS = [
    huggingface("gpt2 in double", partial(gpt2, double=True), _SENTENCES, digits=9, causal=True),
    huggingface("llama", llama, _SENTENCES, digits=9, causal=True),
    huggingface("bert", bert, _SENTENCES, digits=9, causal=False),
    huggingface("t5", t5, _SENTENCES, digits=9, causal=False),
]

CLASS_WEIGHTS = pairs(
    "tokens, class weights",
    models.Tagger,
    nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 3.0, 2.0]), ignore_index=2),
    partial(_data, _MODELS["tokens"], _LOSSES["ignored labels"]),
)

MATRIX = [*(_pair(model, loss) for model in _MODELS for loss in _LOSSES), CLASS_WEIGHTS, *LANGUAGE_MODELS]


def case_named(name: str) -> Case:
    """The one of that name."""
    return next(case for case in MATRIX if case.name == name)
