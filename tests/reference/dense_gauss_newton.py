"""Slow twins of the Gauss-Newton and Fisher matrices: from their definitions, on the live model, by plain autograd.

G = Jᵀ (∂²ℓ/∂f²) J for the loss ℓ of the outputs f of one whole batch, with the Jacobian J written out row by row. The
empirical Fisher matrix Σ_t c_t g_t g_tᵀ is one backward pass per term of ℓ = Σ_t c_t ℓ_t.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def jacobian(model: nn.Module, outputs: Callable[[], Tensor]) -> Tensor:
    """(outputs, P) over the parameters that require gradients, of any tensor computed from them."""
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        entries = outputs().flatten()
        rows = [torch.autograd.grad(entry, leaves, retain_graph=True, materialize_grads=True) for entry in entries]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def dense_gauss_newton(model: nn.Module, outputs: Callable[[], Tensor], loss: Callable[[Tensor], Tensor]) -> Tensor:
    """(P, P): the Hessian of the loss in the outputs, between two Jacobians of the outputs in the parameters."""
    J = jacobian(model, outputs)
    put_out = outputs().detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(put_out), put_out, create_graph=True)
    # A loss linear in its outputs bends nowhere; autograd then has no graph to follow.
    rows = [
        torch.autograd.grad(entry, put_out, retain_graph=True, materialize_grads=True)[0].flatten()
        if entry.requires_grad
        else torch.zeros_like(slope).flatten()
        for entry in slope.flatten()
    ]
    return J.T @ torch.stack(rows) @ J


def dense_empirical_fisher(model: nn.Module, terms: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
    """(P, P) from ``terms``: the loss of each term (T,), and its weight (T,) in the loss of the batch."""
    gradients = jacobian(model, lambda: terms()[0])
    return gradients.T @ (terms()[1].detach()[:, None] * gradients)
