"""Lanczos in bounded memory: an orthonormal basis Q, the operator as seen within it, and what leads out of it.

Each step multiplies the newest vector, orthogonalises the product against all of Q and makes what is left the next
vector. So A Q = Q H + β q eᵀ, with H = QᵀAQ measured column by column, and an eigenpair (θ, s) of H gives the Ritz pair
(θ, Qs) with the residual β |s_m|, exactly. The basis is reorthogonalised in full, for without it converged eigenvalues
come back as copies.

*Thick restart* (Wu & Simon, SIAM J. Matrix Anal. 2000). When the basis is full, it is replaced by its best Ritz vectors
Y, in place, and the run goes on with the same next vector q: A Y = Y Θ + q (β s_m)ᵀ, which is the same relation again.

*Locking.* A single Krylov space holds one copy of a repeated eigenvalue, and its start may have lacked a direction
altogether. A fresh run from a random vector outside the vectors kept finds either. Then q is given up: its
coefficients β s_m are remembered as a "loose end", for they remain part of the residual of whatever is made of those
vectors. What the new run shares with them is in H, like everything within the basis.

*No waiting for the device.* Between two looks (``read``) everything stays there, sums in double precision. A run that
has come upon an invariant subspace (β is nothing but rounding) is noticed at the look and taken back to that step; a
product that was not finite is noticed then too.

Source: Golub & Van Loan, Matrix Computations, ch. 10; Saad, Numerical Methods for Large Eigenvalue Problems, ch. 6.
"""

from __future__ import annotations

import math

import numpy
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from diagnostics.curvature.eigen.basis import Basis, dot, random_vector
from diagnostics.curvature.eigen.hidden import Hidden
from diagnostics.curvature.symmetric import SymmetricMap, dimension, multiply, refuse, rounding_of


class Lanczos:
    """Runs on one operator that share a basis.

    Args:
        operator: A.
        keep: how many rows the result will have.
        limit: the most rows.
        generator: of random vectors.

    Attributes:
        size: P.
        limit: the most rows.
        matvecs: products taken.
        locked: the first so many rows stay while a run goes on.
        beta: length of what leads out of the newest row; zero when nothing does.
        broken: whether some run has come upon an invariant subspace.
        hidden: what the present run cannot have missed.
    """

    def __init__(self, operator: SymmetricMap, keep: int, limit: int, generator: torch.Generator) -> None:
        self.operator = operator
        self.size = dimension(operator)
        self.matvecs = 0
        self.locked = 0
        self.beta = 0.0
        self.broken = False
        self.hidden = Hidden()
        self.limit = limit
        self._generator = generator
        self._basis = Basis(self.size, keep, limit, operator.dtype, operator.device)
        self._projected = numpy.zeros((0, 0))
        self._ends = numpy.zeros((0, 0))
        self._unread: list[Tensor] = []
        self._direction = torch.empty(0)
        self._root = 0
        self._bare_from: int | None = 0
        self._norm = 0.0
        self._turns = 0

    @property
    def floor(self) -> float:
        """Below this a number is error of the products, or of the rounding in one turn of the basis after another."""
        return self._norm * rounding_of(self.operator) * math.sqrt(1 + 2 * self._turns)

    @property
    def rows(self) -> int:
        """How many vectors there are."""
        return len(self._basis)

    @property
    def must_look(self) -> bool:
        """Whether no step can follow without a look."""
        return self.rows in (self.limit, self.size)

    @property
    def full(self) -> bool:
        """Whether only a restart makes room for more."""
        return self.rows == self.limit < self.size

    def random(self) -> Tensor:
        """A Gaussian vector (P,)."""
        return random_vector(self.size, self._generator, self.operator.dtype, self.operator.device)

    def begin(self, start: Tensor) -> None:
        """A fresh run outside the rows there are, which are locked."""
        self.locked = self._bare_from = self.rows
        self._aim(start)

    def renew(self) -> None:
        """Go on in the complement of an invariant subspace; its rows are not locked."""
        self._aim(self.random())

    def step(self) -> None:
        """One product, orthogonalised. Nothing here waits for the device."""
        self._basis.append(self._direction)
        newest = self._basis[self.rows - 1]
        image = multiply(self.operator, newest)
        self.matvecs += 1
        alpha = dot(newest, image)
        products, rest = self._basis.outside(image)
        length = dot(rest, rest).sqrt()
        self._unread.append(torch.cat([products[:-1].to(alpha.dtype), alpha[None], length[None]]))
        self._direction = rest / length.to(rest.dtype).clamp_min(torch.finfo(rest.dtype).tiny)

    def read(self) -> None:
        """Fetch what the steps since the last look have found."""
        if not self._unread:
            return
        numbers = torch.cat(self._unread).cpu().double().numpy()
        known = len(self._projected)
        grown = numpy.zeros((self.rows, self.rows))
        grown[:known, :known] = self._projected
        for row in range(known, self.rows):
            column, numbers = numbers[: row + 2], numbers[row + 2 :]
            if not numpy.isfinite(column).all():
                refuse(self.operator, self._basis[row])
            grown[row, : row + 1] = grown[: row + 1, row] = column[:-1]
            self._norm = max(self._norm, abs(column[-2]) + column[-1] + self.beta)
            self.beta = float(column[-1])
            if self.beta <= self.floor or row + 1 == self.size:
                # Nothing leads out. Steps beyond this one, taken before we looked, were steps into rounding.
                self.beta, self.broken = 0.0, True
                self._basis.truncate(row + 1)
                break
            self.hidden.add(column[self._root : -1], self.beta)
        self._unread.clear()
        self._projected = grown[: self.rows, : self.rows]
        self._ends = numpy.pad(self._ends, ((0, 0), (0, self.rows - self._ends.shape[1])))

    def ritz(self, begin: int = 0) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Ritz values, ascending, of the rows from ``begin`` on, and their coefficients as columns."""
        block = self._projected[begin:, begin:]
        if begin == self._bare_from:
            # Without a restart H is tridiagonal up to rounding, which LAPACK solves in no time and on one thread.
            values, coefficients = eigh_tridiagonal(numpy.diagonal(block), numpy.diagonal(block, 1))
        else:
            values, coefficients = numpy.linalg.eigh(block)
        return values, coefficients

    def restart(self, coefficients: numpy.ndarray) -> None:
        """Replace the rows of the run by m Ritz vectors of theirs, coefficients (n, m), and go on."""
        if self._root == self.locked:
            self.hidden.turn(coefficients)
        else:
            self.hidden.lose()
        self._root = self.locked
        self._turn(self.locked, coefficients)

    def residuals_of(self, coefficients: numpy.ndarray) -> numpy.ndarray:
        """‖Av − θv‖ at most for Ritz vectors with coefficients (n, k), rounding not included: (k,)."""
        bounds: numpy.ndarray = numpy.abs(self._open_ends() @ coefficients).sum(axis=0)
        return bounds

    def _open_ends(self) -> numpy.ndarray:
        last = numpy.zeros((1, self.rows))
        last[0, -1] = self.beta
        return numpy.concatenate([self._ends, last])

    def settle(self, coefficients: numpy.ndarray) -> None:
        """Replace all rows by Ritz vectors of theirs, coefficients (n, k), and end the run."""
        self._ends = self._open_ends()
        self._turn(0, coefficients)
        self.beta = 0.0

    def drop(self) -> None:
        """Forget the run and keep what was locked before it."""
        self._basis.truncate(self.locked)
        self._projected = self._projected[: self.locked, : self.locked]
        self._ends = self._ends[:, : self.locked]
        self.beta = 0.0

    def residuals(self) -> numpy.ndarray:
        """‖Av − θv‖ at most, of each row after ``settle``, rounding not included."""
        bounds: numpy.ndarray = numpy.abs(self._ends).sum(axis=0)
        return bounds

    def combine(self, weights: numpy.ndarray) -> Tensor:
        """One weighted sum (P,) of all rows."""
        return self._basis.combine(weights)

    def columns(self) -> Tensor:
        """The rows as columns (P, k); the last thing to ask for."""
        return self._basis.columns()

    def _turn(self, begin: int, coefficients: numpy.ndarray) -> None:
        self._turns += 1
        self._bare_from = None
        whole = numpy.zeros((self.rows, begin + coefficients.shape[1]))
        whole[:begin, :begin] = numpy.eye(begin)
        whole[begin:, begin:] = coefficients
        self._projected = whole.T @ self._projected @ whole
        self._ends = self._ends @ whole
        self._basis.turn(begin, coefficients)

    def _aim(self, start: Tensor) -> None:
        """Make what a vector has outside the basis the next direction, or a random one where that is nothing."""
        self.beta, self._root, self.hidden = 0.0, self.rows, Hidden()
        while True:
            before = float(dot(start, start)) ** 0.5
            _, rest = self._basis.outside(start)
            length = float(dot(rest, rest)) ** 0.5
            if length > 8 * torch.finfo(rest.dtype).eps * before:
                self._direction = rest / length
                return
            start = self.random()
