"""The spectrum of the gradients themselves: of the empirical Fisher matrix and of the covariance, from the Gram matrix.

(1/N) Σ g_i g_iᵀ is P by P, but its non-zero eigenvalues are those of the Gram matrix over N, which is N by N: all of
them, exactly, for less than a few of the large matrix. With the mean taken out it is the covariance Σ, whose largest
eigenvalues say in how many directions the noise lives.

It is no curvature matrix: arXiv 1905.12558 says where it differs from the Fisher matrix and the Hessian.

Source: Kunstner et al., arXiv 1905.12558; that both matrices share their spectrum is the singular value decomposition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy

from diagnostics.averages import Draws
from diagnostics.estimate import Estimate, exact
from diagnostics.noise.gram import GradientGram, gram_matrix
from diagnostics.objective import Objective

ROUNDING = 8 * float(numpy.finfo(numpy.float64).eps)
"""Of the sum of eigenvalues, for each example: what is left of a covariance that is zero."""


@dataclass(frozen=True, repr=False)
class EmpiricalFisherSpectrum:
    """Every non-zero eigenvalue, exact for these examples.

    Attributes:
        eigenvalues: of (1/N) Σ g_i g_iᵀ, (N,), the largest first; with N below P the others are zero.
        covariance: of the covariance around the mean, over N − 1, (N,), the largest first.
        examples: N.
    """

    eigenvalues: Draws
    covariance: Draws
    examples: int

    @property
    def largest(self) -> Estimate:
        """λmax of the empirical Fisher matrix."""
        return exact(float(self.eigenvalues[0]), f"Gram matrix of {self.examples} examples")

    @property
    def effective_directions(self) -> Estimate:
        """(tr Σ)²/tr Σ²: in how many directions the noise of these examples lives; ``nan`` where there is none."""
        how = f"Gram matrix of {self.examples} examples"
        total = float(self.covariance.sum())
        if not total > ROUNDING * self.examples * float(self.eigenvalues.sum()):
            return Estimate(math.nan, math.nan, "exact", f"there is no noise beyond rounding; {how}")
        return exact(1 / float(numpy.square(self.covariance / total).sum()), how)

    def __str__(self) -> str:
        first = ", ".join(f"{value:.4g}" for value in self.eigenvalues[:5])
        return (
            f"empirical Fisher matrix of {self.examples} examples: largest eigenvalues {first}; noise in "
            f"{self.effective_directions} directions"
        )

    __repr__ = __str__


def empirical_fisher_spectrum(source: Objective | GradientGram) -> EmpiricalFisherSpectrum:
    """All non-zero eigenvalues of the empirical Fisher matrix over examples, and of their gradients' covariance.

    An example is a row of a batch. For one label per example it is the matrix of ``EmpiricalFisher`` under a loss that
    is a mean over examples; there a language model's tokens are terms of their own.

    Args:
        source: the loss, or its ``gradient_gram``.

    Raises:
        DiagnosticsError: as ``gradient_gram``.

    Source: arXiv 1905.12558.

    Example:
        >>> import torch
        >>> gradients = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> found = empirical_fisher_spectrum(GradientGram(gradients @ gradients.T, {}, "by hand"))
        >>> found.eigenvalues.tolist(), found.covariance.tolist()  # the difference is (2, −1), of length √5
        ([2.0, 0.5], [2.5, 0.0])
    """
    gram = gram_matrix(source)
    count = len(gram)
    middle = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    return EmpiricalFisherSpectrum(_spectrum(gram, count), _spectrum(middle, max(1, count - 1)), count)


def _spectrum(matrix: Draws, count: int) -> Draws:
    """Largest first; a Gram matrix has none below zero but for rounding."""
    found: Draws = numpy.maximum(numpy.linalg.eigvalsh(matrix)[::-1], 0.0) / count
    return found
