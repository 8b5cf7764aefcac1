"""Random directions that can be compared between networks: as long, filter by filter, as the weights themselves.

A network of ReLUs is the same function with one layer twice as large and the next half as large, and so is one with
batch normalisation: a step of fixed length says nothing there. A direction whose filters are as long as those of the
weights is scaled along with them.

Source: Li et al., arXiv 1712.09913.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diagnostics.arguments import require_objective, whole_number
from diagnostics.curvature.draws import random_stream
from diagnostics.objective import Objective
from diagnostics.stability.directional import checked_direction


def random_direction(objective: Objective, seed: int = 0) -> Tensor:
    """A filter-normalised Gaussian direction (P,), in float64.

    Biases, and scales and shifts of normalisation, are not moved: they are no filters, and a plot of them is mostly of
    their own size.

    Args:
        objective: whose parameters.
        seed: of the Gaussian numbers.

    Raises:
        DiagnosticsError: no parameter has more than one dimension.

    Source: arXiv 1712.09913.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> objective = Objective(model, torch.nn.MSELoss(), (torch.randn(4, 3), torch.randn(4, 2)))
        >>> filters = random_direction(objective)[:6].view(2, 3)
        >>> bool(torch.allclose(filters.norm(dim=1), model.weight.double().norm(dim=1)))
        True
    """
    require_objective(objective)
    seed = whole_number("seed is no seed", seed, "a whole number, at least 0", 0)
    draw = torch.randn(objective.num_parameters, generator=random_stream(seed), dtype=torch.float64)
    return filter_normalised(objective, draw)


def filter_normalised(objective: Objective, direction: Tensor) -> Tensor:
    """A direction with each filter scaled to the length of the weight's own, (P,), in float64.

    A filter is all that leads to one unit: a row of a linear layer, the kernels of one output channel. Parameters of
    one dimension are left out.

    Args:
        objective: whose parameters.
        direction: (P,).

    Raises:
        DiagnosticsError: a direction of another shape, not finite, or zero once it is normalised.

    Source: arXiv 1712.09913.
    """
    require_objective(objective)
    vector = checked_direction(objective, direction, "direction")
    pieces = []
    for part, (_, weight) in zip(vector.split(list(objective.space.sizes)), objective.space.items(), strict=True):
        if weight.ndim < 2:
            pieces.append(torch.zeros_like(part))
            continue
        filters, own = part.view(weight.shape[0], -1), weight.detach().double().reshape(weight.shape[0], -1)
        lengths = torch.linalg.vector_norm(filters, dim=1, keepdim=True)
        wanted = torch.linalg.vector_norm(own, dim=1, keepdim=True)
        pieces.append((filters * torch.where(lengths > 0, wanted / lengths, 0.0)).flatten())
    return checked_direction(objective, torch.cat(pieces), "the filter-normalised direction")
