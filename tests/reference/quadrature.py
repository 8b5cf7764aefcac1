"""Slow twins of stochastic Lanczos quadrature: one probe at a time, in NumPy, against the dense matrix."""

from __future__ import annotations

import numpy


def gauss_rule(matrix: numpy.ndarray, start: numpy.ndarray, steps: int) -> tuple[numpy.ndarray, ...]:
    """Nodes, weights and residuals of Lanczos from one start, by modified Gram-Schmidt, as far as it goes."""
    basis = [start / numpy.sqrt(start @ start)]
    betas = []
    while True:
        image = matrix @ basis[-1]
        length = numpy.sqrt(image @ image)
        for _ in range(3):
            for vector in basis:
                image = image - vector * (vector @ image)
        beta = numpy.sqrt(image @ image)
        ended = beta <= 8 * numpy.finfo(float).eps * length
        betas.append(0.0 if ended or len(basis) == len(matrix) else beta)
        if ended or len(basis) in (steps, len(matrix)):
            break
        basis.append(image / beta)
    Q = numpy.stack(basis, axis=1)
    nodes, vectors = numpy.linalg.eigh(Q.T @ matrix @ Q)
    return nodes, vectors[0] ** 2, numpy.abs(betas[-1] * vectors[-1])


def largest_mass(nodes: numpy.ndarray, weights: numpy.ndarray, residuals: numpy.ndarray, x: float) -> float:
    """The most that a measure with the moments of this rule can have at x, the Christoffel function.

    One over the sum of p(x)² for the orthonormal polynomials p of degree 0 to m, from Lagrange's formula for degrees
    below m and the product over nodes for degree m. What two such measures have below x differs by no more.
    """
    m = len(nodes)
    lower = 0.0
    for i in range(m):
        factors = [(x - nodes[j]) / (nodes[i] - nodes[j]) for j in range(m) if j != i]
        lower += numpy.prod(factors) ** 2 / weights[i]
    # p_m has the nodes as zeros; its size follows from 1 = Σ w p_{m-1}² and β_m = ‖residuals‖.
    slopes = [numpy.prod([nodes[i] - nodes[j] for j in range(m) if j != i]) for i in range(m)]
    beta = numpy.sqrt((residuals**2).sum())
    leading = numpy.sqrt(sum(1 / (weights[i] * slopes[i] ** 2) for i in range(m))) / beta
    return float(1 / (lower + (leading * numpy.prod(x - nodes)) ** 2))
