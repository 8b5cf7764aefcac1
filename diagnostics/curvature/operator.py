"""A symmetric linear map on parameter space, known only through its products with vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NoReturn, TypeVar

import numpy
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from diagnostics.curvature.symmetric import SymmetricMap, dimension, multiply, rounding_of, steadily
from diagnostics.errors import DiagnosticsError

T = TypeVar("T")


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
    def _products(self, block: Tensor) -> Tensor:
        """(P, K) from (P, K), of this operator's dtype and device."""

    @abstractmethod
    def steadily(self, action: Callable[[], T]) -> T:
        """Run an action that takes many products, with what they have in common set up once."""

    def expect(self, products: int) -> None:
        """Be told that so many products are coming; an operator with a costly faster route may take it at once."""
        del products

    @property
    @abstractmethod
    def route(self) -> str:
        """How products are taken, in words a reader can check."""

    @property
    @abstractmethod
    def product_error(self) -> float:
        """Relative error of a product, as the route estimates it."""

    @abstractmethod
    def blame(self, vector: Tensor) -> str:
        """Where a product with ``vector`` (P,) stops being finite, in words."""

    def __matmul__(self, vectors: Tensor) -> Tensor:
        products = self.multiply(vectors)
        # A sum shows any NaN or infinity in one quick pass; only when it does is every entry looked at.
        if not bool(torch.isfinite(products.sum())) and not bool(torch.isfinite(products).all()):
            self._refuse(vectors, products)
        return products

    def multiply(self, vectors: Tensor) -> Tensor:
        """The same as ``@``, without looking for NaN, and so without waiting for the device."""
        real = isinstance(vectors, Tensor) and not vectors.is_complex()
        if not real or vectors.ndim not in (1, 2) or vectors.shape[0] != self.shape[0]:
            given = f"shape {tuple(vectors.shape)}" if real else getattr(vectors, "dtype", type(vectors).__name__)
            raise DiagnosticsError(
                f"{type(self).__name__} @ v does not fit",
                given=str(given),
                expected=f"a real tensor of shape ({self.shape[0]},) or ({self.shape[0]}, K)",
            )
        # Iterative solvers keep what we return, also when the caller is in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            block = vectors.detach().to(self.device, self.dtype)
            if vectors.is_inference():
                block = block.clone()
            if block.ndim == 1:
                self.matvecs += 1
                return self._products(block[:, None])[:, 0]
            self.matvecs += block.shape[1]
            return self._products(block) if block.shape[1] else torch.empty_like(block)

    def _refuse(self, vectors: Tensor, products: Tensor) -> NoReturn:
        block = vectors if vectors.ndim == 2 else vectors[:, None]
        wrong = ~torch.isfinite(products if products.ndim == 2 else products[:, None])
        column = int(wrong.any(dim=0).nonzero()[0])
        raise DiagnosticsError(
            f"the {type(self).__name__} product is not finite",
            given=f"{int(wrong[:, column].sum())} of {self.shape[0]} entries are NaN or infinite; "
            + self.blame(block[:, column]),
            expected="finite parameters, data and loss",
            attempt="look at objective.loss() first: a run that has diverged has no curvature",
        )

    def to_scipy(self) -> LinearOperator:
        """The same map for ``scipy.sparse.linalg``: NumPy in, NumPy out.

        Example:
            >>> from diagnostics import Hessian, Objective
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


class Preconditioned(Operator):
    """S (A + diag(shift)) S for a diagonal S: curvature as an optimizer with per-coordinate rates feels it.

    Args:
        operator: A, of dimension P: an Operator, or a symmetric matrix.
        scale: the diagonal of S, shape (P,).
        shift: added to A's diagonal, shape (P,) (weight decay that goes through the gradient); None for zero.

    Example:
        >>> from diagnostics import Hessian, Objective
        >>> model, data = torch.nn.Linear(2, 1, bias=False), (torch.eye(2), torch.ones(2, 1))
        >>> objective = Objective(model, torch.nn.MSELoss(), data)
        >>> Preconditioned(Hessian(objective), torch.tensor([3.0, 1.0])) @ torch.tensor([1.0, 1.0])
        tensor([9., 1.])
    """

    def __init__(self, operator: SymmetricMap, scale: Tensor, shift: Tensor | None = None) -> None:
        super().__init__(dimension(operator), operator.dtype, operator.device)
        for name, diagonal in (("scale", scale), ("shift", shift)):
            if diagonal is None:
                continue
            real = isinstance(diagonal, Tensor) and not diagonal.is_complex()
            if not real or tuple(diagonal.shape) != (operator.shape[0],):
                raise DiagnosticsError(
                    f"{name} does not fit the operator",
                    given=f"shape {tuple(diagonal.shape)}" if real else type(diagonal).__name__,
                    expected=f"a real tensor of shape ({operator.shape[0]},)",
                )
        self.operator = operator
        self.scale = scale.to(self.device, self.dtype)
        self.shift = None if shift is None else shift.to(self.device, self.dtype)

    @property
    def route(self) -> str:
        """How products are taken."""
        return getattr(self.operator, "route", "matrix")

    @property
    def product_error(self) -> float:
        """Relative error of a product."""
        return rounding_of(self.operator)

    def steadily(self, action: Callable[[], T]) -> T:
        """Run an action that takes many products."""
        return steadily(self.operator, action)

    def expect(self, products: int) -> None:
        """Be told that so many products are coming."""
        if isinstance(self.operator, Operator):
            self.operator.expect(products)

    def blame(self, vector: Tensor) -> str:
        """Where a product with ``vector`` stops being finite."""
        scaled = self.scale * vector.to(self.scale)
        if not bool(torch.isfinite(scaled).all()):
            return "the scale is not finite"
        return self.operator.blame(scaled) if isinstance(self.operator, Operator) else "the matrix is not finite"

    def _products(self, block: Tensor) -> Tensor:
        scaled = self.scale[:, None] * block
        product = multiply(self.operator, scaled)
        if self.shift is not None:
            product = product + self.shift[:, None] * scaled
        return self.scale[:, None] * product
