"""Trace, Frobenius norm and diagonal of an operator from products with random vectors.

Hutchinson's average of zᵀAz has a variance of 2‖A‖²_F, most of it from a few large eigenvalues. Hutch++ takes those
out: a third of the products find the range Q of AΩ, another third give AQ, and with them all of A but its part
B = (I − QQᵀ)A(I − QQᵀ) is known:

    tr A = tr QᵀAQ + tr B,    ‖A‖²_F = 2‖AQ‖² − ‖QᵀAQ‖² + ‖B‖²_F.

Only B is left to chance, from the last third: vectors z of the complement of Q, uniform on its sphere, with zᵀAz for
the trace and ‖Bz‖² for the norm. These draws are independent, so that their scatter is the error. The exchangeable
variant (XTrace, arXiv 2301.07825) uses every vector for both ends and more than halves the error of steep
spectra, but its leave-one-out draws are not independent: with 64 products on 100 dimensions, 40 of them not zero, its
95 % interval held the truth in 70 % of 400 seeds.

Where the sketch does not fit into memory, plain averages over ±1 vectors are taken; with as many products as
dimensions, the columns of the identity, and the result is exact.

Source: Meyer, Musco, Musco & Woodruff, arXiv 2010.09649 (Hutch++); Hutchinson 1989; Bekas, Kokiopoulou & Saad 2007
(diagonal). The Frobenius norm from the same products is ours, by the same argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.special import stdtrit
from torch import Tensor

from diagnostics.curvature.draws import drawn_type, random_stream
from diagnostics.curvature.quadrature import BASIS_BYTES, lengths, piece_of, plainly
from diagnostics.curvature.symmetric import SymmetricMap, dimension, multiply, refuse, rounding_of, route_of
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import ErrorKind, Estimate

SKETCH_VECTORS = 4
"""Vectors a column of the sketch needs at once: Q, its products, and as many for the factorisation or the rest."""

BLOCK = 16
"""Columns of plain averages and of the identity that are multiplied together."""

FEW_DRAWS = 20
"""With fewer draws of what is left to chance, an interval may cover less than it says."""

NORMAL_95 = 1.959964
"""Standard deviations to either end of a normal 95 % interval."""


Form = Callable[[Tensor, Tensor], Tensor]
"""Of columns (P, K) and their products: one number per column, (K,)."""


@dataclass(frozen=True, repr=False)
class Diagonal:
    """The diagonal of an operator.

    Attributes:
        values: (P,), on the operator's device.
        errors: (P,), one standard error each; zero when exact.
        kind: ``"standard error"`` or ``"exact"``.
        matvecs: products used.
        how: method and route in one line.
    """

    values: Tensor
    errors: Tensor
    kind: ErrorKind
    matvecs: int
    how: str

    def __str__(self) -> str:
        low, high, typical = float(self.values.min()), float(self.values.max()), float(self.errors.median())
        return f"{len(self.values)} entries from {low:.4g} to {high:.4g}, each to ± {typical:.1g} ({self.how})"

    def __repr__(self) -> str:
        return f"Diagonal({self})"


def trace(operator: SymmetricMap, *, matvecs: int = 64, seed: int = 0) -> Estimate:
    """The sum of the eigenvalues, or of the diagonal.

    Args:
        operator: A, symmetric, (P, P).
        matvecs: products to take, at least 4; from P on, the result is exact.
        seed: of the random vectors; the global random state is neither read nor moved.

    Returns:
        Unbiased, with one standard error: value ± 1.96 · error is the 95 % interval, by Student's t and for skewed
        draws. Where one eigenvalue outweighs the rest (50 beside 149 ones), a third of the products are too few draws
        to show their skewness: 4 to 24 products then cover 83 to 88 %, 48 cover 90 %, 64 cover 93 %. Below 20 draws,
        that is 59 products, ``how`` says so.

    Raises:
        DiagnosticsError: matvecs out of range, or a product that is not finite.

    Example:
        >>> A = torch.diag(0.5 ** torch.arange(200.0, dtype=torch.float64))
        >>> estimate = trace(A)
        >>> abs(estimate.value - 2) < 1e-5, estimate.error < 1e-5
        (True, True)
        >>> trace(torch.eye(3)).kind
        'exact'
    """
    return _estimate(operator, matvecs, seed, "trace")


def frobenius_norm(operator: SymmetricMap, *, matvecs: int = 64, seed: int = 0) -> Estimate:
    """The root of the sum of squared eigenvalues, or of squared entries.

    The sum of squares is unbiased; the bias that the root brings in is taken out to first order. What ``trace`` says
    of intervals from few products holds here too.

    Args:
        operator: A, symmetric, (P, P).
        matvecs: products to take, at least 4; from P on, the result is exact.
        seed: of the random vectors.

    Raises:
        DiagnosticsError: matvecs out of range, or a product that is not finite.

    Example:
        >>> frobenius_norm(torch.diag(torch.tensor([3.0, -4.0]))).value
        5.0
    """
    square = _estimate(operator, matvecs, seed, "square")
    root = math.sqrt(max(square.value, 0.0))
    if root == 0.0 or square.kind == "exact":
        return Estimate(root, math.sqrt(square.error), square.kind, square.how)
    relative = square.error / square.value
    return Estimate(root * (1 + min(relative, 1.0) ** 2 / 8), root * relative / 2, square.kind, square.how)


def diagonal(operator: SymmetricMap, *, matvecs: int = 64, seed: int = 0) -> Diagonal:
    """The diagonal entries, each with a standard error, from the mean of z ∘ Az over ±1 vectors z.

    The variance of an entry is the sum of squares of the others in its row, over the number of products.

    Args:
        operator: A, symmetric, (P, P).
        matvecs: products to take, at least 2; from P on, the result is exact.
        seed: of the random vectors.

    Raises:
        DiagnosticsError: matvecs out of range, or a product that is not finite.

    Example:
        >>> diagonal(torch.diag(torch.arange(100.0)), matvecs=8).values[:4]
        tensor([0., 1., 2., 3.])
    """
    size = _check(operator, matvecs, 2)
    dtype = drawn_type(operator)
    values = torch.zeros(size, dtype=dtype, device=operator.device)
    scatter = torch.zeros_like(values)  # the root of the sum of squares: squares of 1e-23 would be zero
    if matvecs >= size:
        values.copy_(_draws(operator, _identity(operator, size), _quadratic))
        return Diagonal(values, scatter, "exact", size, f"columns of the identity, {size} products, " + _tail(operator))
    seen = 0

    def see(columns: Tensor, products: Tensor) -> None:
        # Chan's update of means and squared deviations: nothing cancels, however small the scatter.
        nonlocal seen
        draws, count = columns.mul_(products), columns.shape[1]
        mean = draws.mean(dim=1)
        draws.sub_(mean.unsqueeze(1))
        widest = torch.linalg.vector_norm(draws, ord=math.inf, dim=1)
        draws.div_(widest.clamp(min=torch.finfo(dtype).tiny).unsqueeze(1))
        scatter.hypot_(widest.mul_(torch.linalg.vector_norm(draws, dim=1)))
        step = mean.sub_(values)
        values.add_(step, alpha=count / (seen + count))
        scatter.hypot_(step.mul_(math.sqrt(seen * count / (seen + count))))
        seen += count

    _visit(operator, _signs(operator, matvecs, seed), see)
    errors = scatter * (_widening(matvecs) / math.sqrt(matvecs * (matvecs - 1)))
    errors = torch.hypot(errors, rounding_of(operator) * values.abs())
    return Diagonal(
        values, errors, "standard error", matvecs, f"±1 vectors, {matvecs} products, {_tail(operator, seed)}"
    )


class _Sketch:
    """The range Q of AΩ, and what AQ says of A: the known part of the trace and of the squared Frobenius norm."""

    def __init__(self, operator: SymmetricMap, rank: int, seed: int) -> None:
        self.size = dimension(operator)
        stream = random_stream(seed)
        columns = next(_normals(operator, self.size, rank, stream, rank))
        images = _multiply(operator, columns)
        del columns
        # A norm of 1 keeps tiny operators from underflowing in the factorisation.
        images /= images.abs().max().clamp(min=torch.finfo(images.dtype).tiny)
        self.basis = torch.linalg.qr(images).Q
        del images
        products = _multiply(operator, self.basis)
        inner = _small(self.basis.T @ products)
        self.trace = float(inner.trace())
        self.square = 2 * float(_square(products, products).sum()) - float(inner.square().sum())
        self.stream = stream

    def complement(self, operator: SymmetricMap, count: int) -> Iterator[Tensor]:
        """Columns uniform on the sphere of the complement, as long as ±1 vectors there would be."""
        radius = math.sqrt(self.size - self.basis.shape[1])
        for columns in _normals(operator, self.size, count, self.stream, self.basis.shape[1]):
            for _ in range(2):
                columns -= self.basis @ (self.basis.T @ columns)
            yield columns.mul_(radius / lengths(columns.T).to(columns.dtype))

    def outside_square(self, columns: Tensor, products: Tensor) -> Tensor:
        """The squared lengths of products, without what lies in the basis."""
        inside = self.basis.T @ products
        return _square(products, products) - _square(inside, inside)


def _estimate(operator: SymmetricMap, matvecs: int, seed: int, quantity: Literal["trace", "square"]) -> Estimate:
    size = _check(operator, matvecs, 4)
    form = _quadratic if quantity == "trace" else _square
    if matvecs >= size:
        draws = _draws(operator, _identity(operator, size), form)
        how = f"columns of the identity, {size} products, " + _tail(operator)
        return Estimate(float(draws.sum()), 0.0, "exact", how)
    itemsize = drawn_type(operator).itemsize
    rank = matvecs // 3
    if SKETCH_VECTORS * rank * size * itemsize <= BASIS_BYTES:

        def sketched() -> tuple[float, Tensor]:
            sketch = _Sketch(operator, rank, seed)
            rest = sketch.complement(operator, matvecs - 2 * rank)
            if quantity == "trace":
                return sketch.trace, _draws(operator, rest, form)
            return sketch.square, _draws(operator, rest, sketch.outside_square)

        known, draws = plainly(operator, sketched, matvecs)
        method = f"sketch of rank {rank} and {len(draws)} probes of the rest (Hutch++)"
    else:
        known, draws = 0.0, _draws(operator, _signs(operator, matvecs, seed), form)
        method = "±1 vectors (Hutchinson)"
    error = math.hypot(mean_error(draws), rounding_of(operator) * (abs(known) + float(draws.abs().mean())))
    how = f"{method}, {matvecs} products, {_tail(operator, seed)}"
    if len(draws) < FEW_DRAWS:
        how += "; few draws, where one eigenvalue outweighs the rest 95 % intervals cover 83 %"
    return Estimate(known + float(draws.mean()), error, "standard error", how)


def mean_error(draws: Tensor) -> float:
    """The standard error of the mean of (draws,) in float64, at least 2, such that ± 1.96 of it is a 95 % interval."""
    scatter = float(draws.std())
    skewness = float((((draws - draws.mean()) / scatter) ** 3).mean()) if scatter > 0 else 0.0
    return scatter / math.sqrt(len(draws)) * _widening(len(draws), skewness)


def _widening(draws: int, skewness: float = 0.0) -> float:
    """Makes ± 1.96 standard errors of few draws a 95 % interval, as Student's t does.

    Skewed draws, as where one eigenvalue outweighs the rest, have a mean and a scatter that come out small together:
    Johnson (1978) moves the interval, here both ends give way as far as the worse one has to.
    """
    quantile = float(stdtrit(draws - 1, 0.975))
    return (quantile + abs(skewness) * (1 + 2 * quantile**2) / (6 * math.sqrt(draws))) / NORMAL_95


def _check(operator: SymmetricMap, matvecs: int, least: int) -> int:
    size = dimension(operator)
    drawn_type(operator)
    if not isinstance(matvecs, int) or isinstance(matvecs, bool) or matvecs < min(least, size):
        raise DiagnosticsError(
            "matvecs is out of range", given=repr(matvecs), expected=f"an integer from {min(least, size)} up"
        )
    return size


def _tail(operator: SymmetricMap, seed: int | None = None) -> str:
    return route_of(operator) + ("" if seed is None else f", seed {seed}")


def _small(matrix: Tensor) -> Tensor:
    return matrix.cpu().double()


def _multiply(operator: SymmetricMap, columns: Tensor) -> Tensor:
    given = columns.to(operator.dtype)
    products = multiply(operator, given)
    if not bool(torch.isfinite(products).all()):
        refuse(operator, given)
    return products.to(columns.dtype)


def _identity(operator: SymmetricMap, size: int) -> Iterator[Tensor]:
    """The columns of the identity, in blocks."""
    dtype = drawn_type(operator)
    for first in range(0, size, BLOCK):
        count = min(BLOCK, size - first)
        columns = torch.zeros(size, count, dtype=dtype, device=operator.device)
        columns[first : first + count] = torch.eye(count, dtype=dtype, device=operator.device)
        yield columns


def _signs(operator: SymmetricMap, total: int, seed: int) -> Iterator[Tensor]:
    """Vectors of independent ±1, in blocks that fit, drawn on the CPU as bytes."""
    size, dtype = dimension(operator), drawn_type(operator)
    block = max(1, min(BLOCK, BASIS_BYTES // (SKETCH_VECTORS * size * dtype.itemsize)))
    stream = random_stream(seed)
    for first in range(0, total, block):
        columns = torch.empty(min(block, total - first), size, dtype=dtype, device=operator.device).T
        for column in columns.unbind(1):
            bits = torch.randint(0, 2, (size,), generator=stream, dtype=torch.int8, device="cpu")
            column.copy_(bits.mul_(2).sub_(1))
        yield columns


def _normals(operator: SymmetricMap, size: int, total: int, stream: torch.Generator, block: int) -> Iterator[Tensor]:
    """Gaussian vectors, in blocks, drawn on the CPU so that every device sees the same."""
    dtype = drawn_type(operator)
    for first in range(0, total, block):
        columns = torch.empty(min(block, total - first), size, dtype=dtype, device=operator.device).T
        for column in columns.unbind(1):
            column.copy_(torch.randn(size, generator=stream, dtype=dtype, device="cpu"))
        yield columns


def _visit(operator: SymmetricMap, blocks: Iterator[Tensor], see: Callable[[Tensor, Tensor], None]) -> None:
    """Show ``see`` every block of columns with its products."""

    def run() -> None:
        for columns in blocks:
            see(columns, _multiply(operator, columns))

    plainly(operator, run)


def _draws(operator: SymmetricMap, blocks: Iterator[Tensor], form: Form) -> Tensor:
    """The form of every column, (columns,) float64 on the CPU."""
    draws: list[Tensor] = []
    _visit(operator, blocks, lambda columns, products: draws.append(_small(form(columns, products))))
    return torch.cat(draws)


def _quadratic(columns: Tensor, products: Tensor) -> Tensor:
    """The inner products of columns with their products."""
    return _summed(lambda piece: columns[piece].double() * products[piece].double(), columns)


def _square(columns: Tensor, products: Tensor) -> Tensor:
    """The squared lengths of products."""
    return _summed(lambda piece: products[piece].double().square(), products)


def _summed(entries: Callable[[slice], Tensor], columns: Tensor) -> Tensor:
    """Sums over the rows of (P, K), (K,), some rows at a time: squares leave the range of single precision."""
    height = piece_of(columns.T)
    pieces = [entries(slice(first, first + height)).sum(dim=0) for first in range(0, len(columns), height)]
    return torch.stack(pieces).sum(dim=0)
