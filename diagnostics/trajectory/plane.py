"""The loss on the plane in which a path of checkpoints mostly lies: that of its two principal directions.

The plane goes through the mean of the checkpoints. The path itself is not in it, but beside it, by what the two
directions do not explain: the loss drawn under a checkpoint is that of its shadow, and both are given.

Source: Li et al., arXiv 1712.09913 (paths in their principal directions).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.stability.directional import moved

POINTS = 11
MARGIN = 0.25
"""Of the path's extent on either axis, added on either side."""

BLOCK = 1 << 20
"""Parameters at a time."""

FLAT = 1e-10
"""Second over first variance at which the path is a line, but for rounding."""


@dataclass(frozen=True)
class PathPlane:
    """The loss on a plane through a path.

    Attributes:
        losses: (A, B) float64, at α of the first direction and β of the second; not finite where the loss is not.
        alphas: (A,) in units of weights.
        betas: (B,) likewise.
        coordinates: (K, 2) of the checkpoints' shadows.
        shadows: (K,) the loss there.
        explained: the share of the path's variance that lies in the plane.
        how: in one line.
    """

    losses: Tensor
    alphas: Tensor
    betas: Tensor
    coordinates: Tensor
    shadows: Tensor
    explained: float
    how: str


def path_plane(objective: Objective, checkpoints: Sequence[Tensor], *, points: int = POINTS) -> PathPlane:
    """Take the loss on the plane of a path's two principal directions.

    Costs a forward pass of all batches for each point and each checkpoint. In eval mode the running statistics are
    those of the objective's own model.

    Args:
        objective: whose loss.
        checkpoints: three or more vectors of the selected parameters, (P,), in the order of the path.
        points: on each axis.

    Raises:
        DiagnosticsError: fewer than three, ones that do not fit or are not finite, or a path that is a line.

    Example:
        >>> from torch import nn
        >>> model, data = nn.Linear(2, 1, bias=False), (torch.eye(2), torch.zeros(2, 1))
        >>> path = [torch.tensor(place) for place in ([2.0, 0.0], [1.0, 1.0], [0.0, 0.0])]
        >>> found = path_plane(Objective(model, nn.MSELoss(), data), path, points=3)
        >>> [round(float(loss), 6) for loss in found.shadows], round(found.explained, 6)
        ([2.0, 1.0, 0.0], 1.0)
    """
    fits = all(one.shape == (objective.num_parameters,) for one in checkpoints)
    if len(checkpoints) < 3 or not fits:
        raise DiagnosticsError(
            "a plane needs a path",
            given=f"{len(checkpoints)} vectors" if fits else f"shapes {[tuple(one.shape) for one in checkpoints]}",
            expected=f"three or more of shape ({objective.num_parameters},)",
        )
    if not all(torch.isfinite(one).all() for one in checkpoints):
        raise DiagnosticsError("a checkpoint is not finite", expected="finite parameters")
    # Block by block: all checkpoints at once in float64 would take several times the memory of the models.
    gram = sum((centred @ centred.mT for _, centred in _blocks(checkpoints)), torch.zeros(()))
    values, vectors = torch.linalg.eigh(gram.cpu())
    first, second = float(values[-1]), float(values[-2])
    if second <= FLAT * first:
        raise DiagnosticsError("the path is a straight line", given=f"{len(checkpoints)} points", expected="a plane")
    coordinates = vectors.flip(1)[:, :2] * values.flip(0)[:2].sqrt()
    # Of the two signs the one in which the path ends to the right of, and above, where it began.
    coordinates = coordinates * torch.where(coordinates[-1] < coordinates[0], -1.0, 1.0)
    weights = (coordinates / values.flip(0)[:2]).to(checkpoints[0].device)
    mean = torch.cat([middle for middle, _ in _blocks(checkpoints)])
    directions = torch.cat([centred.mT @ weights for _, centred in _blocks(checkpoints)])
    axes = [_axis(coordinates[:, place], points) for place in range(2)]

    def loss(alpha: float, beta: float) -> float:
        step = directions @ torch.tensor([alpha, beta], dtype=torch.float64, device=mean.device)
        return objective.loss_at(moved(objective, mean, step))

    losses = [[loss(alpha, beta) for beta in axes[1].tolist()] for alpha in axes[0].tolist()]
    return PathPlane(
        losses=torch.tensor(losses, dtype=torch.float64),
        alphas=axes[0],
        betas=axes[1],
        coordinates=coordinates,
        shadows=torch.tensor([loss(*pair) for pair in coordinates.tolist()], dtype=torch.float64),
        explained=(first + second) / float(values.clamp_min(0.0).sum()),
        how=f"{points * points} losses on {objective.description}",
    )


def _blocks(checkpoints: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The mean of some parameters, and (K, some) what lies around it, in float64."""
    for parts in zip(*(one.detach().split(BLOCK) for one in checkpoints), strict=True):
        block = torch.stack([part.double() for part in parts])
        yield block.mean(0), block - block.mean(0)


def _axis(coordinates: Tensor, points: int) -> Tensor:
    low, high = float(coordinates.min()), float(coordinates.max())
    room = MARGIN * (high - low)
    return torch.linspace(low - room, high + room, points, dtype=torch.float64)
