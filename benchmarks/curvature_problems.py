"""The networks that measures are timed on, a little trained, in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import Objective

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """A network with its loss and batches of one size."""

    name: str
    model: nn.Module
    loss: nn.Module
    batches: list[Batch]

    def objective(self) -> Objective:
        """A new one: nothing is known of its routes yet."""
        return Objective(self.model, self.loss, self.batches)

    def copy(self) -> Problem:
        """For a peer that leaves gradients and graphs behind."""
        return Problem(self.name, copy.deepcopy(self.model), self.loss, self.batches)

    def first(self) -> Problem:
        """With the first batch only."""
        return Problem(self.name, self.model, self.loss, self.batches[:1])

    def double(self) -> Problem:
        """A copy in float64."""
        batches = [(x.double() if x.is_floating_point() else x, y) for x, y in self.batches]
        return Problem(self.name, copy.deepcopy(self.model).double(), self.loss, batches)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The tensors that are differentiated."""
        return list(self.model.parameters())

    def gradient(self) -> None:
        """What everything is measured in: forward and backward over all batches."""
        for x, y in self.batches:
            torch.autograd.grad(self.loss(self.model(x), y), self.parameters)

    def vectors(self, count: int) -> Tensor:
        """(P, count) Gaussian numbers, the same on every device."""
        size = sum(parameter.numel() for parameter in self.parameters)
        draw = torch.randn(size, count, generator=torch.Generator().manual_seed(1))
        return draw.to(self.parameters[0].device)


class Block(nn.Module):
    """Pre-norm self-attention and a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).chunk(3, -1)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.feed(self.feed_norm(x))


class Transformer(nn.Module):
    """An encoder language model: tokens (B, T) to logits (B·T, vocabulary)."""

    def __init__(self, length: int = 64, width: int = 128, depth: int = 2, vocabulary: int = 512) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every token, in one row each."""
        # Hooks on modules, by which some peers work, do not see a weight that is used without its module.
        places = torch.arange(tokens.shape[1], device=tokens.device).repeat(len(tokens), 1)
        x = self.tokens(tokens) + self.places(places)
        return self.head(self.norm(self.blocks(x))).flatten(0, 1)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 10))


def _grouped_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.GELU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.GroupNorm(8, 32), nn.GELU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.GroupNorm(8, 64), nn.GELU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64 * 16, 10),
    )  # fmt: skip


def _wide_grouped_cnn() -> nn.Module:
    def stage(channels: int, wider: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, wider, 3, padding=1, stride=stride), nn.GroupNorm(8, wider), nn.GELU()]

    return nn.Sequential(
        *stage(3, 32, 1), *stage(32, 32, 1), *stage(32, 64, 2), *stage(64, 64, 1), *stage(64, 128, 2),
        *stage(128, 128, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.GELU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.GELU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.GELU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64 * 16, 10),
    )  # fmt: skip


def _clusters(*shape: int) -> Callable[[int], Batch]:
    """Ten overlapping Gaussian clusters, one per class; a fifth of the labels is noise."""
    centres = torch.randn(10, *shape)

    def draw(count: int) -> Batch:
        classes, noise = torch.randint(10, (2, count))
        labels = torch.where(torch.rand(count) < 0.2, noise, classes)
        return 0.1 * centres[classes] + torch.randn(count, *shape), labels

    return draw


def _sentences(length: int) -> Callable[[int], Batch]:
    """Tokens that are common and rare, each to be followed by its successor or by noise."""

    def draw(count: int) -> Batch:
        tokens = (512 * torch.rand(count, length).square()).long()
        noise = torch.randint(512, tokens.shape)
        return tokens, torch.where(torch.rand(tokens.shape) < 0.2, noise, (tokens + 1) % 512).flatten()

    return draw


def problem(name: str, device: str, batches: int = 8) -> Problem:
    """A network by name, after thirty steps of Adam: at first the spectrum has no outliers."""
    torch.manual_seed(0)
    model, draw, size = {
        "MLP": (_mlp, _clusters(784), 512),
        "CNN": (_cnn, _clusters(3, 32, 32), 64),
        "GroupNorm CNN": (_grouped_cnn, _clusters(3, 32, 32), 64),
        "wide GroupNorm CNN": (_wide_grouped_cnn, _clusters(3, 32, 32), 64),
        "transformer": (Transformer, _sentences(64), 16),
        "wide transformer": (partial(Transformer, 128, 256, 4), _sentences(128), 16),
    }[name]
    model, loss = model().to(device), nn.CrossEntropyLoss()
    data = [tuple(part.to(device) for part in draw(size)) for _ in range(batches)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(30):
        x, y = data[step % len(data)]
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return Problem(name, model.eval(), loss, data)


NAMES = ("MLP", "CNN", "transformer")
