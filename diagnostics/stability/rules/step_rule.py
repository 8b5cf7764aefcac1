"""One parameter group's step, reduced to what linear stability and effective rates need.

Write a step as Δx = −η F(z) P⁻¹ g (F the filter that momentum applies to the gradients, P the preconditioner) with
decoupled decay (1 − ηλ_d), and let weight decay that goes through the gradient add λ to the Hessian. The first root
to leave the unit disc is z = −1, an oscillation that flips sign every step, and it does so when the largest
eigenvalue of P^-½ (H + λ) P^-½ reaches

    (2 − η λ_d) / (η F(−1)).

Source: Cohen et al. 2021 (arXiv 2103.00065) for SGD and momentum, Cohen et al. 2022 (arXiv 2207.14484) for Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diagnostics.errors import DiagnosticsError

State = Mapping[str, Any]
Group = Mapping[str, Any]


@dataclass(frozen=True)
class Momentum:
    """m ← β m + gain · g, and a step along buffer · m + direct · g: what every linear momentum comes down to.

    Example:
        >>> heavy_ball, nesterov = Momentum(0.5), Momentum(0.5, buffer=0.5, direct=1.0)
        >>> heavy_ball.at_one, nesterov.at_one, nesterov.at_minus_one > heavy_ball.at_minus_one
        (2.0, 2.0, True)
    """

    beta: float = 0.0
    gain: float = 1.0
    buffer: float = 1.0
    direct: float = 0.0

    @property
    def at_minus_one(self) -> float:
        """F(−1): how a gradient that flips sign every step is passed."""
        return self.buffer * self.gain / (1 + self.beta) + self.direct

    @property
    def at_one(self) -> float:
        """F(1): how a constant gradient is passed; infinite where the buffer never forgets."""
        return self.direct + (self.buffer * self.gain / (1 - self.beta) if self.beta != 1 else math.inf)


@dataclass(frozen=True)
class StepRule:
    """One parameter group's step.

    Attributes:
        text: the threshold in the field's notation.
        lr: η.
        momentum: F.
        decoupled_decay: λ_d, applied to the weights.
        coupled_decay: λ, added to the gradient.
        normalised_decay: added to the gradient after it was divided by P.
        denominator: P, the per-coordinate divisor, from a parameter's state and the parameter; None when P is 1.
        steady_denominator: the same for a gradient that has not changed since the first step, where the bias
            correction of the first moment cancels; None when that is ``denominator``.
        second_moment: (√v̂, ε) from a parameter's state, as the optimizer adds or compares them; None without one.
        ascent: ρ of a sharpness-aware step (SAM), which takes its gradient at θ + ρ g/‖g‖; 0 for others.
        ascent_by_size: whether that ascent is scaled by θ², coordinate by coordinate (ASAM).
        stretch: by how much a wrapper (Lookahead) moves the edge out.
    """

    text: str
    lr: float
    momentum: Momentum = Momentum()
    decoupled_decay: float = 0.0
    coupled_decay: float = 0.0
    normalised_decay: float = 0.0
    denominator: Callable[[State, Tensor], Tensor] | None = None
    steady_denominator: Callable[[State, Tensor], Tensor] | None = None
    second_moment: Callable[[State], tuple[Tensor, float]] | None = None
    ascent: float = 0.0
    ascent_by_size: bool = False
    stretch: float = 1.0

    @property
    def filter_at_minus_one(self) -> float:
        """F(−1)."""
        return self.momentum.at_minus_one

    @property
    def filter_at_one(self) -> float:
        """F(1)."""
        return self.momentum.at_one

    @property
    def weight(self) -> float:
        """η F(−1) / (2 − η λ_d): curvature times this is 1 at the edge (of the optimizer inside, for SAM)."""
        remaining = 2.0 - self.lr * self.decoupled_decay
        if remaining <= 0.0:
            raise DiagnosticsError(
                "the optimizer's weight decay alone overshoots",
                given=f"lr {self.lr:g} times weight_decay {self.decoupled_decay:g} is at least 2",
                expected="lr * weight_decay well below 1",
            )
        return self.lr * self.filter_at_minus_one / (remaining * self.stretch)

    @property
    def threshold(self) -> float:
        """The curvature at the edge; infinite at a zero learning rate.

        Without a preconditioner this is for the Hessian of the loss alone, so coupled decay is taken off; with one it
        is for P^-½ (H + λ) P^-½.
        """
        if self.weight == 0.0:
            return math.inf
        coupled = self.coupled_decay if self.denominator is None else 0.0
        return 1.0 / self.weight - coupled - self.normalised_decay

    def threshold_at(self, gradient_norm: float | None) -> float:
        """The same for a sharpness-aware step, whose edge λ (1 + ρλ/‖g‖) = T moves with ‖g‖.

        Source: Long and Bartlett, arXiv 2309.12488.
        """
        if not self.ascent:
            return self.threshold
        if self.ascent_by_size or self.denominator is not None:
            raise DiagnosticsError(
                "the edge of this sharpness-aware step is no one curvature: it depends on the direction",
                given=self.text,
                expected="SAM, not ASAM, around an optimizer without a preconditioner",
                attempt="stability(objective, optimizer).ratio, whose edge is 1",
            )
        if gradient_norm is None:
            raise DiagnosticsError(
                "the edge of a sharpness-aware step depends on the size of the gradient",
                given=self.text,
                expected="gradient_norm",
                attempt="threshold(optimizer, gradient_norm=float(objective.gradient().norm()))",
            )
        if gradient_norm <= 0.0 or math.isinf(self.threshold):
            return 0.0 if gradient_norm <= 0.0 else math.inf
        # (√(1 + 4 ρT/‖g‖) − 1) ‖g‖/2ρ, written so that a small ρ loses no digits.
        return 2.0 * self.threshold / (1.0 + math.sqrt(1.0 + 4.0 * self.ascent * self.threshold / gradient_norm))
