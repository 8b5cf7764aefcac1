"""The gradient noise scale of an objective's own examples, by the norms of their gradients.

With g_i the gradients of N examples drawn from the data and ḡ their mean,

    tr Σ ≈ N/(N − 1) (mean ‖g_i‖² − ‖ḡ‖²),    |G|² ≈ ‖ḡ‖² − tr Σ/N,    B_simple = tr Σ/|G|²,

both unbiased, and divided only once each is known. Errors are the jackknife's over examples: what leaving one out
changes follows from ‖g_i‖² and ⟨g_i, ḡ⟩, so no gradient is built a second time.

B_noise = tr(HΣ)/GᵀHG weighs noise and gradient by curvature, as the loss does. Its numerator is a mean over random
halves S of the examples: Δ = g_S − ḡ has E ΔΔᵀ = Σ/N, so tr(HΣ) = N E ΔᵀHΔ. That error is of the halves alone: the
examples are taken as they are.

Source: McCandlish et al., arXiv 1812.06162; the coherence of m examples: Chatterjee & Zielinski, arXiv 2008.01217.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from scipy.special import stdtrit
from torch import Tensor

from diagnostics.arguments import hessian_of, require_finite_loss, require_objective, whole_number
from diagnostics.averages import mean
from diagnostics.curvature.draws import random_stream
from diagnostics.curvature.operators import Hessian
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate
from diagnostics.minibatches import Minibatches
from diagnostics.noise.estimators import GradientNoise
from diagnostics.noise.per_example import per_example_gradient_dots, per_example_gradient_norms
from diagnostics.objective import Objective
from diagnostics.recorded.examples import gathered, lengths


@dataclass(frozen=True, repr=False)
class NoiseScale:
    """How noisy the gradients of single examples are.

    Attributes:
        gradient_sq: |G|², the squared norm of the noiseless gradient. Unbiased, so it can come out negative.
        trace_covariance: tr Σ, the variance of single examples' gradients, summed over parameters.
        simple: B_simple = tr Σ/|G|², in examples; undetermined where the interval of |G|² reaches zero.
        hessian: B_noise = tr(HΣ)/GᵀHG, in examples; None when it was not asked for.
        coherence: N/(1 + B_simple): N where all gradients are equal, 1 where they are orthogonal.
        examples: N. An example is a row of a batch: a sequence, not a token.
    """

    gradient_sq: Estimate
    trace_covariance: Estimate
    simple: Estimate
    hessian: Estimate | None
    coherence: Estimate
    examples: int

    def __str__(self) -> str:
        lines = [f"B_simple {_told(self.simple)} examples: tr Σ {self.trace_covariance} over |G|² {self.gradient_sq}"]
        if self.hessian is not None:
            lines.append(f"B_noise {_told(self.hessian)} examples, weighted by curvature")
        return "\n".join(lines)

    __repr__ = __str__


def noise_scale(objective: Objective, *, draws: int = 16, hessian: Hessian | None = None, seed: int = 0) -> NoiseScale:
    """How many examples a batch needs before its gradient is mostly signal.

    A proxy for the critical batch size, not that itself: it supposes steps of the best size, and it changes over
    training (Merrill et al., arXiv 2505.23971).

    Args:
        objective: the trainer's loss on examples drawn at random; some hundreds of them.
        draws: halves of the examples for B_noise, at a gradient and a Hessian-vector product each; 0 leaves it out.
        hessian: one already made for this objective, to share its graph.
        seed: of the halves.

    Raises:
        DiagnosticsError: fewer than four examples, examples that batch normalisation couples, or a gradient that is
            not finite.

    Source: arXiv 1812.06162.

    Example:
        >>> class Mean(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.at = torch.nn.Parameter(torch.tensor([2.0, 0.0]))
        ...     def forward(self, x):
        ...         return self.at - x
        >>> data = torch.randn(400, 2), torch.zeros(400, 2)
        >>> half = lambda outputs, targets: 0.5 * (outputs - targets).square().sum(1).mean()
        >>> n = noise_scale(Objective(Mean(), half, data))  # tr Σ = 2, |G|² = 4, H = 1
        >>> 0.3 < float(n.simple) < 0.8, 0.3 < float(n.hessian) < 0.8
        (True, True)
    """
    draws = whole_number("draws is not a number of halves", draws, "0, or at least 2", 0)
    if draws == 1:
        raise DiagnosticsError("draws is too small", given="1", expected="0, or at least 2: one draw has no error")
    require_objective(objective)
    require_finite_loss(objective)
    measured = per_example_gradient_norms(objective)
    count = len(measured.norms)
    if count < 4:
        raise DiagnosticsError(
            "there are too few examples to tell noise from signal",
            given=f"{count}",
            expected="some hundreds, at least 4",
        )
    gradient = objective.gradient()
    squares = measured.norms.double().square().cpu().numpy()
    along = per_example_gradient_dots(objective, gradient).cpu().numpy()
    noise = _jackknifed(squares, along, measured.mean_square.value, measured.how)
    weighted = None
    if draws:
        weighted = _by_curvature(objective, hessian_of(objective, hessian), gradient, draws, seed, noise)
    return NoiseScale(
        gradient_sq=noise.gradient_sq,
        trace_covariance=noise.trace_covariance,
        simple=noise.simple,
        hessian=weighted,
        coherence=noise.coherence(count),
        examples=count,
    )


def _jackknifed(squares: numpy.ndarray, along: numpy.ndarray, mean_square: float, how: str) -> GradientNoise:
    """From ‖g_i‖² and ⟨g_i, ḡ⟩, (N,) each, and ‖ḡ‖²."""
    count = len(squares)
    whole = _unbiased(float(squares.mean()), mean_square, count)
    left = _unbiased(
        (squares.sum() - squares) / (count - 1),
        (count**2 * mean_square - 2 * count * along + squares) / (count - 1) ** 2,
        count - 1,
    )
    reach = float(stdtrit(count - 1, 0.975)) / 1.96

    def estimate(value: float, without: numpy.ndarray, unbiased: bool) -> Estimate:
        centre = float(without.mean())
        spread = math.sqrt((count - 1) / count * float(numpy.square(without - centre).sum()))
        shifted = value if unbiased else count * value - (count - 1) * centre
        return Estimate(shifted, reach * spread, "standard error", how)

    gradient_sq, trace = estimate(whole[0], left[0], True), estimate(whole[1], left[1], True)
    if not gradient_sq.interval()[0] > 0.0:
        reason = f"the interval of |G|² reaches zero: more examples are needed to tell signal from noise; {how}"
        nothing = Estimate(math.nan, math.nan, "standard error", reason)
        return GradientNoise(gradient_sq, trace, nothing, 0.0)
    with numpy.errstate(all="ignore"):
        ratios = left[1] / left[0]
    simple = estimate(whole[1] / whole[0], ratios, False)
    return GradientNoise(gradient_sq, trace, simple, max(0.0, simple.interval()[0]))


def _unbiased(mean_of_squares: Any, square_of_mean: Any, count: int) -> tuple[Any, Any]:
    """|G|² and tr Σ, for numbers or for arrays of them."""
    trace = count / (count - 1) * (mean_of_squares - square_of_mean)
    return square_of_mean - trace / count, trace


def _by_curvature(
    objective: Objective, hessian: Hessian, gradient: Tensor, draws: int, seed: int, noise: GradientNoise
) -> Estimate:
    """tr(HΣ)/GᵀHG, with GᵀHG ≈ ḡᵀHḡ − tr(HΣ)/N."""
    counts = lengths(objective)
    count, half = sum(counts), sum(counts) // 2
    summed = Minibatches(objective, 1).summed
    generator = random_stream(seed)
    curved: list[float] = []
    for _ in range(draws):
        chosen = torch.zeros(count, dtype=torch.bool)
        chosen[torch.randperm(count, generator=generator)[:half]] = True
        away = gathered(objective, chosen, summed).gradient() - gradient
        curved.append(float(away.double() @ (hessian @ away).double()))
    along = float(gradient.double() @ (hessian @ gradient).double())
    factor = count * half / (count - half)
    weighted = mean([factor * each for each in curved], "")
    signal = along - weighted.value / count
    how = (
        f"{draws} random halves of {count} examples, {draws + 1} products, {hessian.route}; the error is of the halves"
    )
    if not noise.simple.determined:
        return Estimate(math.nan, math.nan, "standard error", f"the interval of |G|² reaches zero; {how}")
    if not signal > 1.96 * weighted.error / count:
        return Estimate(math.nan, math.nan, "standard error", f"GᵀHG is not positive beyond its error; {how}")
    # The same draws stand above and below: d/dT of T/(a − T/N) is a/(a − T/N)².
    return Estimate(weighted.value / signal, along / signal**2 * weighted.error, "standard error", how)


def _told(estimate: Estimate) -> str:
    return str(estimate) if estimate.determined else f"undetermined ({estimate.how.partition(';')[0]})"
