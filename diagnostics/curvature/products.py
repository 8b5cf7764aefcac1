"""The routes to a Hessian-vector product.

*Double backward*: Hv = ∇(∇L·v), exact to rounding. With one batch the graph of ∇L is built once and kept, which
makes each further
product cheaper than a gradient and a half; with several it is rebuilt per batch, so that memory stays that of one
batch.
*Central differences*: Hv ≈ (∇L(θ+hv) − ∇L(θ−hv)) / 2h, for operations that have no second derivative. The step is
h = ε^⅓ (1+‖θ‖) / ‖v‖: without ‖θ‖ and ‖v‖ in it, rounding or truncation takes over for large models or unscaled
vectors.
Forward-over-backward is never taken: torch has returned wrong values for normalisation layers there (pytorch#196700).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.quiet import quiet

DOUBLE_BACKWARD = "double backward"
CENTRAL_DIFFERENCES = "central differences"


class Route(Protocol):
    """One way to multiply: a name for the reader, an error, and the product of one vector (P,)."""

    @property
    def name(self) -> str:
        """For the reader."""

    @property
    def error(self) -> float:
        """Relative, of one product."""

    def product(self, vector: Tensor) -> Tensor:
        """Hv, shape (P,)."""


def route_to_products(objective: Objective, values: Sequence[Tensor], route: str | None) -> Route:
    """The route asked for; with None, double backward with central differences to fall back on."""
    if route is None:
        return _FirstThatWorks(objective, values)
    if route == DOUBLE_BACKWARD:
        return _DoubleBackward(objective, values)
    if route == CENTRAL_DIFFERENCES:
        return _CentralDifferences(objective, values)
    raise DiagnosticsError(
        "route is unknown", given=repr(route), expected=f"{DOUBLE_BACKWARD!r}, {CENTRAL_DIFFERENCES!r} or None"
    )


class _DoubleBackward:
    def __init__(self, objective: Objective, values: Sequence[Tensor]) -> None:
        self.objective = objective
        self.values = values
        self.keeps = len(objective.batches) == 1
        self.name = f"{DOUBLE_BACKWARD}, {'kept' if self.keeps else 'fresh'} graph"
        self.error = 8 * torch.finfo(objective.space.dtype).eps
        self._kept: tuple[list[Tensor], tuple[Tensor, ...]] | None = None

    def product(self, vector: Tensor) -> Tensor:
        objective, space = self.objective, self.objective.space
        with quiet(objective.model, objective.mode):
            total = torch.zeros(space.total, dtype=space.dtype, device=space.device)
            for index, weight in enumerate(objective.weights):
                if weight:
                    parts = self._times(*self._gradient_graph(index), space.unflatten(vector))
                    total.add_(space.flatten(parts), alpha=weight)
        return total

    def _gradient_graph(self, index: int) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        if self._kept is not None:
            return self._kept
        leaves = [value.detach().requires_grad_() for value in self.values]
        loss = self.objective.batch_loss(index, leaves)
        graph = leaves, self.objective.differentiate(loss, leaves, create_graph=True)
        if self.keeps:
            self._kept = graph
        return graph

    def _times(
        self, leaves: list[Tensor], gradients: tuple[Tensor, ...], vector: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        # A gradient without a graph is constant in θ: its rows of the Hessian are zero.
        varying = [(part, weight) for part, weight in zip(gradients, vector, strict=True) if part.requires_grad]
        if not varying:
            return tuple(torch.zeros_like(leaf) for leaf in leaves)
        outputs, weights = zip(*varying, strict=True)
        return torch.autograd.grad(
            outputs, leaves, grad_outputs=weights, retain_graph=self.keeps, materialize_grads=True
        )


class _CentralDifferences:
    def __init__(self, objective: Objective, values: Sequence[Tensor]) -> None:
        self.objective = objective
        self.name = CENTRAL_DIFFERENCES
        self.error = float("nan")
        self._theta = objective.space.flatten(values)
        epsilon = torch.finfo(min((value.dtype for value in values), key=lambda dtype: torch.finfo(dtype).bits)).eps
        self._reach = epsilon ** (1 / 3) * (1.0 + float(torch.linalg.vector_norm(self._theta)))

    def product(self, vector: Tensor) -> Tensor:
        length = float(torch.linalg.vector_norm(vector))
        if length == 0.0:
            return torch.zeros_like(vector)
        product = self._difference(vector, self._reach / length)
        if self.error != self.error:
            # A second step size, once: what changes between the two is truncation and rounding, not curvature.
            other = self._difference(vector, 0.5 * self._reach / length)
            size = float(torch.linalg.vector_norm(product))
            self.error = float(torch.linalg.vector_norm(product - other)) / size if size else 0.0
        return product

    def _difference(self, vector: Tensor, step: float) -> Tensor:
        space = self.objective.space
        _, above = self.objective.loss_and_gradient(space.unflatten(self._theta + step * vector))
        _, below = self.objective.loss_and_gradient(space.unflatten(self._theta - step * vector))
        return (above - below) / (2.0 * step)


class _FirstThatWorks:
    """Double backward until it is refused; then central differences, with the refusal in the name."""

    def __init__(self, objective: Objective, values: Sequence[Tensor]) -> None:
        self._route: Route = _DoubleBackward(objective, values)
        self._objective = objective
        self._values = values
        self._proved = False

    @property
    def name(self) -> str:
        return self._route.name

    @property
    def error(self) -> float:
        return self._route.error

    def product(self, vector: Tensor) -> Tensor:
        if self._proved:
            return self._route.product(vector)
        try:
            product = self._route.product(vector)
        except (RuntimeError, NotImplementedError) as refusal:
            if isinstance(refusal, torch.OutOfMemoryError):
                raise
            product = self._by_differences(vector, refusal)
        self._proved = True
        return product

    def _by_differences(self, vector: Tensor, refusal: Exception) -> Tensor:
        reason = str(refusal).strip().splitlines()[0][:160] if str(refusal).strip() else type(refusal).__name__
        route = _CentralDifferences(self._objective, self._values)
        try:
            product = route.product(vector)
        except (RuntimeError, NotImplementedError) as second:
            raise DiagnosticsError(
                "no route to a Hessian-vector product works for this model",
                given=f"double backward: {reason}; central differences: {second}",
                expected="a loss that can be differentiated at least once",
            ) from second
        route.name = f"{CENTRAL_DIFFERENCES} (double backward refused: {reason})"
        self._route = route
        return product
