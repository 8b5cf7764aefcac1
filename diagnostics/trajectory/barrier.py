"""The loss along the straight line between two sets of weights, and the barrier on it.

barrier = max over α of L((1 − α) θ_a + α θ_b) − [(1 − α) L(θ_a) + α L(θ_b)]: how far the loss rises above the line
between its ends. It is 0 where L is convex between them, and stands in the way of averaging the two where it is not
(linear mode connectivity, arXiv 1912.05671; the barrier as in arXiv 2110.06296). Running statistics of batch
normalisation belong to neither point between, so in eval mode they are taken anew from the Objective's batches at
every point, both ends included (arXiv 2211.08403 shows what becomes of the barrier otherwise).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.objective import Objective
from diagnostics.quiet import quiet

POINTS = 11


@dataclass(frozen=True)
class LossBarrier:
    """The loss along a line.

    Attributes:
        barrier: the highest rise above the line between the ends; 0 where there is none.
        place: the α at which it is.
        alphas: (points,) from 0 to 1.
        losses: (points,) L at each.
    """

    barrier: Estimate
    place: float
    alphas: Tensor
    losses: Tensor

    def __str__(self) -> str:
        first, last = float(self.losses[0]), float(self.losses[-1])
        return f"barrier {self.barrier} at α = {self.place:.2g}, between losses {first:.4g} and {last:.4g}"


def loss_barrier(
    objective: Objective, first: Mapping[str, Tensor], last: Mapping[str, Tensor], *, points: int = POINTS
) -> LossBarrier:
    """Measure L along the line from ``first`` to ``last``; the model is left as it is.

    Args:
        objective: L. Its model says which parameters there are.
        first: the parameters at α = 0, by the model's names.
        last: those at α = 1.
        points: at how many points, ends included; between them the loss may rise higher.

    Raises:
        DiagnosticsError: a parameter is missing or of another shape, or fewer than three points.

    Source:
        Frankle et al., arXiv 1912.05671; Entezari et al., arXiv 2110.06296; Jordan et al., arXiv 2211.08403.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> objective = Objective(model, nn.MSELoss(), (torch.ones(3, 1), torch.zeros(3, 1)))
        >>> line = loss_barrier(objective, {"weight": torch.tensor([[-1.0]])}, {"weight": torch.tensor([[1.0]])})
        >>> float(line.barrier), float(line.losses[5])
        (0.0, 0.0)
    """
    if not isinstance(points, int) or points < 3:
        raise DiagnosticsError("points are too few for a barrier", given=repr(points), expected="3 or more")
    everything = objective.narrowed(lambda name, tensor: True)
    ends = [_values(everything, state, which) for state, which in ((first, "first"), (last, "last"))]
    alphas = torch.linspace(0.0, 1.0, points, dtype=torch.float64)
    found_losses = [_loss(everything, _between(ends[0], ends[1], float(alpha))) for alpha in alphas]
    losses = torch.tensor(found_losses, dtype=torch.float64)
    rise = losses - torch.lerp(losses[:1], losses[-1:], alphas)
    # The ends lie on the line, whatever rounding says.
    rise[0] = rise[-1] = 0.0
    place = int(rise.argmax())
    norms = _normalisations(objective.model)
    again = ", running statistics taken anew at each point" if norms and objective.mode == "eval" else ""
    how = f"largest of {points} points on the line, {objective.description}{again}"
    value = float(rise[place]) if bool(rise.isfinite().all()) else float("nan")
    found = exact(value, how) if value == value else Estimate(value, value, "exact", "the loss is not finite")
    return LossBarrier(found, float(alphas[place]), alphas, losses)


def loss_with_own_statistics(objective: Objective, parameters: Mapping[str, Tensor]) -> float:
    """L at parameters given by name, with running statistics that are taken from the Objective's own batches."""
    everything = objective.narrowed(lambda name, tensor: True)
    return _loss(everything, _values(everything, parameters, "parameters"))


def _values(objective: Objective, state: Mapping[str, Tensor], which: str) -> list[Tensor]:
    values = []
    for name, tensor in objective.space.items():
        value = state.get(name)
        if not isinstance(value, Tensor) or value.shape != tensor.shape:
            raise DiagnosticsError(
                f"{which} does not fit the model",
                given=f"{name}: {'missing' if value is None else tuple(getattr(value, 'shape', ()))}",
                expected=f"a tensor of shape {tuple(tensor.shape)}",
            )
        values.append(value.detach().to(tensor.device, tensor.dtype))
    return values


def _between(first: list[Tensor], last: list[Tensor], alpha: float) -> list[Tensor]:
    return [torch.lerp(start, end, alpha) for start, end in zip(first, last, strict=True)]


def _loss(objective: Objective, values: list[Tensor]) -> float:
    model = objective.model
    norms = _normalisations(model) if objective.mode == "eval" else []

    def lost() -> float:
        # Buffers are copies in here, so what is written to them is forgotten afterwards.
        momenta = [norm.momentum for norm in norms]
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for index in range(len(objective.batches) if norms else 0):
                objective.loss_in_place(objective.fresh(index))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()
        return sum(
            weight * float(objective.loss_in_place(objective.fresh(index)))
            for index, weight in enumerate(objective.weights)
            if weight
        )

    with quiet(model, objective.mode), torch.no_grad():
        return objective.placed(values, lost)


def _normalisations(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
