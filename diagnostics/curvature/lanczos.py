"""Extreme eigenpairs of a symmetric operator, stopped by their residuals.

Lanczos builds an orthonormal basis Q of the Krylov space and a tridiagonal T = QᵀAQ. An eigenpair (θ, s) of T gives
the Ritz pair (θ, Qs), and |β s_m| is exactly the residual ‖A Qs − θ Qs‖: some eigenvalue of A lies within that
distance of θ. We stop when every wanted residual is at most ``tol``·|θ|. Rules on the change of θ stop 1 to 5 %
early, and fixed step counts can be off by half. The basis is reorthogonalised in full, twice (classical
Gram-Schmidt), for without it converged eigenvalues come back as copies; T is kept in float64.

A small residual proves *an* eigenvalue, not that it is the largest. A start that happens to hold little of the top
eigenvector converges to the second first: 7 of 1600 random starts on trained networks did. So half as many steps
again are taken before a value is accepted, and if it has risen meanwhile, the wait begins anew; then none of the 1600
was misled. Warm starts meet this whenever one eigenvalue overtakes another. ``Eigenpairs.restart`` therefore mixes in
the runners-up of the last search, which is where the overtaker was, and a little noise is added for what was not
there at all.

One Krylov space holds one copy of a repeated eigenvalue. So for k > 1 the search runs again with what was found
projected out, until nothing larger remains.

Source: Golub & Van Loan, Matrix Computations, ch. 10; Saad, Numerical Methods for Large Eigenvalue Problems, ch. 6.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from diagnostics.errors import DiagnosticsError

RUNNERS_UP, RUNNERS_UP_WEIGHT = 4, 0.1
"""How many Ritz vectors behind the wanted ones go into ``restart``, and how much of each."""

LOOK_AGAIN = 1.5
"""A value is accepted after so many times the steps at which it first met its tolerance."""


class SymmetricMap(Protocol):
    """What the solver needs: an Operator, or a symmetric matrix as a tensor."""

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


Pairs = tuple[numpy.ndarray, Tensor, numpy.ndarray, bool]
"""Values (k,), vectors as rows (k, P), residuals (k,), and whether they converged."""


class Search:
    """Lanczos runs that share an operator, a random stream and a budget of products."""

    def __init__(
        self, operator: SymmetricMap, size: int, sign: float, tol: float, generator: torch.Generator, budget: int
    ) -> None:
        self.operator = operator
        self.size = size
        self.sign = sign
        self.tol = tol
        self.generator = generator
        self.budget = budget
        self.matvecs = 0
        self.norm = 0.0
        self.restart = torch.empty(0)

    @property
    def floor(self) -> float:
        """Below this a number is error of products whose size is ``norm``."""
        rounding: float = 8 * torch.finfo(self.operator.dtype).eps
        route_error = getattr(self.operator, "product_error", rounding)
        return self.norm * max(rounding, route_error)

    def random_vector(self) -> Tensor:
        """A Gaussian vector (P,), drawn on the CPU so that every device sees the same numbers."""
        draw = torch.randn(self.size, generator=self.generator, dtype=torch.float64)
        return draw.to(self.operator.device, self.operator.dtype)

    def krylov(
        self, start: Tensor, k: int, found: Tensor | None, ceiling: float = -math.inf, at_least: int = 0
    ) -> Pairs:
        """The k top Ritz pairs on the complement of ``found`` (rows, orthonormal): values, rows, residuals,
        converged.

        Takes ``at_least`` so many steps. Also stops, as converged, once the largest plainly stays below ``ceiling``:
        not before ln P steps, for a random start needs those to show a lone eigenvalue (Kuczyński & Woźniakowski
        1992).
        """
        enough = 5 + math.ceil(1.5 * math.log(self.size))
        room = self.size - (0 if found is None else len(found))
        basis = _Basis(start, found)
        diagonal: list[float] = []
        off_diagonal: list[float] = []
        couplings: list[numpy.ndarray] = []
        first_look: tuple[int, numpy.ndarray] | None = None
        beta, direction = basis.normalised(start)
        if beta == 0.0:
            beta, direction = basis.normalised(self.random_vector())
        while True:
            basis.append(direction)
            image = self._product(direction)
            diagonal.append(float(torch.dot(direction, image)))
            if found is not None:
                couplings.append((found @ image).double().cpu().numpy())
            beta, direction = basis.normalised(image)
            self.norm = max(self.norm, abs(diagonal[-1]) + beta + (off_diagonal[-1] if off_diagonal else 0.0))
            exhausted = len(basis) == room
            if exhausted or beta <= self.floor:
                beta = 0.0
            if len(basis) >= k:
                every_value, every_vector = eigh_tridiagonal(numpy.array(diagonal), numpy.array(off_diagonal))
                leading = every_vector[:, ::-1][:, : k + RUNNERS_UP]
                values, coefficients = every_value[::-1][:k].copy(), leading[:, :k].copy()
                residuals = numpy.abs(beta * coefficients[-1])
                meets = self.meets_tol(values, residuals)
                if meets and (first_look is None or (values > first_look[1]).any()):
                    first_look = len(basis), values + residuals + self.floor
                seen_twice = first_look is not None and len(basis) >= max(LOOK_AGAIN * first_look[0], first_look[0] + 3)
                below = len(basis) >= enough and values[0] + residuals[0] <= ceiling
                converged = below or (meets and (beta == 0.0 or (seen_twice and len(basis) >= at_least)))
                if converged or exhausted or self.matvecs >= self.budget:
                    if found is None:
                        weights = numpy.where(numpy.arange(leading.shape[1]) < k, 1.0, RUNNERS_UP_WEIGHT)
                        self.restart = basis.combine((leading @ weights)[:, None])[0]
                    if couplings:
                        # What the pairs found before were not exact in is missing from this complement.
                        leak = numpy.linalg.norm(numpy.array(couplings).T @ coefficients, axis=0)
                        residuals = numpy.hypot(residuals, leak)
                    return values, basis.combine(coefficients), residuals, converged
            if beta == 0.0:
                # An invariant subspace smaller than k: go on in its complement.
                _, direction = basis.normalised(self.random_vector())
            off_diagonal.append(beta)

    def meets_tol(self, values: numpy.ndarray, residuals: numpy.ndarray) -> bool:
        """Whether every residual is small enough, for its eigenvalue or for the products."""
        return bool((residuals <= numpy.maximum(self.tol * numpy.abs(values), self.floor)).all())

    def _product(self, vector: Tensor) -> Tensor:
        self.matvecs += 1
        image = self.sign * (self.operator @ vector)
        if not bool(torch.isfinite(image).all()):
            raise DiagnosticsError("a product with the operator is not finite", expected="finite entries throughout")
        return image


class _Basis:
    """Orthonormal rows that grow by doubling, beside rows already found that must stay orthogonal to them."""

    def __init__(self, like: Tensor, found: Tensor | None) -> None:
        self._rows = like.new_empty(16, like.shape[0])
        self._found = found
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, row: Tensor) -> None:
        if self._count == len(self._rows):
            self._rows = torch.cat([self._rows, torch.empty_like(self._rows)])
        self._rows[self._count] = row
        self._count += 1

    def normalised(self, vector: Tensor) -> tuple[float, Tensor]:
        """Length and direction of what is left of a vector outside the basis; twice is enough."""
        for _ in range(2):
            for rows in (self._found, self._rows[: self._count]):
                if rows is not None and len(rows):
                    vector = vector - rows.T @ (rows @ vector)
        length = float(torch.linalg.vector_norm(vector))
        return length, vector / length if length > 0.0 else vector

    def combine(self, coefficients: numpy.ndarray) -> Tensor:
        """Ritz vectors, as rows."""
        weights = torch.from_numpy(numpy.ascontiguousarray(coefficients.T))
        return weights.to(self._rows.device, self._rows.dtype) @ self._rows[: self._count]
