"""The tangent kernel as PyTorch's tutorial has it, by a Jacobian, and by nngeometry."""

from __future__ import annotations

import torch
from nngeometry.gram import GramMatrix
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset


def jacobian_contraction(model: nn.Module, x: Tensor) -> Tensor:
    """Jacobians of single examples by ``vmap(jacrev)``, multiplied parameter by parameter."""
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def outputs(values: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(model, values, (one.unsqueeze(0),)).squeeze(0)

    # The fused kernel has no rule for vmap.
    with sdpa_kernel(SDPBackend.MATH):
        found = vmap(jacrev(outputs), (None, 0))(values, x)
    parts = [part.flatten(2) for part in found.values()]
    whole = torch.stack([torch.einsum("Naf,Mbf->NaMb", part, part) for part in parts]).sum(0)
    return whole.flatten(2).flatten(0, 1)


def nngeometry_gram(model: nn.Module, x: Tensor) -> Tensor:
    """The Gram matrix that contracts inputs and gradients in hooks, for each pair of outputs again."""
    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=len(x))
    data = GramMatrix(model, loader, function=lambda *batch: model(batch[0])).data
    return data.permute(1, 0, 3, 2).flatten(2).flatten(0, 1)
