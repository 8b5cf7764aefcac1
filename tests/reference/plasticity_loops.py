"""Slow twin of plasticity: deep copies of whole models, trained by the loop that anybody would write."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Batches = Sequence[tuple[Tensor, Tensor]]
MakeOptimizer = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


def loss_after(
    model: nn.Module,
    criterion: Callable[[Tensor, Tensor], Tensor],
    batches: Batches,
    make_optimizer: MakeOptimizer,
    steps: int,
    *,
    centred: bool,
    shares: Sequence[float],
) -> float:
    """Σ share × loss over the batches, after so many steps on one batch after the other."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        bases = [copied(x).clone() if centred else torch.zeros(()) for x, _ in batches]
    optimizer = make_optimizer([tensor for tensor in copied.parameters() if tensor.requires_grad])
    for step in range(steps):
        (x, y), base = batches[step % len(batches)], bases[step % len(batches)]
        optimizer.zero_grad()
        criterion(copied(x) - base, y).backward()
        optimizer.step()
    with torch.no_grad():
        losses = [float(criterion(copied(x) - base, y)) for (x, y), base in zip(batches, bases, strict=True)]
    return sum(share * loss for share, loss in zip(shares, losses, strict=True))


def best_constant(criterion: Callable[[Tensor, Tensor], Tensor], batches: Batches, outputs: int) -> float:
    """Loss of the best prediction that is one for all examples, by descending on that prediction; one batch."""
    ((_, y),) = batches
    prediction = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([prediction], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = criterion(prediction.expand(len(y), outputs), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(criterion(prediction.detach().expand(len(y), outputs), y))
