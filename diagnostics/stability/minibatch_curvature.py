"""A minibatch's gradient and Hessian products, from one graph that is used once.

A kept graph, its check against differences and the rest of what ``Hessian`` sets up cost several times as much as the
single product that a minibatch needs. So the first minibatch goes through ``Hessian``, which checks double backward;
once that is found right for this model, the others take gradient and products in one go. Where it is not, each product
is a central difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diagnostics.curvature.operators import Hessian
from diagnostics.curvature.products.differences import CENTRAL_DIFFERENCES
from diagnostics.curvature.products.ladder import DOUBLE_BACKWARD
from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.quiet import quiet

Directions = Callable[[Tensor], Sequence[Tensor]]


class MinibatchCurvature:
    """g_B and H_B v for vectors that depend on g_B.

    Attributes:
        route: how products were taken last.
        matvecs: products taken so far.

    Example:
        >>> from diagnostics.minibatches import Minibatches
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(model, torch.nn.MSELoss(), (torch.ones(4, 1), torch.zeros(4, 1)))
        >>> gradient, [product] = MinibatchCurvature()(Minibatches(objective, 2).of([0, 3]), lambda g: [g])
        >>> bool(torch.allclose(product, 2 * gradient))
        True
    """

    def __init__(self) -> None:
        self.route = ""
        self.matvecs = 0

    def __call__(self, minibatch: Objective, directions: Directions) -> tuple[Tensor, list[Tensor]]:
        """The gradient (P,), and a product (P,) for each of the directions that are made from it.

        Raises:
            DiagnosticsError: the loss, its gradient or a product is not finite.
        """
        if DOUBLE_BACKWARD in minibatch.verified_routes:
            gradient, vectors, products = _from_one_graph(minibatch, directions)
            self.route = DOUBLE_BACKWARD
            self.matvecs += len(vectors)
            if all(bool(torch.isfinite(product).all()) for product in products):
                return gradient, products
        gradient = finite_gradient(minibatch)
        differenced = self.route.startswith(CENTRAL_DIFFERENCES)
        hessian = Hessian(minibatch, route=CENTRAL_DIFFERENCES if differenced else None)
        products = [hessian @ vector for vector in directions(gradient)]
        self.route = self.route if differenced else hessian.route
        self.matvecs += len(products)
        return gradient, products


def finite_gradient(minibatch: Objective) -> Tensor:
    """∇ℓ_B, shape (P,).

    Raises:
        DiagnosticsError: it is not finite.
    """
    loss, gradient = minibatch.loss_and_gradient(minibatch.space.values())
    _require_finite(loss, gradient)
    return gradient


def _require_finite(loss: float, gradient: Tensor) -> None:
    if not (math.isfinite(loss) and bool(torch.isfinite(gradient).all())):
        raise DiagnosticsError(
            "the loss of a minibatch or its gradient is not finite",
            given=f"a loss of {loss:g}",
            expected="finite parameters, data and loss",
            attempt="look at objective.loss() first: a run that has diverged has no curvature",
        )


def _from_one_graph(minibatch: Objective, directions: Directions) -> tuple[Tensor, Sequence[Tensor], list[Tensor]]:
    space = minibatch.space
    counted = [index for index, weight in enumerate(minibatch.weights) if weight]

    def both() -> tuple[Tensor, Sequence[Tensor], list[Tensor]]:
        gradient = torch.zeros(space.total, dtype=space.dtype, device=space.device)
        loss = 0.0
        graphs: list[tuple[Tensor, ...]] = []
        for index in counted:
            piece_loss, parts = minibatch.batch_gradient(index, leaves, create_graph=True)
            loss += minibatch.weights[index] * float(piece_loss.detach())
            gradient.add_(space.flatten(parts), alpha=minibatch.weights[index])
            graphs.append(parts)
        _require_finite(loss, gradient)
        vectors = directions(gradient)
        products = [torch.zeros_like(gradient) for _ in vectors]
        for index, parts in zip(counted, graphs, strict=True):
            for vector, total in zip(vectors, products, strict=True):
                total.add_(
                    space.flatten(_through(parts, leaves, space.unflatten(vector))), alpha=minibatch.weights[index]
                )
        return gradient, vectors, products

    with quiet(minibatch.model, minibatch.mode):
        leaves = [value.requires_grad_() for value in space.values()]
        # Checkpointed segments run again during the second backward pass, and must see the leaves.
        return minibatch.placed(leaves, both)


def _through(parts: Sequence[Tensor], leaves: Sequence[Tensor], vector: Sequence[Tensor]) -> list[Tensor]:
    varying = [(part, weight) for part, weight in zip(parts, vector, strict=True) if part.requires_grad]
    if not varying:
        return [torch.zeros_like(leaf) for leaf in leaves]
    outputs, weights = zip(*varying, strict=True)
    reached = torch.autograd.grad(outputs, leaves, weights, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if part is None else part for leaf, part in zip(leaves, reached, strict=True)]
