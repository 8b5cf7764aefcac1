"""λmax of minibatch Hessians against the size of the minibatch.

A Hessian averaged over few examples has larger extreme eigenvalues than one over many: λmax is convex, so E λmax(H_B)
falls with B (Jensen), down to λmax of the whole at B = N. Sharpness from different batch sizes must not be compared.

For the random-matrix model of arXiv 2006.09092, a fixed Hessian and noise whose variance falls as 1/B, an eigenvalue
that stands out of the noise is raised in proportion to that variance:

    E λmax(H_B) ≈ λ_N + c (1/B − 1/N),

with 1/N off for drawing without replacement. This is what is fitted. For very small B the noise itself has the largest
eigenvalue, and the law is another (∝ √(1/B − 1/N)): then the fit is poor, and says so by its R².
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy

from diagnostics.arguments import require_finite_loss, whole_number
from diagnostics.averages import mean
from diagnostics.curvature.draws import random_stream
from diagnostics.curvature.eigen.eigenpairs import top_eigenpairs
from diagnostics.curvature.operators import Hessian
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate
from diagnostics.minibatches import Minibatches
from diagnostics.objective import Objective

RUNGS = 6
"""Sizes when none are given: N and halves of it."""


@dataclass(frozen=True, repr=False)
class BatchLadder:
    """E λmax(H_B) for each batch size, and the law through them.

    Attributes:
        sizes: ascending.
        values: E λmax(H_B) for each, in units of curvature of the objective.
        whole: λ_N of the fit.
        slope: c of the fit, curvature times examples.
        r_squared: share of the variance between sizes that the fit explains; nan below three sizes.
        examples: N.
        matvecs: Hessian-vector products used.
    """

    sizes: tuple[int, ...]
    values: tuple[Estimate, ...]
    whole: Estimate
    slope: Estimate
    r_squared: float
    examples: int
    matvecs: int

    def __str__(self) -> str:
        width = max(len("batch size"), len(f"{self.sizes[-1]:,}"))
        lines = [f"{'batch size':>{width}}  E λmax(H_B)"]
        lines += [f"{size:>{width},}  {value}" for size, value in zip(self.sizes, self.values, strict=True)]
        if self.slope.determined:
            lines.append(f"{self.whole} + ({self.slope})·(1/B − 1/{self.examples:,}), R² {self.r_squared:.3f}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"BatchLadder({str(self)!r})"


def batch_ladder(
    objective: Objective, sizes: Sequence[int] | None = None, *, draws: int = 8, tol: float = 1e-2, seed: int = 0
) -> BatchLadder:
    """The largest Hessian eigenvalue of minibatches, averaged over draws, for a ladder of batch sizes.

    Where there are no more than ``draws`` different minibatches of a size, all of them are taken. A loss that sums over
    examples is brought to the scale of the objective, so that sizes can be compared.

    Args:
        objective: the loss on examples to draw from.
        sizes: batch sizes; N, N/2, N/4, ... by default.
        draws: minibatches of each size; each costs an eigenproblem.
        tol: relative residual of an eigenvalue.
        seed: of the draws.

    Raises:
        DiagnosticsError: sizes that are not between 1 and N; fewer than 2 draws; a loss that is not finite.

    Source: Granziol et al., arXiv 2006.09092.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[1.0], [1.0], [2.0], [2.0]])
        >>> ladder = batch_ladder(Objective(model, torch.nn.MSELoss(), (x, x)), [1, 4])
        >>> [round(float(value), 2) for value in ladder.values]  # one parameter: 2x² on average, at any size
        [5.0, 5.0]
    """
    draws = whole_number("draws is not a number of minibatches", draws, "at least 2", 2)
    examples = Minibatches(objective, 1).examples
    if sizes is None:
        sizes = [examples >> halvings for halvings in range(RUNGS) if examples >> halvings]
    if not isinstance(sizes, Iterable):
        raise DiagnosticsError(
            "sizes is not a series", given=repr(sizes), expected="batch sizes such as [8, 64], or None"
        )
    ascending = tuple(
        sorted({whole_number("batch_size is not a number of examples", size, "at least 1", 1) for size in sizes})
    )
    if not ascending:
        raise DiagnosticsError("sizes is empty", expected="batch sizes, or None for N, N/2, N/4, ...")
    require_finite_loss(objective)
    generator = random_stream(seed)
    values: list[Estimate] = []
    products = 0
    for size in ascending:
        minibatches = Minibatches(objective, size)
        everything = minibatches.distinct <= draws
        chosen = minibatches.every() if everything else (minibatches.draw(generator) for _ in range(draws))
        pairs = [top_eigenpairs(Hessian(minibatch), tol=tol, seed=seed) for minibatch in chosen]
        if not pairs:
            raise DiagnosticsError(
                "minibatches of this size hold no loss terms", given=str(size), expected="labels not all ignored"
            )
        products += sum(pair.matvecs for pair in pairs)
        found = [float(pair.values[0]) / minibatches.scale for pair in pairs]
        residual = max(float(pair.residuals[0]) for pair in pairs) / minibatches.scale
        how = f"{'all ' if everything else ''}{len(found)} minibatches of {size} of {examples:,} examples"
        average = mean(found, f"{how}, Lanczos; {objective.description}", everything=everything)
        kind = "residual" if everything else average.kind
        values.append(replace(average, error=math.hypot(average.error, residual), kind=kind))
    whole, slope, r_squared = _fit(ascending, values, examples)
    return BatchLadder(ascending, tuple(values), whole, slope, r_squared, examples, products)


def _fit(sizes: Sequence[int], values: Sequence[Estimate], examples: int) -> tuple[Estimate, Estimate, float]:
    """Weighted least squares through (1/B − 1/N, E λmax)."""
    if len(sizes) < 2:
        unknown = Estimate(math.nan, math.nan, "standard error", "one batch size makes no law")
        return unknown, unknown, math.nan
    x = numpy.array([1 / size - 1 / examples for size in sizes])
    y = numpy.array([value.value for value in values])
    # Rounding at least, so that sizes that were seen exactly do not weigh infinitely much.
    errors = numpy.array([value.error for value in values])
    errors = numpy.maximum(errors, 1e-6 * max(1e-300, float(abs(y).max())))
    design = numpy.stack([numpy.ones_like(x), x], axis=1) / errors[:, None]
    covariance = numpy.linalg.inv(design.T @ design)
    level, slope = covariance @ design.T @ (y / errors)
    misfit = y - level - slope * x
    free = len(sizes) - 2
    # Where the law misses by more than the errors of the points, its constants are as uncertain as that.
    excess = max(1.0, float((misfit / errors) @ (misfit / errors)) / free) if free else 1.0
    deviations = numpy.sqrt(numpy.diag(covariance) * excess)
    variance = float(((y - y.mean()) ** 2).sum())
    r_squared = 1 - float((misfit**2).sum()) / variance if free and variance else math.nan
    how = f"weighted least squares through {len(sizes)} batch sizes, λ_N + c (1/B − 1/N)"
    return (
        Estimate(float(level), float(deviations[0]), "standard error", how),
        Estimate(float(slope), float(deviations[1]), "standard error", how),
        r_squared,
    )
