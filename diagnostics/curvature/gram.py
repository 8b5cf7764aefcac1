"""The whole Gauss-Newton spectrum, exactly, where the loss has few terms: from the Gram matrix.

G = Σ_b w_b J_bᵀ B_b J_b is P × P, but its rank is at most M = terms × outputs. With B_b = R_b S_b R_bᵀ, S_b a diagonal
of signs, and A the rows √w_b R_bᵀ J_b of all batches, G = Aᵀ S A. For a loss that is convex in the outputs S = 1, and
the non-zero eigenvalues of G are those of K = A Aᵀ, which is M × M. Otherwise K = L Lᵀ, and they are those of Lᵀ S L.

A row of A is one backward pass (``rows``). Only first derivatives of the model are taken, by another way than products
with ``GaussNewton`` go: either checks the other.

Source: Dangel, Tatzel & Hennig, arXiv 2106.02624. For the mean squared error K is the tangent kernel times 2 / M.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diagnostics.curvature.operators import GaussNewton
from diagnostics.curvature.products.check import DISAGREEMENT
from diagnostics.curvature.rows import LOST, Rows
from diagnostics.curvature.sums import check_interval
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.objective import Objective
from diagnostics.parameters import Selection


@dataclass(frozen=True, repr=False)
class GaussNewtonSpectrum:
    """Every eigenvalue of a Gauss-Newton matrix.

    Attributes:
        values: (rank,), float64 on the CPU, largest first: the eigenvalues that are not zero. Each is known to about
            ε √(λ λ₁), with λ₁ the largest and ε of the parameters' dtype.
        dimension: P.
        threshold: what is no larger cannot be told from zero, given the rounding of backward passes in the parameters'
            dtype and of inner products in double precision. (A model may compute in less than its parameters' dtype;
            it then has small eigenvalues that are rounding.)
        how: method, backward passes and data in one line.
    """

    values: Tensor
    dimension: int
    threshold: float
    how: str
    _rows: Rows = field(compare=False)
    _mixing: Tensor = field(compare=False)

    @property
    def zeros(self) -> int:
        """How often the eigenvalue zero occurs, P − rank; what does not exceed ``threshold`` counts as zero."""
        return self.dimension - len(self.values)

    @property
    def trace(self) -> Estimate:
        """The sum of all eigenvalues."""
        return exact(float(self.values.sum()), self.how)

    @property
    def frobenius(self) -> Estimate:
        """The root of the sum of squared eigenvalues."""
        return exact(float(torch.linalg.vector_norm(self.values)), self.how)

    def mass(self, low: float, high: float) -> Estimate:
        """The share of all P eigenvalues, zeros included, in [low, high]: both ends, and ``threshold`` around them."""
        low, high = check_interval(low, high)
        inside = (self.values >= low - self.threshold) & (self.values <= high + self.threshold)
        # A zero is exact: no positive threshold, however small, counts it in.
        return exact((int(inside.sum()) + self.zeros * (low <= 0.0 <= high)) / self.dimension, self.how)

    def vectors(self, k: int) -> Tensor:
        """Unit eigenvectors (P, k) of the first k values, orthogonal to about ε √(λ₁/λ); k passes for each batch.

        Raises:
            DiagnosticsError: k out of range, or the model's buffers or other parameters have changed in the meantime.
        """
        if not isinstance(k, numbers.Integral) or not 1 <= k <= len(self.values):
            raise DiagnosticsError("k is out of range", given=repr(k), expected=f"1 to rank = {len(self.values)}")
        return self._rows.steadily(lambda: self._rows.mixed(self._mixing[:, :k]))

    def __str__(self) -> str:
        shown = ", ".join(f"{value:.4g}" for value in self.values[:3].tolist())
        rest = f", ..., {float(self.values[-1]):.3g}" if len(self.values) > 3 else ""
        return (
            f"{len(self.values):,} of {self.dimension:,} eigenvalues are not zero: {shown or 'none'}{rest} ({self.how})"
        )

    def __repr__(self) -> str:
        return f"GaussNewtonSpectrum({self})"


def gauss_newton_spectrum(
    objective: Objective, *, params: Selection = None, microbatch: int | None = None, limit: int = 4096
) -> GaussNewtonSpectrum:
    """All eigenvalues of the Gauss-Newton matrix, exact to rounding, from its Gram matrix.

    Args:
        objective: made with ``Objective(model, loss, batches)`` or ``Objective.huggingface``, which know the outputs.
        params: only these parameters, in place of the objective's selection.
        microbatch: take batches in pieces of so many examples. Each row costs a backward pass through the whole piece
            that it belongs to: with large batches, small pieces are many times faster.
        limit: the largest M to accept: examples (for cross-entropy, labels that count) times outputs. Time goes with
            M backward passes and M³, memory with M².

    Raises:
        DiagnosticsError: M above the limit; a Jacobian too large even in pieces; outputs that cannot be seen, do not
            depend on the parameters, or are not finite; a model that hides a part of itself from autograd, seen by one
            product with ``GaussNewton``; ``NLLLoss``; a microbatch that changes the value.

    Example:
        >>> model, data = torch.nn.Linear(3, 1, bias=False), (torch.eye(3)[:2], torch.ones(2, 1))
        >>> spectrum = gauss_newton_spectrum(Objective(model, torch.nn.MSELoss(), data))
        >>> spectrum.values.tolist(), spectrum.zeros, spectrum.trace.value
        ([1.0, 1.0], 1, 2.0)
    """
    if not isinstance(limit, numbers.Integral) or isinstance(limit, bool) or limit < 1:
        raise DiagnosticsError("limit is out of range", given=repr(limit), expected="a whole number from 1")
    matrix = GaussNewton(objective, params=params, microbatch=microbatch)
    rows = Rows(matrix, limit)
    generator = torch.Generator(device="cpu").manual_seed(0)
    probe = torch.randn(matrix.shape[0], generator=generator, dtype=torch.float32, device="cpu")
    probe = probe.to(matrix.device, matrix.dtype)
    # One product by the other way: it names what is not finite, and differences of outputs see what autograd does not.
    expected = (matrix @ probe).double()
    gram, product, blocks = rows.steadily(lambda: rows.gram(probe.double()))
    size, off = float(torch.linalg.vector_norm(expected)), float(torch.linalg.vector_norm(product - expected))
    if not off <= (DISAGREEMENT + 4 * matrix.product_error) * size:
        raise DiagnosticsError(
            "the outputs' Jacobian is not what a product with GaussNewton says",
            given=f"{off / size if size else 1.0:.0%} apart along a random direction",
            expected="a model of which autograd sees all",
            attempt="look for detach(), no_grad and checkpoint(use_reentrant=True) in the model",
        )
    values, mixing, threshold = _eigenpairs(gram, rows.signs, torch.finfo(matrix.dtype).eps, matrix.shape[0])
    how = f"Gram matrix of {len(gram):,} rows" + (f" in {blocks} blocks" if blocks > 1 else "")
    how += f", {rows.passes:,} backward passes" + ("" if rows.batched else " one by one")
    how += f", {str(matrix.dtype).removeprefix('torch.')}; {matrix.objective.description}"
    return GaussNewtonSpectrum(values.cpu(), matrix.shape[0], threshold, how, rows, mixing)


def _eigenpairs(gram: Tensor, signs: Tensor, epsilon: float, most: int) -> tuple[Tensor, Tensor, float]:
    """Eigenvalues (rank,) of AᵀSA, largest first, X (M, rank) with unit eigenvectors AᵀX, and what counts as zero."""
    values, vectors = torch.linalg.eigh(gram)
    # Rounding of A enters an eigenvalue zero of A Aᵀ squared; that of sums in double precision enters as it is.
    sums = len(gram) * torch.finfo(torch.float64).eps * (float(values[-1]) if len(gram) else 0.0)
    threshold = sums + (LOST * epsilon) ** 2 * float(gram.trace())
    roots = values.clamp_min(0.0).sqrt()
    if bool((signs > 0).all()):
        mixing, lengths = vectors, roots
    else:
        # If z is an eigenvector of LᵀSL, then AᵀSLz is one of AᵀSA, and its length is |λ|.
        root = vectors * roots
        values, vectors = torch.linalg.eigh(root.T @ (signs[:, None] * root))
        mixing, lengths = signs[:, None] * (root @ vectors), values.abs()
    kept = values.abs().argsort(descending=True)[: min(most, int((values.abs() > threshold).sum()))]
    kept = kept[values[kept].argsort(descending=True)]
    return values[kept], mixing[:, kept] / lengths[kept], threshold
