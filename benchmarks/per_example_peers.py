"""Norms of single examples' gradients by the peers, each used as its documentation says, on a copy of the problem."""

from __future__ import annotations

from collections.abc import Callable

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, BatchL2Grad
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

from benchmarks.curvature_problems import Problem

Norms = Callable[[], Tensor]


def opacus_ghost(problem: Problem) -> Norms:
    """The first of its two backward passes, in which ghost norms are taken; the second is for the clipped step."""
    own = problem.copy()
    (x, y), count = own.batches[0], len(own.batches[0][0])
    # Without dropout or batch statistics the modes are the same, and it records in training mode only.
    wrapped = GradSampleModuleFastGradientClipping(own.model.train(), max_grad_norm=1.0, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(wrapped.parameters()), noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=count
    )
    loss = DPLossFastGradientClipping(wrapped, optimizer, own.loss)

    def norms() -> Tensor:
        losses = loss(wrapped(x), y, shape=y.shape if y.ndim > 1 else None).loss_per_sample
        losses.mean().backward()
        found = wrapped.get_norm_sample()
        wrapped.zero_grad(set_to_none=True)
        for parameter in wrapped.parameters():
            # Left behind otherwise, and counted as held from the start in the next call.
            parameter._norm_sample = None
        return found

    return norms


def backpack_norms(problem: Problem) -> Norms:
    """BatchL2Grad: squared norms by layer."""
    return _by_backpack(problem, BatchL2Grad, "batch_l2", lambda squares: squares)


def backpack_gradients(problem: Problem) -> Norms:
    """BatchGrad: the gradients themselves, whose norms are taken."""
    return _by_backpack(problem, BatchGrad, "grad_batch", lambda each: each.flatten(1).square().sum(1))


def _by_backpack(problem: Problem, extension: type, field: str, square: Callable[[Tensor], Tensor]) -> Norms:
    own = problem.copy()
    x, y = own.batches[0]
    model, loss = extend(own.model), extend(nn.CrossEntropyLoss())

    def norms() -> Tensor:
        with backpack(extension()):
            loss(model(x), y.flatten()).backward()
        missing = [name for name, parameter in model.named_parameters() if not hasattr(parameter, field)]
        if missing:
            raise LookupError(f"no {field} for {len(missing)} parameters, such as {missing[0]}")
        total = sum(square(getattr(parameter, field)) for parameter in model.parameters())
        assert isinstance(total, Tensor)
        for parameter in model.parameters():
            parameter.grad = None
            delattr(parameter, field)
        # Gradients are those of the mean.
        return total.sqrt() * len(x)

    return norms
