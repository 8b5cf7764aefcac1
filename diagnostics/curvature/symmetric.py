"""What a solver needs of a matrix that it never sees: its size, where it lives, and its products.

A symmetric matrix as a tensor is enough for all of them; an Operator offers two things more. Its set-up can be done
once for many products (``steadily``), and its products can be taken unchecked (``multiply``), so that a solver on a GPU
need not wait for each of them: it looks at its own numbers now and then, and calls ``refuse`` when they are not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, Protocol, TypeVar

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError

T = TypeVar("T")


class SymmetricMap(Protocol):
    """What every solver takes: an Operator, or a symmetric matrix as a tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(P, P)."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its vectors."""

    @property
    def device(self) -> torch.device:
        """Of its vectors."""

    def __matmul__(self, vectors: Tensor, /) -> Tensor: ...


def dimension(operator: SymmetricMap) -> int:
    """P of a square map; anything else is refused."""
    known = isinstance(getattr(operator, "dtype", None), torch.dtype) and hasattr(operator, "__matmul__")
    shape = tuple(getattr(operator, "shape", ()))
    if not known:
        raise DiagnosticsError(
            "operator is not a symmetric map",
            given=type(operator).__name__,
            expected="an operator such as Hessian(objective), or a symmetric matrix as a tensor",
            attempt="Hessian(objective)" if hasattr(operator, "batches") else "",
        )
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise DiagnosticsError("operator is not square", given=f"shape {shape}", expected="(P, P)")
    return int(shape[0])


def steadily(operator: SymmetricMap, action: Callable[[], T], products: int = 0) -> T:
    """Run an action that takes many products, with what they have in common set up once around it.

    Args:
        operator: whose products.
        action: what takes them.
        products: how many it is sure to take, if that is known: some routes cost much to set up and little to use.
    """
    expect: Callable[[int], None] | None = getattr(operator, "expect", None)
    if expect is not None and products:
        expect(products)
    around: Callable[[Callable[[], T]], T] | None = getattr(operator, "steadily", None)
    return action() if around is None else around(action)


def multiply(operator: SymmetricMap, vectors: Tensor) -> Tensor:
    """The products with (P,) or (P, K), not checked for NaN and without waiting for the device."""
    unchecked: Callable[[Tensor], Tensor] | None = getattr(operator, "multiply", None)
    # torch.Tensor has a ``multiply`` of its own, which is element-wise.
    return operator @ vectors if unchecked is None or isinstance(operator, Tensor) else unchecked(vectors)


def refuse(operator: SymmetricMap, vectors: Tensor) -> NoReturn:
    """Raise for a product that was not finite, in the words of the operator where it has any.

    Args:
        operator: whose product it was.
        vectors: (P,) or (P, K), what was multiplied.
    """
    # Taken again with its own checks, an Operator says which batch and which parameter were to blame.
    operator @ vectors
    raise DiagnosticsError("a product with the operator is not finite", expected="finite entries throughout")


def route_of(operator: SymmetricMap) -> str:
    """How products are taken, for a line on how a number came about."""
    return f"{getattr(operator, 'route', 'matrix')}, {str(operator.dtype).removeprefix('torch.')}"


def rounding_of(operator: SymmetricMap) -> float:
    """Relative error of one product: what its route says, at least rounding."""
    rounding: float = 8 * torch.finfo(operator.dtype).eps
    return max(rounding, float(getattr(operator, "product_error", rounding)))
