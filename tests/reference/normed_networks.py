"""Small networks in which it is known what is scale-invariant."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Directions(nn.Linear):
    """A linear layer that uses only the direction of each weight row."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight), self.bias)


class KeyBias(nn.Module):
    """Attention whose keys have a bias, which softmax cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        return self.head((torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ v).mean(1))


class QueryKeyNorm(nn.Module):
    """Attention that normalises queries and keys over all their features before they meet."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.norm = nn.RMSNorm(6, eps=0.0)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.norm(self.query(x)), self.norm(self.key(x))
        return self.head((torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ self.value(x)).mean(1))


class HalfNormed(nn.Module):
    """One matrix, of which two thirds of the outputs are normalised by themselves and the rest not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 12, bias=False), nn.BatchNorm1d(8), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(F.gelu(torch.cat([self.norm(h[:, :8]), h[:, 8:]], 1)))


def normed(norm: nn.Module, bias: bool = False) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16, bias=bias), norm, nn.GELU(), nn.Linear(16, 3))


def data(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(64, *shape), torch.randint(3, (64,))
