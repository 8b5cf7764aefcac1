"""The step that SGD with momentum would take on a minibatch, as torch takes it.

torch keeps m ← βm + (1−τ)g, with τ the dampening, and steps along m, or along g + βm with Nesterov. Along both the step
is an affine function of the minibatch's gradient: s = a g + c, with c from the live buffers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from diagnostics.estimate import Estimate
from diagnostics.parameters import ParameterSpace
from diagnostics.stability.preconditioner import Scaling, scaling
from diagnostics.stability.rules import unwrap_optimizer


@dataclass(frozen=True)
class MomentumStep:
    """s = a g + c, coordinate by coordinate.

    Attributes:
        share: a, shape (P,), float64; zero where the optimizer does not move a parameter.
        carried: c, shape (P,), float64: what the buffers add.
    """

    share: Tensor
    carried: Tensor

    def of(self, gradient: Tensor) -> Tensor:
        """s, shape (P,), for a gradient (P,) that has the decay in it."""
        return self.share * gradient.double() + self.carried


def momentum_step(
    optimizer: Optimizer, space: ParameterSpace, scaled: Scaling | None = None
) -> MomentumStep | Estimate | None:
    """The step along the selected parameters; None without momentum, undetermined where it is not known.

    Args:
        optimizer: the live optimizer.
        space: the selected parameters.
        scaled: the optimizer's scaling of them, where it has been read already.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> momentum_step(optimizer, ParameterSpace(model)).of(torch.ones(2))
        tensor([1.9000, 1.9000], dtype=torch.float64)
    """
    inner = unwrap_optimizer(optimizer)
    if type(inner) is not SGD or not any(group["momentum"] for group in inner.param_groups):
        return None
    scaled = scaling(optimizer, space) if scaled is None else scaled
    if scaled.uniform is None:
        return _unknown("the parameter groups differ: they do not step along one direction")
    momentum = scaled.uniform.momentum
    buffers = [inner.state.get(tensor, {}).get("momentum_buffer") for tensor in space.tensors]
    if momentum.beta == 0.0:
        return None
    if all(buffer is None for buffer in buffers):
        return _unknown("the optimizer has no momentum buffer yet")
    with torch.inference_mode(False), torch.no_grad():
        zeros = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in space.tensors]
        # torch's first buffer is the gradient itself, without dampening.
        fresh = [zero + (1.0 if buffer is None else momentum.gain) for zero, buffer in zip(zeros, buffers, strict=True)]
        kept = [zero if buffer is None else zero + buffer for zero, buffer in zip(zeros, buffers, strict=True)]
        moved = (scaled.root > 0).double()
        return MomentumStep(
            share=moved * (momentum.direct + momentum.buffer * _flat(fresh, space)),
            carried=moved * (momentum.buffer * momentum.beta * _flat(kept, space)),
        )


def _flat(parts: list[Tensor], space: ParameterSpace) -> Tensor:
    """One vector (P,) in double precision, whatever that of the parameters is."""
    return torch.cat([part.reshape(-1).to(space.device) for part in parts])


def _unknown(reason: str) -> Estimate:
    return Estimate(math.nan, math.nan, "standard error", reason)
