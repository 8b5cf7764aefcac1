"""Gauss rules for the spectrum of an operator, by Lanczos recurrences from several random directions at once.

m Lanczos steps from a unit vector q give a tridiagonal T. Its eigenvalues θ and the squared first components w of its
eigenvectors are the Gauss rule of the measure that puts mass (uᵢ·q)² at each eigenvalue λᵢ of A: Σ w θʲ = qᵀAʲq for
every j < 2m. Averaged over directions that are uniform on the sphere, this measure is the spectral density of A.

The probes advance together, one block product per step, each with a recurrence of its own. Against the copies of
converged eigenvalues that rounding breeds, every new direction is orthogonalised against its whole basis, twice
(classical Gram-Schmidt, as batched matrix products). Where the bases do not fit into memory the probes take turns, and
where not even one of them fits, the bare three-term recurrence is run: the copies then share the mass of the
original, so that sums over nodes stay right, and only counting nodes goes wrong.

Nothing in the loop waits for the device. A chain whose next direction is only rounding has found an invariant
subspace, and ends by a mask; the tridiagonals go to the host once, at the end.

Source: Golub & Meurant, Matrices, Moments and Quadrature, ch. 6; Ubaru, Chen & Saad 2017 (stochastic Lanczos
quadrature); Ghorbani, Krishnan & Xiao, arXiv 1901.10159 (on Hessians of networks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from diagnostics.curvature.draws import drawn_type, random_stream
from diagnostics.curvature.eigen.basis import MOST, precise, waiting_is_free
from diagnostics.curvature.symmetric import SymmetricMap, dimension, multiply, refuse, rounding_of, steadily

BASIS_BYTES = 4 * 2**30
"""Memory that the stored bases may take together, unless ``max_basis`` says otherwise."""

THREE_TERM_VECTORS = 4
"""Vectors a probe needs at once without a basis: its direction, the one before, the product, and its remainder."""

PIECE = {"cpu": 2**16}
"""Entries that are squared and summed at once in double precision: on a CPU as many as its caches hold."""

LARGE_PIECE = 2**24
"""The same elsewhere."""

LOOK_EVERY = 16
"""Steps between two looks at whether all is finite and some chain still runs: each look waits for the device."""

T = TypeVar("T")


@dataclass(frozen=True)
class GaussRules:
    """One Gauss rule per probe, float64 on the CPU, nodes ascending.

    A chain that ended early has fewer nodes than steps: its largest node is then repeated with weight zero.

    Attributes:
        nodes: (probes, steps).
        weights: (probes, steps), each row sums to 1.
        residuals: (probes, steps), some eigenvalue lies within so much of the node; all zero where a chain has ended,
            for then it has seen everything its direction holds.
        matvecs: products taken.
        orthogonal: whether whole bases were kept, so that no eigenvalue comes back as a copy.
    """

    nodes: Tensor
    weights: Tensor
    residuals: Tensor
    matvecs: int
    orthogonal: bool


def gauss_rules(
    operator: SymmetricMap,
    probes: int,
    steps: int,
    seed: int,
    max_basis: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> GaussRules:
    """Gauss rules from random directions.

    Args:
        operator: A, symmetric, (P, P).
        probes: number of directions, uniform on the sphere, drawn on the CPU so that every device sees the same.
        steps: nodes of each rule.
        seed: of the directions.
        max_basis: vectors (P,) that may be stored at once; by default what fits into 4 GiB.
        progress: called with the share done after every block product.

    Raises:
        DiagnosticsError: a product was not finite.
    """
    size = dimension(operator)
    depth = min(steps, size)
    dtype = drawn_type(operator)
    capacity = BASIS_BYTES // (size * dtype.itemsize) if max_basis is None else max_basis
    orthogonal = capacity >= depth
    group = max(1, min(probes, capacity // (depth if orthogonal else THREE_TERM_VECTORS)))
    generator = random_stream(seed)
    rules: list[tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]] = []
    matvecs = 0

    def run() -> None:
        nonlocal matvecs
        for first in range(0, probes, group):
            count = min(group, probes - first)
            starts = torch.empty(count, size, dtype=dtype, device=operator.device)
            for row in starts:
                row.copy_(torch.randn(size, generator=generator, dtype=dtype, device="cpu"))
            starts /= lengths(starts).to(dtype).unsqueeze(1)
            chains = _Chains(operator, starts, depth, orthogonal)
            del starts
            for step in range(depth):
                running = chains.advance()
                if progress is not None:
                    progress((first + count * (step + 1) / depth) / probes)
                if not running:
                    break
            matvecs += count * chains.steps
            rules.extend(chains.rules())

    plainly(operator, run, probes * depth)
    # Sums over nodes pass over the padding, and no smallest or largest value is moved by it.
    nodes, weights, residuals = (numpy.empty((probes, steps)) for _ in range(3))
    for row, (node, weight, residual) in enumerate(rules):
        missing = (0, steps - len(node))
        nodes[row] = numpy.pad(node, missing, mode="edge")
        weights[row] = numpy.pad(weight, missing)
        residuals[row] = numpy.pad(residual, missing)
    first, second, third = (torch.from_numpy(array) for array in (nodes, weights, residuals))
    return GaussRules(first, second, third, matvecs, orthogonal)


@contextmanager
def plain_arithmetic(operator: SymmetricMap) -> Iterator[None]:
    """Our own arithmetic without gradients and in the precision it is written in, wherever the caller stands."""
    without_autocast = torch.autocast(operator.device.type, enabled=False)
    with torch.inference_mode(False), torch.no_grad(), without_autocast:
        yield


def plainly(operator: SymmetricMap, action: Callable[[], T], products: int = 0) -> T:
    """``steadily``, with plain arithmetic."""
    with plain_arithmetic(operator):
        return steadily(operator, action, products)


def lengths(rows: Tensor) -> Tensor:
    """Norms of the rows of (K, P), (K,), in double precision, piece by piece.

    In single precision squares of 1e-23 are zero and of 1e20 infinite, and torch on a CPU is 1 % off for 10⁸ entries.
    """
    pieces = rows.split(piece_of(rows), dim=1)
    norms = [torch.linalg.vector_norm(piece.to(precise(rows.device)), dim=1) for piece in pieces]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms, dim=1), dim=1)
    return total


def piece_of(rows: Tensor) -> int:
    """How many columns of (K, P) to work on at once."""
    return max(1, PIECE.get(rows.device.type, LARGE_PIECE) // max(1, len(rows)))


def inner(one: Tensor, other: Tensor) -> Tensor:
    """The inner product of two vectors (P,), likewise."""
    wide = precise(one.device)
    pieces = zip(one.split(piece_of(one[None])), other.split(piece_of(one[None])), strict=True)
    return torch.stack([torch.dot(left.to(wide), right.to(wide)) for left, right in pieces]).sum()


class _Chains:
    """Lanczos recurrences side by side: row i of every tensor belongs to probe i."""

    def __init__(self, operator: SymmetricMap, starts: Tensor, depth: int, orthogonal: bool) -> None:
        self.operator = operator
        self.depth = depth
        self.direction = starts
        self.rounding = rounding_of(operator)
        self.basis = starts.new_empty(len(starts), depth, starts.shape[1]) if orthogonal else None
        self.before: Tensor | None = None
        self.diagonal: list[Tensor] = []
        self.off_diagonal: list[Tensor] = []
        self.alive = torch.ones(len(starts), dtype=torch.bool, device=starts.device)
        self.sound = self.alive.clone()
        self.lengths = torch.zeros(len(starts), dtype=torch.int64, device=starts.device)

    @property
    def steps(self) -> int:
        return len(self.diagonal)

    def advance(self) -> bool:
        """One product for every chain. Returns whether it is worth going on."""
        product = multiply(self.operator, self.direction.T.to(self.operator.dtype))
        # A copy, for it is written to below, and an operator may hand back what it was given.
        image = product.T.to(self.direction.dtype).clone(memory_format=torch.contiguous_format)
        del product
        length = self._lengths(image)
        alpha = self._orthogonalise(image, length) if self.basis is not None else self._recur(image)
        beta = self._lengths(image)
        self.sound &= ~self.alive | torch.isfinite(alpha + beta)
        self.lengths += self.alive
        # What is left is judged by the product it is left of, not by the norm of A: beside large outliers a small
        # bulk is still known to its own relative precision. A threshold too low does no harm, since a chain that
        # goes on from rounding finds copies, which share the mass.
        self.alive = self.alive & self.sound & (beta > self.rounding * length)
        self.diagonal.append(alpha)
        self.off_diagonal.append(torch.where(self.alive, beta, 0.0))
        # An ended chain repeats its last direction: it needs some vector, and zero has no relative precision.
        image /= torch.where(self.alive, beta, 1.0).unsqueeze(1)
        self.direction = torch.where(self.alive.unsqueeze(1), image, self.direction)
        if (self.steps - 1) % LOOK_EVERY == 0 or self.steps == self.depth:
            if not bool(self.sound.all()):
                refuse(self.operator, self.direction.T)
            return bool(self.alive.any())
        return True

    def _orthogonalise(self, image: Tensor, length: Tensor) -> Tensor:
        """Take from the image what lies in its basis, and return its component along the current direction."""
        assert self.basis is not None
        self.basis[:, self.steps] = self.direction
        rows = self.basis[:, : self.steps + 1]
        alpha = self._subtract(rows, image)
        if not waiting_is_free(image.device):
            return alpha + self._subtract(rows, image)
        # Twice is enough, and once is where most of the product is left.
        for chain in ((self._lengths(image) <= MOST * length) & self.alive).nonzero()[:, 0].tolist():
            alpha[chain] += self._subtract(rows[chain : chain + 1], image[chain : chain + 1])[0]
        return alpha

    @staticmethod
    def _subtract(rows: Tensor, image: Tensor) -> Tensor:
        """One pass of Gram-Schmidt, in place; the components along the last row."""
        components = torch.bmm(rows, image.unsqueeze(2))
        image.unsqueeze(1).baddbmm_(components.transpose(1, 2), rows, alpha=-1)
        return components[:, -1, 0].clone()

    @staticmethod
    def _lengths(rows: Tensor) -> Tensor:
        return lengths(rows).to(rows.dtype)

    def _recur(self, image: Tensor) -> Tensor:
        """The same against the last two directions only."""
        if self.before is not None:
            image.addcmul_(self.before, self.off_diagonal[-1].unsqueeze(1), value=-1)
        alpha = torch.stack([inner(*rows) for rows in zip(self.direction, image, strict=True)]).to(image.dtype)
        image.addcmul_(self.direction, alpha.unsqueeze(1), value=-1)
        self.before = self.direction
        return alpha

    def rules(self) -> list[tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]]:
        """Nodes, weights and residuals of each chain, as long as it ran."""
        diagonal = torch.stack(self.diagonal, dim=1).cpu().double().numpy()
        off_diagonal = torch.stack(self.off_diagonal, dim=1).cpu().double().numpy()
        if self.basis is not None and self.steps == self.direction.shape[1]:
            off_diagonal[:, -1] = 0.0  # nothing is left outside of a basis of the whole space
        result = []
        for alpha, beta, length in zip(diagonal, off_diagonal, self.lengths.tolist(), strict=True):
            nodes, vectors = eigh_tridiagonal(alpha[:length], beta[: length - 1])
            weights = vectors[0] ** 2
            result.append((nodes, weights / weights.sum(), numpy.abs(beta[length - 1] * vectors[-1])))
        return result
