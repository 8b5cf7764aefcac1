"""How much a kernel depends on the draw of the weights: Σ Var K_ij / Σ (E K_ij)² over seeds.

It goes to zero as networks get wider, and grows with depth: with Gaussian weights like exp(depth/width), and hardly at
all with orthogonal ones. Where it is large, theory of wide networks says nothing of a single network.

A large one is mostly underestimated, interval and all: a few kernels much larger than the others make up the variance,
and few draws hold none of them. Of tanh networks of width 30 with Gaussian weights and 80 layers it was 9.7 over 48,000
draws (7.0 to 14 over each 4,000 of them), and over 16 draws 4.0 in the median, with nine of ten between 1.9 and 15.

Source: Hanin and Nica, arXiv 1909.05989; Day et al., arXiv 2310.07765 (orthogonal weights).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate
from diagnostics.noise.from_examples import jackknifed
from diagnostics.tangent_kernel.kernel import TangentKernel

FEWEST = 4
"""Kernels; with fewer there is no error."""

LARGE = 0.5
"""From here on tails are heavy: intervals from 16 to 256 kernels held 1.4 in 58 to 81 % of cases, 9.7 in 35 to 52 %."""


def kernel_variation(kernels: Iterable[TangentKernel]) -> Estimate:
    """The relative variance of a kernel over independent draws of the network, with the jackknife's error.

    Args:
        kernels: at least four, on the same examples; each may be made when its turn comes, as by a generator. Above
            .5 hundreds are few, and ``how`` says so.

    Raises:
        DiagnosticsError: too few kernels, or of different examples or outputs; one that is not finite.

    Source: arXiv 1909.05989.

    Example:
        >>> import torch
        >>> from diagnostics import Objective, ntk
        >>> x = torch.eye(3)
        >>> def draw(seed):
        ...     _ = torch.manual_seed(seed)
        ...     return ntk(Objective(torch.nn.Linear(3, 1), torch.nn.MSELoss(), (x, x[:, :1])))
        >>> float(kernel_variation(draw(seed) for seed in range(4)))  # a linear model has one kernel
        0.0
    """
    found: list[numpy.ndarray] = []
    kinds = set()
    for kernel in kernels:
        kinds.add((kernel.outputs, tuple(kernel.matrix.shape)))
        found.append(kernel.matrix.flatten().cpu().numpy())
        if len(kinds) > 1:
            raise DiagnosticsError(
                "kernels are of different examples or outputs", given=f"{sorted(kinds)}", expected="one kind and shape"
            )
    count = len(found)
    if count < FEWEST:
        raise DiagnosticsError("too few kernels", given=str(count), expected=f"at least {FEWEST}, from as many seeds")
    stack = numpy.stack(found)
    size = float(numpy.abs(stack).max())
    how = f"{count} kernels {'×'.join(map(str, kernel.matrix.shape))}"
    if not size > 0:
        return Estimate(math.nan, math.nan, "standard error", f"the kernels are zero; {how}")
    stack = stack / size
    without = numpy.array([_relative(numpy.delete(stack, place, 0)) for place in range(count)])
    if not numpy.isfinite(without).all():
        return Estimate(math.nan, math.nan, "standard error", f"the mean kernel cannot be told from zero; {how}")
    value = _relative(stack)
    if value > LARGE:
        how = f"heavy tails, so that more kernels are likely to raise it beyond its error; {how}"
    return jackknifed(value, without, how)


def _relative(stack: numpy.ndarray) -> float:
    """The unbiased variance over the unbiased square of the mean."""
    variance = float(stack.var(0, ddof=1).sum())
    square = float((stack.mean(0) ** 2).sum()) - variance / len(stack)
    return variance / square if square > 0 else math.inf
