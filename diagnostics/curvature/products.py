"""The routes to a Hessian-vector product.

*Double backward*: Hv = ∇(∇L·v), exact to rounding. With one batch the graph of ∇L is built once and kept, which makes
each further product cheaper than a gradient and a half; with several it is rebuilt per batch, so that memory stays
that of one batch. *Central differences*: Hv ≈ (∇L(θ+hv) − ∇L(θ−hv)) / 2h, for operations that have no second
derivative. The step is h = ε^⅓ (1+‖θ‖) / ‖v‖: without ‖θ‖ and ‖v‖ in it, rounding or truncation takes over for large
models or unscaled vectors. Double backward can be wrong without a word: torch's own for ``weight_norm``, and any
hand-written backward pass that autograd does not see into, also one marked ``once_differentiable``. So it is compared
with central differences once per Objective, on a random vector. Kinks (ReLU, max pooling) make the two differ as
well, but then two step sizes of the differences disagree as much.

Forward-over-backward is never taken: torch has returned wrong values for normalisation layers there (pytorch#196700).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.quiet import quiet

DOUBLE_BACKWARD = "double backward"
CENTRAL_DIFFERENCES = "central differences"

DISAGREEMENT = 0.01
"""Largest relative distance between the two routes that is put down to the differences."""


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
        graph = leaves, self.objective.batch_gradient(index, leaves, create_graph=True)[1]
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
        return self.objective.placed(
            leaves,
            lambda: torch.autograd.grad(
                outputs, leaves, grad_outputs=weights, retain_graph=self.keeps, materialize_grads=True
            ),
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
        if math.isnan(self.error):
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
    """Double backward until it is refused or found wrong; then central differences, with the reason in the name."""

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
            lines = str(refusal).strip().splitlines() or [type(refusal).__name__]
            product = self._by_differences(vector, f"refused: {lines[0][:160]}")
        else:
            if fault := self._fault():
                product = self._by_differences(vector, fault)
        self._proved = True
        return product

    def _fault(self) -> str:
        """How far double backward is off, in words; empty when it agrees with central differences."""
        space, verified = self._objective.space, self._objective.verified_routes
        if DOUBLE_BACKWARD in verified:
            return ""
        draw = torch.randn(space.total, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        vector = draw.to(space.device, space.dtype)
        differences = _CentralDifferences(self._objective, self._values)
        expected = differences.product(vector)
        size = float(torch.linalg.vector_norm(expected))
        off = float(torch.linalg.vector_norm(self._route.product(vector) - expected))
        if off > max(DISAGREEMENT, 4 * differences.error) * size:
            return f"is off by {off / size:.0%} here"
        verified.add(DOUBLE_BACKWARD)
        return ""

    def _by_differences(self, vector: Tensor, reason: str) -> Tensor:
        route = _CentralDifferences(self._objective, self._values)
        try:
            product = route.product(vector)
        except (RuntimeError, NotImplementedError) as second:
            raise DiagnosticsError(
                "no route to a Hessian-vector product works for this model",
                given=f"double backward {reason}; central differences: {second}",
                expected="a loss that can be differentiated at least once",
            ) from second
        route.name = f"{CENTRAL_DIFFERENCES} (double backward {reason})"
        self._route = route
        return product
