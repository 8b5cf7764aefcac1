"""What a training run leaves behind, bit by bit, and data that every random state has a hand in."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Trace = dict[str, Any]


class NoisyData(TensorDataset):
    """Augments with every global random state there is."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return x + 0.1 * (torch.rand(1) + random.random() + numpy.random.rand()), y


def start(seed: int = 3) -> None:
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)


def data(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(16, *(shape or (3,)), generator=generator), torch.randint(2, (16,), generator=generator)


def loader(*shape: int, **settings: Any) -> DataLoader[Any]:
    return DataLoader(NoisyData(*data(*shape)), batch_size=4, shuffle=True, **settings)


def batches(source: Iterable[Any], count: int) -> Iterator[Any]:
    """Epoch after epoch, shuffled anew each time."""
    while True:
        for batch in source:
            if count == 0:
                return
            count -= 1
            yield batch


def trace(model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float], **more: Any) -> Trace:
    """Everything that could show that somebody has been there."""
    return {
        "losses": losses,
        "weights and buffers": model.state_dict(),
        "gradients": [tensor.grad for tensor in model.parameters()],
        "optimizer": optimizer.state_dict(),
        "flags": [(module.training, len(module._forward_hooks)) for module in model.modules()],
        "requires_grad": [tensor.requires_grad for tensor in model.parameters()],
        "torch random": torch.get_rng_state(),
        "python random": random.getstate(),
        "numpy random": numpy.random.get_state(),
        **more,
    }


def differences(left: Trace, right: Trace) -> list[str]:
    """The entries of two traces that differ in any bit."""
    assert left.keys() == right.keys()
    return [key for key in left if _bits(left[key]) != _bits(right[key])]


def _bits(thing: Any) -> Any:
    if isinstance(thing, Tensor):
        return str(thing.dtype), tuple(thing.shape), thing.detach().contiguous().reshape(-1).view(torch.uint8).tolist()
    if isinstance(thing, numpy.ndarray):
        return thing.tobytes()
    if isinstance(thing, dict):
        return [(str(key), _bits(value)) for key, value in thing.items()]
    if isinstance(thing, list | tuple):
        return [_bits(part) for part in thing]
    return thing.hex() if isinstance(thing, float) else thing
