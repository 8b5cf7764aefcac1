"""Slow twin of opposing signals: two copies of the model, one step apart, and each example by itself on both."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from tests.reference.per_example_loops import Contribution, gradients, losses


def stepped(model: nn.Module, update: Tensor) -> nn.Module:
    """A copy of the model whose trained parameters have moved by ``update`` (P,)."""
    other = deepcopy(model)
    trained = [parameter for parameter in other.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter, part in zip(trained, update.split([p.numel() for p in trained]), strict=True):
            parameter.add_(part.view_as(parameter))
    return other


def changes(model: nn.Module, contribution: Contribution, count: int, update: Tensor) -> Tensor:
    """δ_i, (N,)."""
    return losses(stepped(model, update), contribution, count) - losses(model, contribution, count)


def cosine(model: nn.Module, contribution: Contribution, count: int, one: list[int], other: list[int]) -> float:
    """Between the mean gradients of two groups."""
    rows = gradients(model, contribution, count)
    return float(torch.cosine_similarity(rows[one].mean(0), rows[other].mean(0), dim=0))
