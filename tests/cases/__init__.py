"""Models × losses × ragged batches, once, for every test that must hold on all of them.

Each case builds itself anew from a fixed seed, in float64 and small enough for a dense Hessian. ``plain_loss`` is what
a trainer would write, on the live model and the whole batch: the twin of ``objective().loss()``. ``CASES`` is the
short list that most tests walk; ``tests.cases.matrix`` holds the full product for the operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import Objective
from tests.cases.case import Batch, Case, pairs
from tests.cases.case import cut as cut
from tests.cases.language import bert, gpt2, huggingface, language
from tests.cases.models import (
    Encoder,
    Recurrent,
    Tagger,
    Tied,
    Unused,
    convolutional,
    frozen,
    mlp,
    normalised,
    weight_normed,
)


def _regression(*shape: int, outputs: int = 2) -> Callable[[], Batch]:
    return lambda: (torch.randn(8, *shape, dtype=torch.float64), torch.randn(8, outputs, dtype=torch.float64))


def _classification(*shape: int) -> Callable[[], Batch]:
    return lambda: (torch.randn(8, *shape, dtype=torch.float64), torch.randint(3, (8,)))


def _tagging() -> Batch:
    tokens, labels = torch.randint(6, (8, 5)), torch.randint(4, (8, 5))
    labels[torch.rand(8, 5) < 0.4] = 3
    return tokens, labels


def _dict_loss(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch["x"]) - batch["y"]).square().sum(1).mean()


def _dict_data() -> Batch:
    x, y = _regression(3)()
    return {"x": x, "y": y}


def _from_dicts(model: nn.Module, batches: list[Batch], **settings: Any) -> Objective:
    return Objective.from_loss(model, _dict_loss, batches, **settings)


CASES = [
    pairs("tanh mlp", mlp, nn.MSELoss(), _regression(3)),
    pairs("tied weights, scalar parameter", Tied, nn.HuberLoss(delta=0.5), _regression(3, outputs=3)),
    pairs("cnn, batch norm eval", convolutional, nn.CrossEntropyLoss(), _classification(1, 5, 5)),
    pairs("layer norm, label smoothing", normalised, nn.CrossEntropyLoss(label_smoothing=0.1), _classification(3)),
    pairs("transformer encoder layer", Encoder, nn.CrossEntropyLoss(), _classification(5, 4)),
    pairs("lstm", Recurrent, nn.SmoothL1Loss(), _regression(4, 2)),
    pairs(
        "embedding, ignored labels, class weights",
        Tagger,
        nn.CrossEntropyLoss(ignore_index=3, weight=torch.tensor([0.5, 1.0, 3.0, 2.0]), label_smoothing=0.05),
        _tagging,
    ),
    pairs("unused parameter", Unused, nn.MSELoss(), _regression(3)),
    pairs("frozen layer", frozen, nn.MSELoss(), _regression(3)),
    Case("from_loss with dicts", mlp, _dict_data, _from_dicts, _dict_loss),
    huggingface("gpt2", gpt2, language(4), digits=5, causal=True),
    huggingface("bert", bert, language(5), digits=10, causal=False),
]
"""Losses that are means over terms: ragged batches must average like one whole batch."""

WEIGHT_NORM = pairs("weight norm", weight_normed, nn.MSELoss(), _regression(3), smooth=False)
"""Apart: torch's double backward of weight_norm is wrong (checked on 2.13), see ``test_hessian_routes.py``."""

TRAIN_BATCH_NORM = pairs(
    "cnn, batch norm train",
    convolutional,
    nn.CrossEntropyLoss(),
    _classification(1, 5, 5),
    mode="train",
    additive=False,
)

WHOLE_BATCH_CASES = [*CASES, TRAIN_BATCH_NORM]
"""All of them, for tests on one whole batch."""
