"""The slow twin of the tangent kernel: the whole Jacobian of all outputs, by ``torch.func``, multiplied with itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

Call = Callable[[nn.Module], Tensor]
"""All outputs of a model on some examples, (N, ...)."""


def jacobian(model: nn.Module, call: Call, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """∂f/∂θ, (N, C, P) for each parameter by name, in float64."""
    chosen = {
        name: p.detach()
        for name, p in model.named_parameters()
        if (p.requires_grad if names is None else name in names)
    }
    stage = _Stage(model, call)

    def outputs(values: dict[str, Tensor]) -> Tensor:
        found = functional_call(stage, {f"model.{name}": value for name, value in values.items()}, ())
        return found.reshape(len(found), -1)

    with sdpa_kernel(SDPBackend.MATH):
        found = jacrev(outputs)(chosen)
    return {name: part.detach().reshape(*part.shape[:2], -1).double() for name, part in found.items()}


def kernel(rows: dict[str, Tensor], columns: dict[str, Tensor]) -> Tensor:
    """(N, C, M, C), from Jacobians."""
    return sum(torch.einsum("nap,mbp->namb", rows[name], columns[name]) for name in rows)


def trace(whole: Tensor) -> Tensor:
    """(N, M): the sum over equal outputs."""
    return torch.einsum("ncmc->nm", whole)


def of_sum(whole: Tensor) -> Tensor:
    """(N, M): the kernel of Σ_c f_c / √C."""
    return whole.sum((1, 3)) / whole.shape[1]


class _Stage(nn.Module):
    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self) -> Tensor:
        return self.call(self.model)
