"""How gradient noise meets curvature: what a stochastic step costs beyond the step of its average.

To second order a step −η g_B changes the loss by −η g·g_B + η²/2 g_BᵀH g_B. On average over minibatches that is zero
when

    GNI = E_B[ g_BᵀH g_B ] / ‖∇L‖²  =  2/η,

with H of the whole loss: above 2/η the average step raises the loss. With E g_B = ∇L = g,

    GNI = (gᵀHg/‖g‖²) (1 + B_noise/b · (N−b)/(N−1)),    B_noise = tr(HΣ)/gᵀHg,

Σ the covariance of single examples' gradients; the last factor is for drawing b of N without replacement. Near a
minimum ‖∇L‖ vanishes and noise does not: GNI explodes there, which says that steps of this size no longer make
progress, and nothing about stability. The interaction-aware sharpness tr(H S)/tr(S), S = E[g_B g_Bᵀ], does not.

Source: arXiv 2412.20553 (GNI); Lee & Jang 2023 (interaction-aware sharpness).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from diagnostics.arguments import hessian_of, whole_number
from diagnostics.averages import mean, quotient, tail_warning
from diagnostics.curvature.draws import random_stream
from diagnostics.curvature.operators import Hessian
from diagnostics.estimate import Estimate
from diagnostics.minibatches import Minibatches
from diagnostics.objective import Objective
from diagnostics.stability.minibatch_curvature import finite_gradient

BLOCK = 16
"""Gradients that are multiplied by H together."""

ROUNDING = 30.0
"""A whole gradient shorter than so many roundings of the minibatches' is rounding itself."""

FAR = 5.0
"""Standard errors by which the average of minibatch gradients may be off the whole gradient."""


def gradient_noise_interaction(
    objective: Objective, batch_size: int, *, draws: int = 100, seed: int = 0, hessian: Hessian | None = None
) -> Estimate:
    """E_B[g_BᵀH g_B]/‖∇L‖², to be compared with 2/η of SGD.

    Exact when there are no more than ``draws`` different minibatches. A loss that sums over examples is taken per
    minibatch, H and ∇L included, as the trainer's learning rate has it.

    Args:
        objective: the trainer's loss on examples to draw from; its Hessian is the H.
        batch_size: examples in a minibatch.
        draws: how many; each costs a product with H.
        seed: of the draws.
        hessian: one already made for this objective, to share its graph.

    Returns:
        ``nan``, with the reason in ``how``, where ∇L is zero within rounding or is not what minibatch gradients
        average to.

    Raises:
        DiagnosticsError: more examples in a minibatch than the objective has; a loss that is not finite.

    Source: arXiv 2412.20553.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[1.0], [1.0], [1.0]])
        >>> objective = Objective(model, torch.nn.MSELoss(), (x, 5 * x))
        >>> print(gradient_noise_interaction(objective, 2))  # no noise: the curvature itself
        2
    """
    drawn = _draw(objective, batch_size, draws, seed, hessian)
    if reason := drawn.undetermined():
        return Estimate(math.nan, math.nan, "standard error", f"{reason}; {drawn.how}")
    squared = drawn.scale * drawn.whole**2
    return mean([float(curved) / squared for curved in drawn.curved], drawn.how, everything=drawn.everything)


def interaction_aware_sharpness(
    objective: Objective, batch_size: int, *, draws: int = 100, seed: int = 0, hessian: Hessian | None = None
) -> Estimate:
    """E_B[g_BᵀH g_B] / E_B‖g_B‖²: the curvature of the whole loss along stochastic gradients.

    Args:
        objective: as for ``gradient_noise_interaction``.
        batch_size: as there.
        draws: as there.
        seed: as there.
        hessian: as there.

    Raises:
        DiagnosticsError: as there.

    Source: Lee & Jang 2023.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[1.0], [1.0], [1.0]])
        >>> print(interaction_aware_sharpness(Objective(model, torch.nn.MSELoss(), (x, 5 * x)), 2))
        2
    """
    drawn = _draw(objective, batch_size, draws, seed, hessian)
    if not drawn.squares.any():
        return Estimate(math.nan, math.nan, "standard error", f"every minibatch gradient is zero; {drawn.how}")
    curved = drawn.scale * drawn.curved
    return quotient(curved.tolist(), drawn.squares.tolist(), drawn.how, everything=drawn.everything)


@dataclass(frozen=True)
class _Drawn:
    """Minibatch gradients against the whole: g_BᵀH g_B and ‖g_B‖² of each (float64), and what they average to."""

    curved: numpy.ndarray[Any, numpy.dtype[numpy.float64]]
    squares: numpy.ndarray[Any, numpy.dtype[numpy.float64]]
    whole: float
    off: float
    rounding: float
    scale: float
    everything: bool
    how: str

    def undetermined(self) -> str:
        """Why there is no GNI; empty where there is."""
        size = math.sqrt(float(self.squares.mean()))
        if not self.whole > ROUNDING * self.rounding * size / self.scale:
            return f"the gradient of the whole loss, {self.whole:.3g}, is zero within rounding"
        mean_square = self.scale**2 * self.whole**2
        spread = 0.0 if self.everything else max(0.0, size**2 - mean_square) / len(self.squares)
        if self.off > 0.5 * self.scale * self.whole and self.off**2 > FAR**2 * spread:
            return (
                "minibatch gradients do not average to the gradient of the whole loss: "
                "it is not a mean over examples that stand alone"
            )
        return ""


def _draw(objective: Objective, batch_size: int, draws: int, seed: int, hessian: Hessian | None) -> _Drawn:
    draws = whole_number("draws is not a number of minibatches", draws, "at least 2", 2)
    minibatches = Minibatches(objective, batch_size)
    operator = hessian_of(objective, hessian)
    everything = minibatches.distinct <= draws
    generator = random_stream(seed)
    chosen = minibatches.every() if everything else (minibatches.draw(generator) for _ in range(draws))
    whole = finite_gradient(objective).double()
    total = torch.zeros_like(whole)
    curved: list[float] = []
    squares: list[float] = []
    block: list[Tensor] = []

    def multiply() -> None:
        gradients = torch.stack(block, dim=1)
        products = operator @ gradients
        curved.extend((gradients.double() * products.double()).sum(0).tolist())
        squares.extend(gradients.double().square().sum(0).tolist())
        total.add_(gradients.double().sum(1))
        block.clear()

    for minibatch in chosen:
        block.append(finite_gradient(minibatch))
        if len(block) == BLOCK:
            multiply()
    if block:
        multiply()
    scale = minibatches.scale
    kind = f"all {len(curved)}" if everything else f"{len(curved)}"
    how = f"{kind} minibatches of {batch_size} of {minibatches.examples:,} examples, {operator.route}"
    tail = "" if everything else tail_warning(curved, batch_size)
    return _Drawn(
        curved=numpy.asarray(curved, dtype=numpy.float64),
        squares=numpy.asarray(squares, dtype=numpy.float64),
        whole=float(torch.linalg.vector_norm(whole)),
        off=float(torch.linalg.vector_norm(total / max(1, len(curved)) - scale * whole)),
        rounding=torch.finfo(objective.space.dtype).eps,
        scale=scale,
        everything=everything,
        how=f"{how}; {objective.description}{tail}",
    )
