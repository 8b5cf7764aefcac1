"""Models of a hundred parameters, one for each layer that has surprised somebody who differentiated it twice."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


class Tied(nn.Module):
    """Two layers that share one weight, and a scalar temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.temperature * self.second(torch.tanh(self.first(x)))


class Unused(nn.Module):
    """A layer that the forward pass never touches."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, outputs), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.used(x))


class Recurrent(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, layer: type[nn.RNNBase] = nn.LSTM, outputs: int = 2) -> None:
        super().__init__()
        self.rnn, self.head = layer(2, 3, batch_first=True), nn.Linear(3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    """Every token looks at every other, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Encoder(nn.Module):
    """One transformer block with fused attention, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean(1))


class Tagger(nn.Module):
    """Logits of shape (batch, classes, tokens)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 3), nn.Linear(3, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens))).movedim(-1, 1)


class TiedTagger(nn.Module):
    """The embedding is the head as well; logits of shape (batch, tokens in the vocabulary, tokens)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle, self.head = nn.Embedding(4, 3), nn.Linear(3, 3), nn.Linear(3, 4)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.embedding(tokens)))).movedim(-1, 1)


class Functional(nn.Module):
    """No module holds a weight: parameters of its own, one of them a scalar, and functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))
        self.second, self.scale = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (F.silu(F.linear(x, self.first, self.bias)) @ self.second)


def linear() -> nn.Module:
    return nn.Linear(3, 3)


def mlp(activation: type[nn.Module] = nn.Tanh, outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), activation(), nn.Linear(5, outputs))


def frozen(outputs: int = 2) -> nn.Module:
    model = mlp(outputs=outputs)
    model[0].requires_grad_(False)
    return model


def convolutional() -> nn.Module:
    norm = nn.BatchNorm2d(2)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(18, 3))


def normalised(norm: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6) if norm is None else norm, nn.GELU(), nn.Linear(6, 3))


def instance_normalised() -> nn.Module:
    norm = nn.InstanceNorm1d(3, affine=True)
    return nn.Sequential(nn.Conv1d(2, 3, 2), norm, nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))


def weight_normed(outputs: int = 2) -> nn.Module:
    return nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.SiLU(), nn.Linear(4, outputs))


def dropped() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 3))
