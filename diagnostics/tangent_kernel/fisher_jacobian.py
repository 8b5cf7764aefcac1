"""The Fisher matrix in the parameters against the one in the inputs: whether a network is sharp where it is sensitive.

Both are the curvature B = ∂²ℓ/∂f² of one example's loss at its outputs, pulled back: F_i = J_θᵀ B J_θ through the
Jacobian in the parameters, X_i = J_xᵀ B J_x through that in the inputs. For cross-entropy they are Fisher matrices, for
squared errors up to a factor. They share all that lies behind the first layer: where that is h = Wx, J_x = J_h W, and

    λmax(F_i) ≥ ‖x_i‖² λmax(X_i) / σmax(W)²,

for the part of F_i in W is that in h times ‖x‖² (‖x‖² + 1 with a bias). Every other layer adds its own. Of L square
orthogonal matrices J_x is an isometry, and λmax(F_i)/λmax(X_i) = L ‖x_i‖²: the number of layers and nothing else.
Gaussian ones of the same size stretch some directions, and the more they do the larger is λmax(F).

Source: Sokół & Park, arXiv 1810.03785 (the relation); Hayase & Karakida, arXiv 2006.07814 (isometry: linear in depth).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from diagnostics.arguments import require_objective
from diagnostics.averages import Draws
from diagnostics.estimate import Estimate, exact, listing
from diagnostics.noise.from_examples import jackknifed
from diagnostics.objective import Objective
from diagnostics.tangent_kernel.inputs import jacobian_products
from diagnostics.tangent_kernel.kernel import TangentKernel
from diagnostics.tangent_kernel.weighted import full_kernel, output_roots, weighted

FEWEST = 6
"""Examples, for a correlation with an error."""

TIED = 1e-9
"""Relative differences below which numbers are the same one."""


@dataclass(frozen=True, repr=False)
class FisherJacobian:
    """How sharp the loss of each example is in the parameters, and how sharp in the inputs.

    Attributes:
        parameters: (N,) λmax(J_θᵀ B J_θ) of each example's own loss, float64.
        inputs: (N,) λmax(J_xᵀ B J_x), likewise.
        largest: λmax of the mean of all F_i, the largest eigenvalue of the Fisher (or Gauss-Newton) matrix.
        ratio: Σ parameters / Σ inputs, with its standard error over examples.
        correlation: of the ranks of both over examples (Spearman), likewise; undetermined where one is constant.
    """

    parameters: Tensor
    inputs: Tensor
    largest: Estimate
    ratio: Estimate
    correlation: Estimate

    def __str__(self) -> str:
        return listing(self)

    def __repr__(self) -> str:
        return f"FisherJacobian({self})"


def fisher_jacobian(objective: Objective, *, kernel: TangentKernel | None = None) -> FisherJacobian:
    """The largest curvature of each example's loss in the parameters, against that in its inputs.

    Args:
        objective: of pairs with floating-point inputs, and a loss that is convex in the outputs.
        kernel: the full one of this objective, if there is one already.

    Raises:
        DiagnosticsError: inputs that are no floating-point tensor; a kernel of another kind or number of examples; a
            loss that is not convex in the outputs, or whose curvature is not that of single examples; or as ``ntk``.

    Source: arXiv 1810.03785.

    Example:
        >>> layers = [torch.nn.Linear(3, 3, bias=False).double() for _ in range(4)]
        >>> for layer in layers:
        ...     _ = torch.nn.init.orthogonal_(layer.weight)
        >>> x = torch.eye(3).double()  # of length 1: the ratio is the number of layers
        >>> objective = Objective(torch.nn.Sequential(*layers), torch.nn.MSELoss(), (x, x))
        >>> print(f"{fisher_jacobian(objective).ratio:.4f}")
        4.0000
    """
    require_objective(objective)
    products = jacobian_products(objective)
    kernel = full_kernel(objective, kernel)
    whole, count, width = weighted(objective, kernel), kernel.examples, kernel.classes
    largest = exact(float(torch.linalg.eigvalsh(whole)[-1]), kernel.how)
    blocks = count * whole.view(count, width, count, width)
    parameters = _largest(torch.stack([blocks[place, :, place] for place in range(count)]))
    roots = torch.cat(output_roots(objective)).to(products)
    inputs = _largest(count * (roots @ products @ roots))
    one, other = parameters.cpu().numpy(), inputs.cpu().numpy()
    how = f"{count} examples; {objective.description}"
    return FisherJacobian(parameters, inputs, largest, _ratio(one, other, how), _correlation(one, other, how))


def _largest(matrices: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(matrices)
    return values[:, -1].clamp_min(0.0)


def _ratio(one: Draws, other: Draws, how: str) -> Estimate:
    if not other.sum() > 0:
        return Estimate(math.nan, math.nan, "standard error", f"the inputs change nothing; {how}")
    if len(one) < 2:
        return exact(float(one.sum() / other.sum()), how)
    with numpy.errstate(all="ignore"):
        without = (one.sum() - one) / (other.sum() - other)
    if not numpy.isfinite(without).all():
        return Estimate(math.nan, math.nan, "standard error", f"one example has all of it; {how}")
    return jackknifed(float(one.sum() / other.sum()), without, how)


def _correlation(one: Draws, other: Draws, how: str) -> Estimate:
    count = len(one)
    if count < FEWEST:
        reason = f"{count} examples, of {FEWEST} that are needed at least"
        return Estimate(math.nan, math.nan, "standard error", f"{reason}; {how}")
    for name, values in (("parameters", one), ("inputs", other)):
        if not numpy.ptp(values) > TIED * float(numpy.abs(values).max()):
            reason = f"the curvature in the {name} is the same for every example"
            return Estimate(math.nan, math.nan, "standard error", f"{reason}; {how}")
    without = [_spearman(numpy.delete(one, place), numpy.delete(other, place)) for place in range(count)]
    value = _spearman(one, other)
    if not numpy.isfinite(without).all():
        return Estimate(math.nan, math.nan, "standard error", f"one example alone differs from the others; {how}")
    return Estimate(value, jackknifed(value, numpy.array(without), how).error, "standard error", how)


def _spearman(one: Draws, other: Draws) -> float:
    # Most of a second to import, which everybody would wait for.
    from scipy.stats import rankdata

    with numpy.errstate(all="ignore"):
        first, second = (rankdata(values) - (len(values) + 1) / 2 for values in (one, other))
        return float(first @ second / math.sqrt(first @ first * (second @ second)))
