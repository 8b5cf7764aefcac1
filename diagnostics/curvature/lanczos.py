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
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, format_value

Which = Literal["LA", "SA"]

WARM_START_NOISE = 1e-2
RUNNERS_UP, RUNNERS_UP_WEIGHT = 4, 0.1
LOOK_AGAIN = 1.5


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


@dataclass(frozen=True)
class Eigenpairs:
    """Extreme eigenvalues with their vectors and residuals.

    Attributes:
        values: (k,), float64 on the CPU, largest first for ``"LA"``, smallest first for ``"SA"``.
        vectors: (P, k), orthonormal columns, on the operator's device.
        residuals: (k,), ‖Av − θv‖ for each, rounding included.
        converged: whether every residual met the tolerance.
        matvecs: products used.
        tol: the relative residual asked for.
        restart: (P,), the eigenvectors with some of the runners-up: the start for the next call, a few steps on.
        how: method and route in one line.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: bool
    matvecs: int
    tol: float
    restart: Tensor
    how: str

    def estimate(self, index: int = 0) -> Estimate:
        """One eigenvalue with its residual as error."""
        return Estimate(float(self.values[index]), float(self.residuals[index]), "residual", self.how)

    def __str__(self) -> str:
        pairs = zip(self.values.tolist(), self.residuals.tolist(), strict=True)
        text = ", ".join(format_value(value, residual) for value, residual in pairs)
        return f"{text} ({self.how})"


def top_eigenpairs(
    operator: SymmetricMap,
    k: int = 1,
    *,
    which: Which = "LA",
    tol: float = 1e-3,
    start: Tensor | None = None,
    seed: int = 0,
    max_matvecs: int | None = None,
) -> Eigenpairs:
    """The k largest (``"LA"``) or smallest (``"SA"``) algebraic eigenvalues and their vectors.

    Args:
        operator: anything symmetric with ``shape``, ``dtype``, ``device`` and ``@``.
        k: how many, from 1 to P.
        which: ``"LA"`` largest algebraic (sharpness), ``"SA"`` smallest algebraic (most negative curvature).
        tol: stop when every residual is at most this times its eigenvalue's size.
        start: (P,) or (P, j): vectors to start from, best the ``restart`` of an earlier call; random by default.
        seed: of the random start; the global random state is neither read nor moved.
        max_matvecs: give up after so many products, with what there is, marked as not converged; by default
            ``max(300, 30 k)``.

    Raises:
        DiagnosticsError: k, which, tol or start out of range, or a product that is not finite.

    Example:
        >>> pairs = top_eigenpairs(torch.diag(torch.tensor([3.0, 1.0, -5.0])), k=2)
        >>> [round(value, 4) for value in pairs.values.tolist()], pairs.converged
        ([3.0, 1.0], True)
    """
    size = _check(operator, k, which, tol, start)
    if max_matvecs is not None and max_matvecs < k:
        raise DiagnosticsError("max_matvecs is too small", given=str(max_matvecs), expected=f"at least k = {k}")
    budget = max(300, 30 * k) if max_matvecs is None else max_matvecs
    generator = torch.Generator().manual_seed(seed)
    search = _Search(operator, size, -1.0 if which == "SA" else 1.0, tol, generator, budget)
    warm_steps = 0 if start is None else 3 + math.ceil(0.5 * math.log(size))
    with torch.inference_mode(False), torch.no_grad():
        values, vectors, residuals, converged = search.krylov(
            _start(operator, size, start, generator), k, None, at_least=warm_steps
        )
        # A full Krylov space has seen everything; otherwise look for copies and missed directions.
        while k > 1 and len(vectors) < size:
            if search.matvecs >= budget:
                converged = False
                break
            least = values[k - 1] + tol * abs(values[k - 1]) + search.floor
            more = search.krylov(search.random_vector(), 1, vectors, ceiling=least)
            if more[0][0] <= least:
                converged = converged and more[3]
                break
            converged = converged and more[3]
            values, residuals = numpy.append(values, more[0]), numpy.append(residuals, more[2])
            vectors = torch.cat([vectors, more[1]])
            order = numpy.argsort(-values, kind="stable")[:k]
            values, residuals = values[order], residuals[order]
            vectors = vectors[torch.from_numpy(order).to(vectors.device)]
        converged = converged and search.meets_tol(values, residuals)
        residuals = numpy.hypot(residuals, search.floor)
        vectors = vectors.T.contiguous()
    return Eigenpairs(
        values=torch.from_numpy(search.sign * values),
        vectors=vectors,
        residuals=torch.from_numpy(residuals),
        converged=converged,
        matvecs=search.matvecs,
        tol=tol,
        restart=search.restart,
        how=f"Lanczos, {search.matvecs} products, "
        f"{getattr(operator, 'route', 'matrix')}, {str(operator.dtype).removeprefix('torch.')}"
        + ("" if converged else f", NOT CONVERGED to a relative residual of {tol:g}"),
    )


_Pairs = tuple[numpy.ndarray, Tensor, numpy.ndarray, bool]


class _Search:
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
        # Drawn on the CPU, so that every device sees the same numbers.
        draw = torch.randn(self.size, generator=self.generator, dtype=torch.float64)
        return draw.to(self.operator.device, self.operator.dtype)

    def krylov(
        self, start: Tensor, k: int, found: Tensor | None, ceiling: float = -math.inf, at_least: int = 0
    ) -> _Pairs:
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


def _check(operator: SymmetricMap, k: int, which: str, tol: float, start: Tensor | None) -> int:
    shape = tuple(operator.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise DiagnosticsError("operator is not square", given=f"shape {shape}", expected="(P, P)")
    if not 1 <= k <= shape[0]:
        raise DiagnosticsError("k is out of range", given=str(k), expected=f"1 to P = {shape[0]}")
    if which not in ("LA", "SA"):
        raise DiagnosticsError("which is unknown", given=repr(which), expected="'LA' or 'SA'")
    if not tol > 0:
        raise DiagnosticsError("tol is not positive", given=str(tol), expected="a relative residual such as 1e-3")
    if start is not None and (start.ndim not in (1, 2) or start.shape[0] != shape[0]):
        raise DiagnosticsError(
            "start does not fit the operator", given=f"shape {tuple(start.shape)}", expected=f"({shape[0]},)"
        )
    return shape[0]


def _start(operator: SymmetricMap, size: int, start: Tensor | None, generator: torch.Generator) -> Tensor:
    noise = torch.randn(size, generator=generator, dtype=torch.float64).to(operator.device, operator.dtype)
    if start is None:
        return noise
    vectors = start.detach().to(operator.device, operator.dtype)
    warm: Tensor = vectors if vectors.ndim == 1 else vectors.sum(dim=1)
    length = torch.linalg.vector_norm(warm)
    if not bool(torch.isfinite(length)) or float(length) == 0.0:
        return noise
    start_vector: Tensor = warm / length + WARM_START_NOISE * noise / torch.linalg.vector_norm(noise)
    return start_vector
