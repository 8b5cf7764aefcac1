"""Slow twins of the stochastic measures: every minibatch there is, each on the live model with a plain loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from tests.reference.dense_hessian import dense_hessian, differenced_hessian, hessian_times

PlainLoss = Callable[[nn.Module, Any], Tensor]
Times = Callable[[Tensor], Tensor]


def rows(whole: Any, chosen: list[int]) -> Any:
    """Some examples of a batch that is a pair of tensors, or a dictionary of them."""
    if isinstance(whole, dict):
        return {name: leaf[chosen] for name, leaf in whole.items()}
    return tuple(leaf[chosen] for leaf in whole)


def length(whole: Any) -> int:
    """Its examples."""
    return len(next(iter(whole.values())) if isinstance(whole, dict) else whole[0])


def gradient(model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """(P,) over the parameters that require gradients."""
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parts = torch.autograd.grad(loss(), leaves, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts])


def every_minibatch(
    model: nn.Module, plain: PlainLoss, whole: Any, size: int, *, differenced: bool = False
) -> Iterator[tuple[Tensor, Times]]:
    """Gradient and Hessian products of each, the Hessian from first gradients alone where ``differenced``."""
    for chosen in combinations(range(length(whole)), size):
        batch = rows(whole, list(chosen))

        def loss(batch: Any = batch) -> Tensor:
            return plain(model, batch)

        def times(vector: Tensor, loss: Callable[[], Tensor] = loss) -> Tensor:
            if differenced:
                return differenced_hessian(model, loss) @ vector
            return hessian_times(model, loss, vector[:, None])[:, 0]

        yield gradient(model, loss), times


def batch_sharpness_twin(
    model: nn.Module, plain: PlainLoss, whole: Any, size: int, *, differenced: bool = False
) -> float:
    """Mean over all minibatches of gᵀHg/‖g‖²."""
    found = [
        float(g @ times(g)) / float(g @ g)
        for g, times in every_minibatch(model, plain, whole, size, differenced=differenced)
    ]
    return sum(found) / len(found)


def scaled_sharpness_twin(
    model: nn.Module, plain: PlainLoss, whole: Any, size: int, squares: Tensor, decay: float = 0.0
) -> float:
    """The same in coordinates scaled by √squares, with ½ decay ‖θ‖² in the loss."""

    def decayed(module: nn.Module, batch: Any) -> Tensor:
        return plain(module, batch) + 0.5 * decay * sum(p.square().sum() for p in module.parameters())

    found = []
    for g, times in every_minibatch(model, decayed, whole, size):
        moved = squares * g
        found.append(float(moved @ times(moved)) / float(g @ moved))
    return sum(found) / len(found)


def interaction_twin(model: nn.Module, plain: PlainLoss, whole: Any, size: int) -> tuple[float, float]:
    """GNI and interaction-aware sharpness, with the dense Hessian of the whole."""
    H = dense_hessian(model, lambda: plain(model, whole))
    g = gradient(model, lambda: plain(model, whole))
    drawn = torch.stack([one for one, _ in every_minibatch(model, plain, whole, size)])
    curved = float(((drawn @ H) * drawn).sum(1).mean())
    return curved / float(g @ g), curved / float(drawn.square().sum(1).mean())


def noise_identity(model: nn.Module, plain: PlainLoss, whole: Any, size: int) -> float:
    """(gᵀHg/‖g‖²)(1 + B_noise·(N−b)/(N−1)/b) from single examples, without any minibatch."""
    H = dense_hessian(model, lambda: plain(model, whole))
    single = torch.stack([one for one, _ in every_minibatch(model, plain, whole, 1)])
    g = single.mean(0)
    spread = single - g
    noise = float(((spread @ H) * spread).sum(1).mean()) / float(g @ H @ g)
    count = len(single)
    return float(g @ H @ g) / float(g @ g) * (1 + noise / size * (count - size) / (count - 1))
