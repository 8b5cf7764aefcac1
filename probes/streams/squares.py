"""Squared norms of live gradients: left on the device until a step is over, and read all at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

PIECE = 1 << 20
"""Elements that are summed in float32 on a CPU: over twenty million the sum is .2 % short."""


def squares(gradient: Tensor) -> list[Tensor]:
    """Numbers (), on the gradient's device, whose sum is its squared norm. Nothing waits for them.

    Example:
        >>> squares(torch.tensor([3.0, 4.0]))
        [tensor(25.)]
    """
    # Backward passes with create_graph=True give gradients that carry a graph; ours must not grow it.
    gradient = gradient.detach()
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    flat = (torch.view_as_real(gradient) if gradient.is_complex() else gradient).reshape(-1)
    if flat.device.type != "cpu":
        return [torch.linalg.vector_norm(flat, dtype=torch.promote_types(flat.dtype, torch.float32)).square()]
    pieces = (flat,) if flat.numel() <= PIECE else flat.split(PIECE)
    if flat.dtype in (torch.float32, torch.float64):
        # Half the time of a norm.
        return [torch.dot(piece, piece) for piece in pieces]
    return [torch.linalg.vector_norm(piece, dtype=torch.float32).square() for piece in pieces]


def read(numbers: Sequence[Tensor]) -> list[float]:
    """The numbers on the host: one wait for each device and precision.

    Example:
        >>> read([torch.tensor(1.0), torch.tensor(2.0)])
        [1.0, 2.0]
    """
    together = defaultdict(list)
    for place, number in enumerate(numbers):
        together[number.device, number.dtype].append(place)
    found = [0.0] * len(numbers)
    for places in together.values():
        for place, value in zip(places, torch.stack([numbers[place] for place in places]).tolist(), strict=True):
            found[place] = value
    return found
