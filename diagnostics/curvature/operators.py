"""Symmetric linear maps on parameter space, known only through their products with vectors.

The Hessian of a network with P parameters has P² entries; everything here needs only v ↦ Hv, which costs about as
much as two gradients (Pearlmutter 1994). An operator is taken at the parameters as they are when it is made, and
stays there while training moves on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from diagnostics.curvature.products import Route, route_to_products
from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective


class Operator(ABC):
    """A symmetric map on R^P: ``A @ v`` for v of shape (P,), ``A @ V`` for V of shape (P, K).

    Attributes:
        shape: (P, P).
        dtype: of the vectors it takes and gives.
        device: where they live.
        matvecs: products taken so far.
    """

    def __init__(self, dimension: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = (dimension, dimension)
        self.dtype = dtype
        self.device = device
        self.matvecs = 0

    @abstractmethod
    def _product(self, vector: Tensor) -> Tensor:
        """The product with one vector (P,) of this operator's dtype and device."""

    @property
    @abstractmethod
    def route(self) -> str:
        """How products are taken, in words a reader can check."""

    @property
    @abstractmethod
    def product_error(self) -> float:
        """Relative error of a product, as the route estimates it."""

    def __matmul__(self, vectors: Tensor) -> Tensor:
        if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2) or vectors.shape[0] != self.shape[0]:
            given = f"shape {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else type(vectors).__name__
            raise DiagnosticsError(
                f"{type(self).__name__} @ v does not fit",
                given=given,
                expected=f"a tensor of shape ({self.shape[0]},) or ({self.shape[0]}, K)",
            )
        # Iterative solvers keep what we return, also when the caller is in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            vectors = vectors.detach().to(self.device, self.dtype)
            if vectors.ndim == 1:
                return self._counted(vectors)
            columns = [self._counted(column) for column in vectors.unbind(1)]
            return torch.stack(columns, dim=1) if columns else torch.empty_like(vectors)

    def _counted(self, vector: Tensor) -> Tensor:
        self.matvecs += 1
        product = self._product(vector)
        if not bool(torch.isfinite(product).all()):
            wrong = int((~torch.isfinite(product)).sum())
            raise DiagnosticsError(
                f"the {type(self).__name__} product is not finite",
                given=f"{wrong} of {self.shape[0]} entries are NaN or infinite",
                expected="finite parameters, data and loss",
                attempt="look at objective.loss() first: a run that has diverged has no curvature",
            )
        return product

    def to_scipy(self) -> LinearOperator:
        """The same map for ``scipy.sparse.linalg``: NumPy in, NumPy out.

        Example:
            >>> from diagnostics import Hessian
            >>> data = torch.ones(4, 2), torch.ones(4, 1)
            >>> objective = Objective(torch.nn.Linear(2, 1), torch.nn.MSELoss(), data)
            >>> Hessian(objective).to_scipy().shape
            (3, 3)
        """
        numpy_dtype = torch.empty(0, dtype=self.dtype).to(torch.promote_types(self.dtype, torch.float32)).numpy().dtype

        def product(array: numpy.ndarray) -> numpy.ndarray:
            result = self @ torch.from_numpy(numpy.ascontiguousarray(array))
            return result.to("cpu").to(torch.promote_types(self.dtype, torch.float32)).numpy()

        return LinearOperator(self.shape, matvec=product, rmatvec=product, matmat=product, dtype=numpy_dtype)


class Hessian(Operator):
    """∇²L of an Objective at its model's parameters as they are now.

    Args:
        objective: what to differentiate twice.
        route: ``"double backward"`` or ``"central differences"``; by default double backward, and central differences
            of gradients where an operation in the model has no second derivative, or a wrong one: double backward is
            checked against them once per objective, at the cost of four gradients. A route asked for is not checked.

    Raises:
        DiagnosticsError: neither route works; the message names what stopped each.

    Example:
        >>> model, data = torch.nn.Linear(2, 1, bias=False), (torch.eye(2), torch.ones(2, 1))
        >>> objective = Objective(model, torch.nn.MSELoss(), data)
        >>> H = Hessian(objective)
        >>> H @ torch.tensor([1.0, 0.0]), H.route
        (tensor([1., 0.]), 'double backward, kept graph')
    """

    def __init__(self, objective: Objective, *, route: str | None = None) -> None:
        if not isinstance(objective, Objective):
            raise DiagnosticsError(
                "objective is not an Objective",
                given=type(objective).__name__,
                expected="a model with its loss and batches",
                attempt="Hessian(Objective(model, loss, batches))",
            )
        space = objective.space
        super().__init__(space.total, space.dtype, space.device)
        self.objective = objective
        self._route: Route = route_to_products(objective, space.values(), route)
        self._surroundings = objective.surroundings()

    @property
    def route(self) -> str:
        """How products are taken."""
        return self._route.name

    @property
    def product_error(self) -> float:
        """Relative error of a product."""
        return self._route.error

    def _product(self, vector: Tensor) -> Tensor:
        if self.objective.surroundings() != self._surroundings:
            raise DiagnosticsError(
                "the model has changed since this Hessian was made",
                given="a buffer or a parameter outside the selection was written to",
                expected="one fixed model for all products",
                attempt="Hessian(objective) anew",
            )
        return self._route.product(vector)


class Preconditioned(Operator):
    """S (A + diag(shift)) S for a diagonal S: curvature as an optimizer with per-coordinate rates feels it.

    Args:
        operator: A, of dimension P.
        scale: the diagonal of S, shape (P,), non-negative.
        shift: added to A's diagonal, shape (P,) (weight decay that goes through the gradient); None for zero.

    Example:
        >>> from diagnostics import Hessian
        >>> model, data = torch.nn.Linear(2, 1, bias=False), (torch.eye(2), torch.ones(2, 1))
        >>> objective = Objective(model, torch.nn.MSELoss(), data)
        >>> Preconditioned(Hessian(objective), torch.tensor([3.0, 1.0])) @ torch.tensor([1.0, 1.0])
        tensor([9., 1.])
    """

    def __init__(self, operator: Operator, scale: Tensor, shift: Tensor | None = None) -> None:
        super().__init__(operator.shape[0], operator.dtype, operator.device)
        for name, diagonal in (("scale", scale), ("shift", shift)):
            if diagonal is not None and tuple(diagonal.shape) != (operator.shape[0],):
                raise DiagnosticsError(
                    f"{name} does not fit the operator",
                    given=f"shape {tuple(diagonal.shape)}",
                    expected=f"({operator.shape[0]},)",
                )
        self.operator = operator
        self.scale = scale.to(self.device, self.dtype)
        self.shift = None if shift is None else shift.to(self.device, self.dtype)

    @property
    def route(self) -> str:
        """How products are taken."""
        return self.operator.route

    @property
    def product_error(self) -> float:
        """Relative error of a product."""
        return self.operator.product_error

    def _product(self, vector: Tensor) -> Tensor:
        scaled = self.scale * vector
        product = self.operator @ scaled
        if self.shift is not None:
            product = product + self.shift * scaled
        return self.scale * product
