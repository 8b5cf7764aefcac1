"""The largest or smallest eigenvalues of a symmetric operator, each with its residual.

How they are found, and why a small residual alone is not believed, stands in ``lanczos``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy
import torch
from torch import Tensor

from diagnostics.curvature.lanczos import Search, SymmetricMap
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, format_value

Which = Literal["LA", "SA"]

WARM_START_NOISE = 1e-2
"""Length of the random part of a warm start."""


@dataclass(frozen=True, repr=False)
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
    search = Search(operator, size, -1.0 if which == "SA" else 1.0, tol, generator, budget)
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
