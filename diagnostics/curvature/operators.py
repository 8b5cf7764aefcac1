"""The curvature matrices of an Objective: Hessian, Gauss-Newton, Fisher and empirical Fisher.

The Hessian of a network with P parameters has P² entries; everything here needs only v ↦ Hv, which costs about as
much as two gradients (Pearlmutter 1994). An operator is taken at the parameters as they are when it is made, and
stays there while training moves on.

Gauss-Newton, Fisher and empirical Fisher are Jᵀ B J (see ``jacobian`` and ``output_loss``): positive semi-definite for
a convex loss, and cheaper. Gauss-Newton is the Hessian without the curvature of the model itself. The Fisher matrix, in
expectation over labels drawn from the model, equals it for cross-entropy and mean squared error. The empirical Fisher
takes the true labels instead, and is another matrix (arXiv 1905.12558).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Self, TypeVar

import torch
from torch import Tensor

from diagnostics.curvature.layers import Layer, layers_of
from diagnostics.curvature.operator import Operator
from diagnostics.curvature.products.jacobian import JacobianRoute, Middle
from diagnostics.curvature.products.ladder import Route, hessian_route
from diagnostics.errors import DiagnosticsError
from diagnostics.microbatch import in_microbatches
from diagnostics.objective import Objective
from diagnostics.output_loss import OutputLoss, OutputMap
from diagnostics.parameters import Selection

T = TypeVar("T")


class _OfObjective(Operator):
    """What the operators share: an Objective, narrowed and cut as asked, and a route to products."""

    def __init__(self, objective: Objective, params: Selection, microbatch: int | None, by_layer: bool) -> None:
        if not isinstance(objective, Objective):
            raise DiagnosticsError(
                "objective is not an Objective",
                given=type(objective).__name__,
                expected="a model with its loss and batches",
                attempt=f"{type(self).__name__}(Objective(model, loss, batches))",
            )
        if params is not None:
            objective = objective.narrowed(params)
        if microbatch is not None:
            objective = in_microbatches(objective, microbatch)
        space = objective.space
        super().__init__(space.total, space.dtype, space.device)
        self.objective = objective
        self.layers: tuple[Layer, ...] = layers_of(space) if by_layer else ()
        self._groups = [layer.group for layer in self.layers] or [slice(0, len(space.names))]
        self._values = space.values()
        self._surroundings = objective.surroundings()
        self._within = False
        self._route: Route = self._choose_route()

    @abstractmethod
    def _choose_route(self) -> Route:
        """How this operator multiplies."""

    @property
    def route(self) -> str:
        """How products are taken."""
        return self._route.name + (", by layer" if self.layers else "")

    @property
    def product_error(self) -> float:
        """Relative error of a product."""
        return self._route.error

    def steadily(self, action: Callable[[], T]) -> T:
        """Run an action that takes many products."""
        if self._within:
            return action()
        now = self.objective.surroundings()
        if now is not None and self._surroundings is not None and now != self._surroundings:
            raise DiagnosticsError(
                f"the model has changed since this {type(self).__name__} was made",
                given="a buffer or a parameter outside the selection was written to",
                expected="one fixed model for all products",
                attempt=f"{type(self).__name__}(objective) anew",
            )
        self._within = True
        try:
            return self._route.steadily(action)
        finally:
            self._within = False

    def expect(self, products: int) -> None:
        """Be told that so many products are coming."""
        self._route.expect(products)

    def rebuilt(self) -> Self:
        """The same operator with graphs of its own: what varies between evaluations shows between the two."""
        other = copy(self)
        other._route, other.matvecs = other._choose_route(), 0
        return other

    def blame(self, vector: Tensor) -> str:
        """The first batch and parameter at which a product is not finite."""
        space, vector = self.objective.space, vector.to(self.device, self.dtype)
        if not bool(torch.isfinite(vector).all()):
            return "the vector itself is not finite"
        for name, value in zip(space.names, self._values, strict=True):
            if not bool(torch.isfinite(value).all()):
                return f"parameter {name!r} is not finite"
        for index, weight in enumerate(self.objective.weights):
            if not weight:
                continue
            loss, gradient = self.objective.batch_loss_and_gradient(index, self._values)
            if not math.isfinite(loss):
                return f"the loss of batch {index} is {loss}"
            for kind, parts in (("gradient", gradient), ("product", self._route.of_batch(index, vector))):
                for name, part in zip(space.names, parts, strict=False):
                    if not bool(torch.isfinite(part).all()):
                        return f"the {kind} of batch {index} is not finite, first in {name!r}"
        return "only the sum over batches is not finite: the numbers are too large for this dtype"

    def _products(self, block: Tensor) -> Tensor:
        return self.steadily(lambda: self._route.products(block))


class Hessian(_OfObjective):
    """∇²L of an Objective at its model's parameters as they are now.

    Args:
        objective: what to differentiate twice.
        params: only these parameters, in place of the objective's selection.
        microbatch: take batches in pieces of so many examples, which bounds memory and leaves the value as it is.
        by_layer: only the diagonal blocks, one for each module that holds parameters (see ``layer_curvature``).
        route: ``"double backward"``, ``"batched"``, ``"linearize"``, ``"compiled"`` or ``"central differences"``; by
            default the fastest that works (``diagnostics.curvature.products.ladder`` says why). What is asked for is
            taken, and when it differs from central differences, ``route`` and ``product_error`` say so.

    Raises:
        DiagnosticsError: no route works, and the message names what stopped each; the objective is another function
            on every call; a microbatch would change the value.

    Example:
        >>> model, data = torch.nn.Linear(2, 1, bias=False), (torch.eye(2), torch.ones(2, 1))
        >>> objective = Objective(model, torch.nn.MSELoss(), data)
        >>> H = Hessian(objective)
        >>> H @ torch.tensor([1.0, 0.0]), H.route
        (tensor([1., 0.]), 'double backward, kept graph')
    """

    def __init__(
        self,
        objective: Objective,
        *,
        params: Selection = None,
        microbatch: int | None = None,
        by_layer: bool = False,
        route: str | None = None,
    ) -> None:
        self._asked = route
        super().__init__(objective, params, microbatch, by_layer)

    def _choose_route(self) -> Route:
        return hessian_route(self.objective, self._values, self._groups, self._asked)


class GaussNewton(_OfObjective):
    """Jᵀ (∂²ℓ/∂f²) J: the Hessian without the curvature of the model itself.

    ∂²ℓ/∂f² is taken by formula for cross-entropy and by autograd for any other loss.

    Args:
        objective: made with ``Objective(model, loss, batches)`` or ``Objective.huggingface``, which know the outputs.
        params: only these parameters, in place of the objective's selection.
        microbatch: take batches in pieces of so many examples.
        by_layer: only the diagonal blocks.

    Raises:
        DiagnosticsError: the outputs cannot be seen, or the loss is linear in them.

    Example:
        >>> model, data = torch.nn.Linear(2, 1, bias=False), (torch.eye(2), torch.ones(2, 1))
        >>> GaussNewton(Objective(model, torch.nn.MSELoss(), data)) @ torch.tensor([1.0, 0.0])
        tensor([1., 0.])
    """

    def __init__(
        self,
        objective: Objective,
        *,
        params: Selection = None,
        microbatch: int | None = None,
        by_layer: bool = False,
    ) -> None:
        super().__init__(objective, params, microbatch, by_layer)

    def _choose_route(self) -> Route:
        return JacobianRoute(self.objective, self._values, self._groups, self._middle())

    def _middle(self) -> Middle:
        """B. A function that does not refer back to this operator, so that graphs die with it."""
        return lambda index, at: at.hessian()


class EmpiricalFisher(GaussNewton):
    """Σ_t c_t g_t g_tᵀ over loss terms t, with g_t the gradient of a term at its true label.

    A batch loss is Σ_t c_t ℓ_t: a term is one label for cross-entropy, one example for element-wise losses, and c_t the
    factor that the reduction puts before it. A loss of your own is taken for a mean over examples.

    Args:
        objective: as for ``GaussNewton``.
        params: as for ``GaussNewton``.
        microbatch: as for ``GaussNewton``.
        by_layer: as for ``GaussNewton``.

    Source: Kunstner et al., arXiv 1905.12558, on what it is not.

    Example:
        >>> model, data = torch.nn.Linear(1, 1, bias=False), (torch.ones(2, 1), torch.zeros(2, 1))
        >>> _ = torch.nn.init.constant_(model.weight, 2.0)
        >>> EmpiricalFisher(Objective(model, torch.nn.MSELoss(), data)) @ torch.tensor([1.0])
        tensor([16.])
    """

    def _middle(self) -> Middle:
        return lambda index, at: at.empirical()


class Fisher(GaussNewton):
    """Σ_t c_t E[g_t g_tᵀ] with labels drawn from what the model believes, ``samples`` of them for each term.

    Args:
        objective: as for ``GaussNewton``; the loss must be the negative logarithm of a probability.
        params: as for ``GaussNewton``.
        microbatch: as for ``GaussNewton``; the labels stay the same.
        by_layer: as for ``GaussNewton``.
        samples: labels drawn for each term; the standard deviation of an entry falls with their square root.
        seed: of the draws; the same for every product, so that the operator is one fixed matrix.

    Raises:
        DiagnosticsError: a loss from which labels cannot be drawn.

    Example:
        >>> model, data = torch.nn.Linear(2, 3), (torch.eye(2), torch.tensor([0, 1]))
        >>> F = Fisher(Objective(model, torch.nn.CrossEntropyLoss(), data), samples=4, seed=1)
        >>> bool(torch.equal(F @ torch.ones(9), F @ torch.ones(9)))
        True
    """

    def __init__(
        self,
        objective: Objective,
        *,
        params: Selection = None,
        microbatch: int | None = None,
        by_layer: bool = False,
        samples: int = 1,
        seed: int = 0,
    ) -> None:
        if samples < 1:
            raise DiagnosticsError("samples is too small", given=str(samples), expected="at least 1")
        self.samples = samples
        self.seed = seed
        super().__init__(objective, params=params, microbatch=microbatch, by_layer=by_layer)

    def _middle(self) -> Middle:
        samples, seed, origins = self.samples, self.seed, self.objective.origins

        def sampled(index: int, at: OutputLoss) -> OutputMap:
            # One stream for each batch as it was drawn, so that neither rebuilding a graph nor cutting the batch
            # changes a label.
            batch, first = origins[index]
            return at.sampled(samples, torch.Generator().manual_seed(seed * 1_000_003 + batch), first)

        return sampled
