"""Products by central differences: slower and less exact, and possible wherever a loss can be differentiated once.

Hv ≈ (∇L(θ+hv) − ∇L(θ−hv)) / 2h with h = ε^⅓ (1+‖θ‖) / ‖v‖: without ‖θ‖ and ‖v‖ in the step, rounding or truncation
takes over for large models and for unscaled vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from diagnostics.objective import Objective

T = TypeVar("T")

CENTRAL_DIFFERENCES = "central differences"


def reach(values: Sequence[Tensor]) -> float:
    """How far to move along a unit vector: ε^⅓ (1+‖θ‖), with ε of the coarsest dtype."""
    epsilon: float = max(torch.finfo(value.dtype).eps for value in values)
    size = math.sqrt(sum(float(torch.linalg.vector_norm(value)) ** 2 for value in values))
    far: float = epsilon ** (1 / 3) * (1.0 + size)
    return far


class CentralDifferences:
    """The Hessian from gradients on either side.

    Args:
        objective: what to differentiate.
        values: θ, one tensor per selected parameter.
        groups: slices of the parameters; with several, one block of the Hessian for each.
        reason: why no better route is taken, for the reader.
    """

    def __init__(
        self, objective: Objective, values: Sequence[Tensor], groups: Sequence[slice], reason: str = ""
    ) -> None:
        self.objective = objective
        self.name = f"{CENTRAL_DIFFERENCES} ({reason})" if reason else CENTRAL_DIFFERENCES
        self.error = float("nan")
        self._theta = objective.space.flatten(values)
        self.reach = reach(values)
        bounds = [0]
        for size in objective.space.sizes:
            bounds.append(bounds[-1] + size)
        self._spans = [slice(bounds[group.start], bounds[group.stop]) for group in groups]

    def steadily(self, action: Callable[[], T]) -> T:
        """Nothing can be set up once: every product runs the model elsewhere."""
        return action()

    def expect(self, products: int) -> None:
        """There is no other route to take."""
        del products

    def of_batch(self, index: int, vector: Tensor) -> Sequence[Tensor]:
        """Gradients are differenced over all batches at once: nothing to show."""
        return ()

    def products(self, block: Tensor) -> Tensor:
        """(P, K) from (P, K)."""
        result = torch.zeros_like(block)
        for column in range(block.shape[1]):
            for span in self._spans:
                direction = torch.zeros_like(block[:, column])
                direction[span] = block[span, column]
                result[span, column] = self.product(direction)[span]
        return result

    def product(self, vector: Tensor) -> Tensor:
        """Hv, shape (P,); the first also measures the error, from a second step size."""
        length = float(torch.linalg.vector_norm(vector))
        if length == 0.0:
            return torch.zeros_like(vector)
        if math.isnan(self.error):
            self._measure_error()
        return self.difference(vector, self.reach / length)

    def _measure_error(self) -> None:
        """On a random vector: along the one that is asked for first there may be no curvature at all."""
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(len(self._theta), generator=generator, device="cpu").to(self._theta)
        step = self.reach / float(torch.linalg.vector_norm(vector))
        # What changes between two steps is truncation and rounding, not curvature.
        one, other = self.difference(vector, step), self.difference(vector, 0.5 * step)
        size = float(torch.linalg.vector_norm(one))
        self.error = float(torch.linalg.vector_norm(one - other)) / size if size else 0.0

    def difference(self, vector: Tensor, step: float) -> Tensor:
        """(∇L(θ+hv) − ∇L(θ−hv)) / 2h for a step h."""
        space = self.objective.space
        _, above = self.objective.loss_and_gradient(space.unflatten(self._theta + step * vector))
        _, below = self.objective.loss_and_gradient(space.unflatten(self._theta - step * vector))
        return (above - below) / (2.0 * step)
