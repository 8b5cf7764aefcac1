"""The loss on a line or a plane through the parameters: forward passes alone, at copies of them.

What a slice shows is the loss along these directions and no others: of P dimensions it leaves out all but one or two.
A random direction says little about the sharpest ones, which are few; eigenvectors of the Hessian show those.

Source: Goodfellow et al., arXiv 1412.6544 (lines); Li et al., arXiv 1712.09913 (planes, filter normalisation).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diagnostics.arguments import real_number, require_objective, whole_number
from diagnostics.errors import DiagnosticsError
from diagnostics.landscape.directions import random_direction
from diagnostics.objective import Objective
from diagnostics.stability.directional import checked_direction, moved


@dataclass(frozen=True, repr=False)
class LossSlice:
    """The loss on a line or a plane.

    Attributes:
        losses: (A,) on a line, (A, B) on a plane, float64; not finite where the loss is not.
        alphas: (A,) how far along the first direction, in its own length; 0 is among them.
        betas: (B,) along the second; None for a line.
        loss: L(θ), at the centre.
        how: in one line.
    """

    losses: Tensor
    alphas: Tensor
    betas: Tensor | None
    loss: float
    how: str

    @property
    def lowest(self) -> tuple[float, ...]:
        """Where on the slice the loss is lowest: α, and β on a plane."""
        flat = torch.where(torch.isfinite(self.losses), self.losses, math.inf).flatten()
        place = int(flat.argmin())
        if self.betas is None:
            return (float(self.alphas[place]),)
        return float(self.alphas[place // len(self.betas)]), float(self.betas[place % len(self.betas)])

    def __str__(self) -> str:
        finite = self.losses[torch.isfinite(self.losses)]
        kind = "line" if self.betas is None else "plane"
        span = f"{float(finite.min()):.4g} to {float(finite.max()):.4g}" if len(finite) else "nowhere finite"
        lost = self.losses.numel() - len(finite)
        more = f", not finite at {lost} of {self.losses.numel()} points" if lost else ""
        return f"loss {self.loss:.4g} at the centre of a {kind}, {span} on it{more} ({self.how})"

    def __repr__(self) -> str:
        return f"LossSlice({self})"


def loss_slice(
    objective: Objective,
    direction: Tensor | None = None,
    second: Tensor | None = None,
    *,
    span: float = 1.0,
    points: int = 25,
    progress: Callable[[float], None] | None = None,
) -> LossSlice:
    """L(θ + αu) on a line, or L(θ + αu + βv) on a plane.

    Costs a forward pass of all batches for each point: ``points``, or its square on a plane. The parameters, and the
    statistics of batch normalisation, are not touched: in eval mode those kept at θ hold everywhere, which a step can
    make wrong; in train mode every point has those of its own batches.

    Args:
        objective: whose loss.
        direction: u, (P,): an eigenvector, the difference of two checkpoints; by default ``random_direction``.
        second: v, (P,), for a plane. It need not be perpendicular to u; the picture is, though.
        span: α and β run from -span to span.
        points: on each axis; an even number becomes the next odd one, so that the centre is a point.
        progress: called with the share done.

    Raises:
        DiagnosticsError: a direction of another shape, not finite or zero; two that are parallel; an argument out of
            range.

    Source: arXiv 1712.09913.

    Example:
        >>> model, data = nn.Linear(1, 1, bias=False), (torch.ones(4, 1), torch.zeros(4, 1))
        >>> _ = nn.init.constant_(model.weight, 0.5)
        >>> found = loss_slice(Objective(model, nn.MSELoss(), data), torch.ones(1), span=1.0, points=5)  # (w + α)²
        >>> found.losses.tolist(), found.lowest
        ([0.25, 0.0, 0.25, 1.0, 2.25], (-0.5,))
    """
    require_objective(objective)
    span = real_number("span is out of range", span, "a number above 0", lambda value: 0 < value < math.inf)
    points = whole_number("points are too few", points, "a whole number, at least 3", 3) | 1
    if direction is None and second is not None:
        raise DiagnosticsError("second has no first direction", given="direction None", expected="two directions")
    first = random_direction(objective) if direction is None else checked_direction(objective, direction, "direction")
    other = None if second is None else checked_direction(objective, second, "second")
    if other is not None and _cosine(first, other) > 1.0 - 1e-10:
        raise DiagnosticsError(
            "the two directions are parallel: they span a line",
            given=f"cosine {_cosine(first, other):.12g}",
            expected="two directions of a plane",
        )
    axis = torch.linspace(-span, span, points, dtype=torch.float64)
    axis[points // 2] = 0.0
    theta = objective.space.flatten(objective.space.values()).double()
    shifts = [(float(alpha), 0.0) for alpha in axis]
    if other is not None:
        shifts = [(float(alpha), float(beta)) for alpha in axis for beta in axis]
    losses = []
    for place, (alpha, beta) in enumerate(shifts):
        step = alpha * first if other is None else alpha * first + beta * other
        losses.append(objective.loss_at(moved(objective, theta, step)))
        if progress is not None:
            progress((place + 1) / len(shifts))
    found = torch.tensor(losses, dtype=torch.float64)
    return LossSlice(
        losses=found if other is None else found.view(points, points),
        alphas=axis,
        betas=None if other is None else axis.clone(),
        loss=losses[len(losses) // 2],
        how=_how(objective, direction is None, len(losses)),
    )


def _cosine(one: Tensor, other: Tensor) -> float:
    return abs(float(torch.dot(one / torch.linalg.vector_norm(one), other / torch.linalg.vector_norm(other))))


def _how(objective: Objective, drawn: bool, count: int) -> str:
    text = f"{count} losses{', a random filter-normalised direction' if drawn else ''}"
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in objective.model.modules()):
        own = objective.mode == "train"
        text += f"; batch normalisation by {'each batch itself' if own else 'the statistics kept at the centre'}"
    return f"{text}; {objective.description}"
