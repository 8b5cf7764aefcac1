"""What a Lanczos run cannot have missed: the weight that an eigenvector may have had in its start without showing.

A small residual proves *an* eigenvalue, never that it is the largest: a start that holds little of the top eigenvector
converges to the second one first. How little it would have to hold can be computed. Let u be a unit eigenvector with
eigenvalue x, and q₀, q₁, … the orthonormal vectors of the run. From A qⱼ = βⱼ qⱼ₊₁ + Σᵢ Hᵢⱼ qᵢ follows

    u·qⱼ₊₁ = (x u·qⱼ − Σᵢ Hᵢⱼ u·qᵢ) / βⱼ,   so   u·qⱼ = fⱼ(x) u·q₀   with f₀ = 1 and numbers f that are known,

and as u is no longer than one (Bessel), Σⱼ (u·qⱼ)² ≤ 1, hence (u·q₀)² ≤ 1 / Σⱼ fⱼ(x)². Beyond the Ritz values the sum
grows with x and, step by step, like the square of a Chebyshev polynomial: fast where there is a gap.

A direction uniform on the sphere has less than w of its square along a given u with probability √(2Pw/π) at most. So
from a random start, a run that has brought the sum to 2P/(πδ²) has missed an eigenvalue at x or beyond with a chance
of δ at most: ``MISSED`` is three sigma. This is Kuczyński & Woźniakowski's bound (SIAM J. Matrix Anal. 1992) with what
the run itself has seen of the spectrum in place of the worst case.

A warm start is no random one: it is a former answer plus noise of length ``NOISE``, and to prove as much by its noise
alone would cost as many products as a cold start. It is followed until a direction that held ``WARM_WEIGHT``/P of it,
or 1/``WARM_LEAST`` where that is less, would have shown.

Measured on the Hessians of four small networks along training (P = 732 to 891, eigenvalues crowded at the top), against
dense eigenvalues: products until a value was accepted, and how many of the accepted were too small by more than the
tolerance. "Formerly" was half as many steps again as the residual needs and, when warm, 3 + ½ ln P at least, with noise
of 0.01. The last start is the exact former eigenvector, some runners-up, and nothing of what is now the first.

    tol    start           residual alone     formerly            here
    1e-2   4650 random      8.2  (48 wrong)   12.7    (4 wrong)   12.0    (1 wrong)
    1e-3   4650 random     10.4   (3 wrong)   15.9    (1 wrong)   13.6    (0 wrong)
    1e-2   333 tracking     4.2   (0 wrong)    7.4    (0 wrong)    5.9    (0 wrong)
    1e-3   333 tracking     7.3   (0 wrong)   10.5    (0 wrong)    8.7    (0 wrong)
    1e-2   390 unheard of   4.1 (330 wrong)   10.1  (170 wrong)    7.0  (159 wrong)
    1e-3   390 unheard of   9.9  (53 wrong)   15.1   (47 wrong)   10.7    (9 wrong)

What nobody has heard of can thus stay unseen by a warm search at a loose tolerance (in 20 000 dimensions, 5 % above the
known one: always), which is why tracking starts cold now and then.
"""

from __future__ import annotations

import math

import numpy

MISSED = 3e-3
"""The chance δ, at worst, that a cold search misses an eigenvalue beyond its tolerance."""

NOISE = 0.3
"""Length of the random part of a warm start, beside 1. Most eigenvalues of a network are near zero, so a product or two
shrink it to nothing: a tenth of it takes as many products, and misses more."""

WARM_WEIGHT = 30.0
"""A warm search goes on until a direction that held this over P of its start would have shown. With 100, tracking takes
one product less and misses two thirds of the unheard of; with 10 it takes half a product more and misses a quarter."""

WARM_LEAST = 300.0
"""And at least until a direction that held one part in so many would have shown, which counts below P = 9000: P / 30
alone asks for nothing at all up to P = 30. Of searches at a tolerance of 0.1 that start at the eigenvalue 2 of a
spectrum with one 5 (P = 25, 100, 1000), 32, 54 and 26 % were wrong without it, 1, 2 and 9 % are with it, as against
2, 7 and 13 % with 100 and 1, 2 and 6 % with 1000. It costs one to three products, a fourth with 1000. The table above
was measured without it: at its P, the last column takes more and misses less."""

LONGEST = 400
"""Steps after which a run is no longer followed: where there was a gap to prove anything by, it took far fewer."""

_HUGE = 1e100


def needed(size: int, warm: bool) -> float:
    """What ``Hidden.seen`` must come to before a start has proved enough (a logarithm)."""
    if warm:
        return math.log(max(WARM_LEAST, size / WARM_WEIGHT))
    return math.log(2 * size / (math.pi * MISSED**2))


class Hidden:
    """The numbers f of one run, as far as it has come."""

    def __init__(self) -> None:
        self._past: list[tuple[numpy.ndarray, float | None]] = []
        self._lost = False

    def add(self, column: numpy.ndarray, beta: float) -> None:
        """One step: H's column for the newest vector (n,), from the run's first vector on, and β of the next one."""
        self._past.append((column, beta))
        if len(self._past) > LONGEST:
            self.lose()

    def turn(self, weights: numpy.ndarray) -> None:
        """A restart: all vectors but the next one are replaced by m combinations: weights (n, m)."""
        self._past.append((weights, None))

    def lose(self) -> None:
        """Nothing can be said of this run any more."""
        self._lost = True
        self._past.clear()

    def seen(self, x: float) -> float:
        """The logarithm of Σ fⱼ(x)²: had an eigenvector at x, or beyond it on the side away from the spectrum, held
        more of the start than the inverse of the sum, it would have shown.
        """
        if self._lost:
            return -math.inf
        f = numpy.ones(1)
        logarithm = 0.0
        for numbers, beta in self._past:
            if beta is None:
                f = numpy.append(numbers.T @ f[:-1], f[-1])
                continue
            following = (x * f[-1] - numbers @ f) / beta
            f = numpy.append(f, following)
            if abs(following) > _HUGE:
                f, logarithm = f / abs(following), logarithm + 2 * math.log(abs(following))
        return logarithm + math.log(float(f @ f))
