"""Extreme eigenvalues of a symmetric operator, each with its residual.

When a search stops, and why a small residual alone is not believed, stands in ``search``; what a start may have hidden
in ``hidden``; the iteration itself in ``lanczos``.
"""

from __future__ import annotations

import math
import numbers
import operator as integers
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from diagnostics.curvature.draws import random_stream
from diagnostics.curvature.eigen.hidden import NOISE
from diagnostics.curvature.eigen.lanczos import Lanczos
from diagnostics.curvature.eigen.search import Search
from diagnostics.curvature.eigen.wanted import CHOICES, Wanted, Which
from diagnostics.curvature.symmetric import SymmetricMap, dimension, rounding_of, route_of, steadily
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, format_value

BASIS_BYTES = 4 * 2**30
"""Memory for the basis when ``max_basis`` is not given; most searches need a hundredth of it."""

FEWEST_ROWS = 16
"""But at least so many rows beside the k wanted ones: with fewer, restarts cost products."""

PLAIN = 10.0
"""Products off by no more than so many times the rounding of one are as good as their dtype allows."""


@dataclass(frozen=True, repr=False)
class Eigenpairs:
    """Extreme eigenvalues with their vectors and residuals.

    Attributes:
        values: (k,), float64 on the CPU: descending for ``"LA"``, ascending for ``"SA"`` and ``"BE"``, by descending
            magnitude for ``"LM"``.
        vectors: (P, k), orthonormal columns, on the operator's device.
        residuals: (k,), ‖Av − θv‖ at most for each, rounding included.
        converged: whether every residual met the tolerance, the search for missed eigenvalues came to its end, and the
            products are known well enough to say so. Plain rounding is no obstacle: a residual of rounding, in parts of
            the largest eigenvalue, is the best there is, and all that is asked of a zero.
        matvecs: products used.
        tol: the relative residual asked for.
        restart: (P,), the eigenvectors with some of the runners-up: the start for the next call, a few steps on.
        behind: (j, 2), values and residuals of runners-up that came along, 4 at most: eigenvalues lie within, but
            others between them may be missing.
        how: method and route in one line, and what is owed where the search did not converge.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: bool
    matvecs: int
    tol: float
    restart: Tensor
    behind: Tensor
    how: str

    def estimate(self, index: int = 0) -> Estimate:
        """One eigenvalue with its residual as error."""
        return Estimate(float(self.values[index]), float(self.residuals[index]), "residual", self.how)

    def __str__(self) -> str:
        pairs = zip(self.values.tolist(), self.residuals.tolist(), strict=True)
        text = ", ".join(format_value(value, residual) for value, residual in pairs)
        return f"{text} ({self.how})"

    def __repr__(self) -> str:
        return f"Eigenpairs({self})"


def top_eigenpairs(
    operator: SymmetricMap,
    k: int = 1,
    *,
    which: Which = "LA",
    tol: float = 1e-3,
    start: Tensor | None = None,
    seed: int = 0,
    max_matvecs: int | None = None,
    max_basis: int | None = None,
) -> Eigenpairs:
    """The k most extreme eigenvalues and their vectors.

    Args:
        operator: anything symmetric with ``shape``, ``dtype``, ``device`` and ``@``.
        k: how many, from 1 to P.
        which: ``"LA"`` largest algebraic (sharpness), descending; ``"SA"`` smallest algebraic (most negative
            curvature), ascending; ``"LM"`` largest in magnitude, by descending magnitude; ``"BE"`` both ends, k // 2
            from the low one and the rest from the high one, ascending.
        tol: stop when every residual is at most this times its eigenvalue's size.
        start: (P,) or (P, j): vectors to start from, best the ``restart`` of an earlier call; random by default.
        seed: of the random vectors; the global random state is neither read nor moved.
        max_matvecs: give up after so many products, with what there is, marked as not converged; by default
            ``max(300, 30 k)``.
        max_basis: the most vectors (P,) kept at once, at least k + 2; a full basis is restarted from its best vectors,
            at the cost of more products. By default as many as fit into 4 GiB, and no fewer than k + 16.

    Raises:
        DiagnosticsError: an argument out of range, or a product that is not finite.

    Example:
        >>> A = torch.diag(torch.tensor([3.0, 1.0, -5.0]))
        >>> pairs = top_eigenpairs(A, k=2)
        >>> [round(value, 4) for value in pairs.values.tolist()], pairs.converged
        ([3.0, 1.0], True)
        >>> [round(value, 4) for value in top_eigenpairs(A, k=2, which="LM").values.tolist()]
        [-5.0, 3.0]
    """
    size = dimension(operator)
    _check(operator, which, tol, start)
    k = _whole("k", k, 1, size, f"1 to P = {size}")
    seed = _whole("seed", seed, -(2**63), 2**64 - 1, "a whole number of 64 bits")
    budget = (
        max(300, 30 * k) if max_matvecs is None else _whole("max_matvecs", max_matvecs, k, None, f"at least k = {k}")
    )
    limit = min(size, _limit(operator, k, max_basis))
    generator = random_stream(seed)
    without_autocast = torch.autocast(operator.device.type, enabled=False)
    with torch.inference_mode(False), torch.no_grad(), without_autocast:
        search = Search(Lanczos(operator, k, limit, generator), Wanted(which, k), tol, budget)
        vector = _start(search.lanczos, start)
        warm = vector is not None
        steadily(operator, lambda: search.run(search.lanczos.random() if vector is None else vector, warm))
        residuals = search.lanczos.residuals()
        met = bool((residuals <= search.slack(search.values)).all())
        poor = _too_poor(operator, search)
        return Eigenpairs(
            values=torch.from_numpy(search.values.copy()),
            vectors=search.lanczos.columns(),
            residuals=torch.from_numpy(numpy.hypot(residuals, search.lanczos.floor)),
            converged=met and search.proved and poor is None,
            matvecs=search.lanczos.matvecs,
            tol=tol,
            restart=search.restart,
            behind=torch.from_numpy(numpy.stack(search.behind, axis=1)),
            how=f"Lanczos, {search.lanczos.matvecs} products, {route_of(operator)}"
            + _owed(met, search.proved, tol, poor),
        )


def _too_poor(operator: SymmetricMap, search: Search) -> float | None:
    """The relative error of the products, where it is more than rounding and drowns the tolerance of some value."""
    error = rounding_of(operator)
    if error <= PLAIN * 8 * torch.finfo(operator.dtype).eps:
        return None
    return error if bool((search.lanczos.floor > search.tol * numpy.abs(search.values)).any()) else None


def _owed(met: bool, proved: bool, tol: float, poor: float | None) -> str:
    if poor is not None:
        return f", NOT CONVERGED to a relative residual of {tol:g}: the products have a relative error of {poor:.2g}"
    if met and not proved:
        return (
            ", NOT CONVERGED: each is an eigenvalue, but the products ran out before one further out could be ruled out"
        )
    return "" if met else f", NOT CONVERGED to a relative residual of {tol:g}"


def _check(operator: SymmetricMap, which: str, tol: float, start: Tensor | None) -> None:
    size = operator.shape[0]
    if not operator.dtype.is_floating_point:
        raise DiagnosticsError("operator is not real", given=str(operator.dtype), expected="a floating-point dtype")
    if which not in CHOICES:
        raise DiagnosticsError("which is unknown", given=repr(which), expected=" or ".join(map(repr, CHOICES)))
    if not isinstance(tol, numbers.Real) or not 0 < tol < math.inf:
        raise DiagnosticsError("tol is not positive", given=str(tol), expected="a relative residual such as 1e-3")
    if start is None:
        return
    if not isinstance(start, Tensor) or start.is_complex():
        given = str(start.dtype) if isinstance(start, Tensor) else type(start).__name__
        raise DiagnosticsError("start is not a real tensor", given=given, expected=f"shape ({size},) or ({size}, j)")
    if start.ndim not in (1, 2) or start.shape[0] != size:
        shape = tuple(start.shape)
        raise DiagnosticsError("start does not fit the operator", given=f"shape {shape}", expected=f"({size},)")


def _whole(name: str, given: int, low: int, high: int | None, expected: str) -> int:
    try:
        number = integers.index(given)
    except TypeError:
        raise DiagnosticsError(f"{name} is not a whole number", given=repr(given), expected=expected) from None
    if number < low or (high is not None and number > high):
        fault = "too small" if high is None else "out of range"
        raise DiagnosticsError(f"{name} is {fault}", given=str(number), expected=expected)
    return number


def _limit(operator: SymmetricMap, k: int, max_basis: int | None) -> int:
    if max_basis is None:
        row_bytes = operator.shape[0] * torch.empty(0, dtype=operator.dtype).element_size()
        return max(BASIS_BYTES // row_bytes, k + FEWEST_ROWS)
    # Two rows beside the wanted ones are the least a restart can go on from; a basis of the whole space needs none.
    return _whole("max_basis", max_basis, min(k + 2, operator.shape[0]), None, f"at least k + 2 = {k + 2}")


def _start(lanczos: Lanczos, start: Tensor | None) -> Tensor | None:
    """A warm start with its noise, or None where there is nothing to start from."""
    if start is None:
        return None
    given = start.detach() if start.ndim == 1 else start.detach().sum(dim=1)
    warm = given.to(lanczos.operator.device, lanczos.operator.dtype)
    length = torch.linalg.vector_norm(warm)
    if not bool(torch.isfinite(length)) or float(length) == 0.0:
        return None
    noise = lanczos.random()
    noisy: Tensor = noise.mul_(NOISE / torch.linalg.vector_norm(noise)).add_(warm / length)
    return noisy
