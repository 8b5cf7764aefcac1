"""From which learning rate steps on minibatches diverge, and how far the curvature of single examples adds up.

Near a point that fits every example a step on a minibatch is Δ ↦ (I − η H_B) Δ, H_B the mean of its examples' H_i.
With H_i = A_i A_iᵀ from Gauss-Newton factors, all that is needed are the blocks A_iᵀ A_j of a kernel (``weighted``):

    S_ij = ‖H_i^½ H_j^½‖ = ‖A_iᵀ A_j‖ (Frobenius),    σ = λ₁(S) / max_i λ₁(H_i).

With one output σ is 1 where examples have nothing in common and N where all are the same; with C outputs up to √C times
that. Where every example is in a batch by itself with chance B/N, E‖Δ‖² grows without bound if

    η ≥ 2/λ₁(H)   or   η ≥ σ / (λ₁(H) √(N/B − 1)),

for λ₁(S) ≥ N λ₁(H), so that the second makes η max_i λ₁(H_i) √(N/B − 1)/N ≥ 1: the noise of one example alone is
enough. It is sufficient, and often far from necessary. What decides, for batches of B different examples, is

    1/η* = λmax(P^-½ Q P^-½),   P M = H M + M H,   Q M = (1 − p) H M H + p/N Σ_i H_i M H_i,   p = (N − B)/(B(N − 1)),

on symmetric matrices M: E[(I − ηH_B) M (I − ηH_B)] = M − η P M + η² Q M, and for η < η* second moments shrink. In the
eigenvectors of H, P is a product of entries, and one iteration costs as much as four products of N·C × N·C matrices.

Source: Dexter et al., arXiv 2401.12332 (σ and its condition); Mulayoff & Michaeli, arXiv 2306.07850 (η*).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from diagnostics.estimate import Estimate, exact
from diagnostics.minibatches import Minibatches
from diagnostics.objective import Objective
from diagnostics.tangent_kernel.kernel import TangentKernel
from diagnostics.tangent_kernel.weighted import full_kernel, weighted

MOST_ROWS = 2048
"""Examples times outputs for which the edge is iterated, some fifteen times: a second or so for each there."""

NOTHING = 1e-12
"""Relative eigenvalues of H below this are rounding: no example has curvature along them."""


@dataclass(frozen=True, repr=False)
class SgdCoherence:
    """How far the curvature of single examples adds up, and from which learning rate on SGD diverges.

    Attributes:
        batch_size: B, different examples in a step.
        examples: N, from which they are drawn.
        matrix: (N, N) S, float64.
        coherence: σ, from 1 to N, with C outputs to N√C.
        sharpest: max_i λ₁(H_i), of the mean loss.
        sharpness: λ₁(H), the largest Gauss-Newton eigenvalue.
        descent: 2/λ₁(H), the edge of steps on all examples.
        bound: the learning rate from which the coherence says that SGD diverges; at most ``descent``.
        edge: the learning rate η* from which it does, in the mean square.
    """

    batch_size: int
    examples: int
    matrix: Tensor
    coherence: Estimate
    sharpest: Estimate
    sharpness: Estimate
    descent: Estimate
    bound: Estimate
    edge: Estimate

    def __str__(self) -> str:
        text = f"steps on {self.batch_size} of {self.examples} examples diverge from a learning rate of {self.edge} on"
        if not self.edge.determined:
            text += f" ({self.edge.how})"
        return f"{text}, steps on all from {self.descent}; coherence {self.coherence}, which alone says {self.bound}"

    def __repr__(self) -> str:
        return f"SgdCoherence({self})"


def sgd_coherence(
    objective: Objective, batch_size: int, *, kernel: TangentKernel | None = None, tol: float = 1e-3
) -> SgdCoherence:
    """Coherence of the examples' Gauss-Newton matrices, and the learning rate from which plain SGD diverges for it.

    All of it is of the linearised steps of SGD without momentum, with the Gauss-Newton part of the curvature: the truth
    at a minimum that fits every example, and a picture elsewhere. Second moments can diverge where most runs converge.

    Args:
        objective: a loss that is convex in the outputs and takes examples one by one.
        batch_size: of the trainer, in examples; no more than the objective has.
        kernel: the full one of this objective, if there is one already.
        tol: relative, of the edge's residual, at which to stop; the error is mostly its square.

    Raises:
        DiagnosticsError: a batch size out of range; a kernel of another kind or number of examples; a loss that is not
            convex in the outputs, or whose curvature is not that of single examples; or as ``ntk``.

    Source: arXiv 2401.12332, 2306.07850.

    Example:
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> objective = Objective(model, torch.nn.MSELoss(), (torch.eye(4), torch.zeros(4, 1)))
        >>> found = sgd_coherence(objective, 2)  # four examples that share nothing, of curvature 2 each
        >>> [round(float(one), 4) for one in (found.coherence, found.edge, found.bound, found.descent)]
        [1.0, 2.0, 2.0, 4.0]
    """
    batches = Minibatches(objective, batch_size)
    count, size = batches.examples, batches.size
    kernel = full_kernel(objective, kernel)
    products = count * weighted(objective, kernel)
    width = kernel.classes
    blocks = products.view(count, width, count, width)
    matrix = torch.linalg.vector_norm(blocks, dim=(1, 3))
    own = torch.linalg.eigvalsh(torch.stack([blocks[i, :, i] for i in range(count)]))
    values, vectors = torch.linalg.eigh(products)
    sharpest, sharpness = float(own[:, -1].max()), float(values[-1]) / count
    how = f"{count} examples with {width} outputs; {kernel.how}"
    if not sharpness > 0:
        none = Estimate(math.nan, math.nan, "exact", f"there is no curvature; {how}")
        return SgdCoherence(size, count, matrix, none, exact(0.0, how), exact(0.0, how), none, none, none)
    coherence = float(torch.linalg.eigvalsh(matrix)[-1]) / sharpest
    # A loss that adds examples up takes steps of that many times the mean's.
    descent = 2.0 / sharpness / batches.scale
    noise = math.sqrt(count / size - 1.0)
    bound = min(descent, coherence / sharpness / noise / batches.scale) if noise else descent
    return SgdCoherence(
        size,
        count,
        matrix,
        coherence=exact(coherence, how),
        sharpest=exact(sharpest, how),
        sharpness=exact(sharpness, how),
        descent=exact(descent, how),
        bound=exact(bound, f"sufficient; batches that each example is in by itself with chance {size}/{count}; {how}"),
        edge=_edge(values, vectors, size, width, batches.scale, tol, how),
    )


def _edge(values: Tensor, vectors: Tensor, size: int, width: int, scale: float, tol: float, how: str) -> Estimate:
    """η*, by Lanczos on symmetric matrices in the eigenvectors of H.

    Args:
        values: N λ(H), and those of the kernel, (N·C,).
        vectors: of the kernel.
        size: B.
        width: C.
        scale: of the trainer's steps.
        tol: relative.
        how: for the Estimate.
    """
    rows = len(values)
    if rows > MOST_ROWS:
        reason = f"{rows:,} examples × outputs, iterated up to {MOST_ROWS:,}"
        return Estimate(math.nan, math.nan, "residual", f"{reason}; {how}")
    count = rows // width
    kept = values > NOTHING * values[-1]
    h = values[kept] / count
    factors = h.mul(count).sqrt()[:, None] * vectors[:, kept].T
    share = (count - size) / (size * (count - 1)) if count > 1 else 0.0
    root = (h[:, None] + h[None, :]).rsqrt()
    together = (1.0 - share) * torch.outer(h, h)
    rank, products = len(h), 0

    def product(given: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
        nonlocal products
        products += 1
        m = root * torch.as_tensor(given, dtype=torch.float64, device=h.device).view(rank, rank)
        inner = (factors.T @ m).view(count, width, rank)
        inner = inner @ factors.view(rank, count, width).movedim(1, 0)
        single = (factors.view(rank, count, width).movedim(1, 0) @ inner).movedim(0, 1).reshape(rank, rows)
        found: numpy.ndarray[Any, Any] = (root * (together * m + share / count * (single @ factors.T))).cpu().numpy()
        return found.ravel()

    start = torch.eye(rank, dtype=torch.float64).numpy().ravel()
    if rank == 1:
        largest, residual = float(product(start)[0]), 0.0
    else:
        operator = LinearOperator((rank**2, rank**2), matvec=product, dtype=numpy.float64)
        try:
            # The largest belongs to a positive matrix, of which the identity holds a part.
            found, vector = eigsh(operator, k=1, which="LA", v0=start, tol=tol, ncv=min(rank**2, 12))
        except ArpackError as failed:
            return Estimate(math.nan, math.nan, "residual", f"{failed}; {how}")
        largest = float(found[0])
        residual = float(numpy.linalg.norm(product(vector[:, 0]) - largest * vector[:, 0]))
    value = 1.0 / largest / scale
    route = f"batches of {size} different examples; Lanczos, {products} products"
    return Estimate(value, value * residual / largest, "residual", f"{route}; {how}")
