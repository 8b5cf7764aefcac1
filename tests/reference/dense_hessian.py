"""Slow twins of the Hessian: every column, on the live model, without any of the package's machinery."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def dense_hessian(model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """(P, P) over the parameters that require gradients, one row at a time by a second backward pass."""
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(loss(), leaves, create_graph=True, materialize_grads=True)
        entries = torch.cat([part.reshape(-1) for part in gradients])
        rows = []
        for entry in entries:
            if entry.requires_grad:
                row = torch.autograd.grad(entry, leaves, retain_graph=True, materialize_grads=True)
                rows.append(torch.cat([part.reshape(-1) for part in row]))
            else:
                rows.append(torch.zeros_like(entries))
    return torch.stack(rows).detach()


def differenced_hessian(model: nn.Module, loss: Callable[[], Tensor], step: float = 1e-5) -> Tensor:
    """(P, P) from first gradients alone: each parameter is moved in place, up and down, one at a time."""
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradient() -> Tensor:
        parts = torch.autograd.grad(loss(), leaves, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts])

    columns = []
    for leaf in leaves:
        flat = leaf.data.view(-1)
        for index in range(flat.numel()):
            before = float(flat[index])
            flat[index] = before + step
            above = gradient()
            flat[index] = before - step
            columns.append((above - gradient()) / (2 * step))
            flat[index] = before
    return torch.stack(columns, dim=1)


def hessian_times(model: nn.Module, loss: Callable[[], Tensor], vectors: Tensor) -> Tensor:
    """(P, K) products with vectors (P, K), for models whose Hessian is too large to write out."""
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(loss(), leaves, create_graph=True, materialize_grads=True)
        entries = torch.cat([part.reshape(-1) for part in gradients])
        products = [
            torch.autograd.grad(entries @ vector, leaves, retain_graph=True, materialize_grads=True)
            for vector in vectors.unbind(1)
        ]
    return torch.stack([torch.cat([part.reshape(-1) for part in product]) for product in products], dim=1)
