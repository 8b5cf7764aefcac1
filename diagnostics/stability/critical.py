"""Critical sharpness: curvature along a step from forward passes alone.

    λ_c = 2 / η_c,    η_c = the learning rate at which L(θ + ηu) is back at L(θ).

On a quadratic λ_c = uᵀHu / (−g·u), and for u = −g it is the curvature along the gradient. No derivative is taken but
the gradient, and with a direction given not even that. So it works where nothing else does: fused attention without a
second derivative, custom kernels.

Below η_c the loss falls and above it rises, so η_c is bracketed first, by growing or shrinking the learning rate, and
the bracket is then closed. The share (L(θ + ηu) − L(θ)) / η is a straight line in η for a quadratic: the line through
the ends of the bracket says where to look, and two more evaluations on either side of its zero mostly end the search.

Source: Kalra et al., arXiv 2601.16979. Closing the bracket by the line, rather than by halving, is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.arguments import real_number, require_objective, whole_number
from diagnostics.estimate import Estimate
from diagnostics.objective import Objective
from diagnostics.stability.directional import checked_direction, last_digits, moved

FIRST_STEP = 1e-2
"""Length of the first step tried, in parts of 1 + ‖θ‖, where no learning rate is given."""

ROUNDING = 8.0
"""A change of the loss below so many times the rounding of the loss itself is none."""

JITTER = 3.0
"""The same, in units of the larger of two changes that were seen when parameters moved by their last digits. Where a
small loss is a difference of large numbers, as after a perfect fit, its rounding is far more than its own last digit.
"""

FASTEST = 8.0
"""The learning rate grows or shrinks by no more than this at once: farther, a first rise could be jumped over."""


@dataclass(frozen=True, repr=False)
class CriticalSharpness:
    """λ_c and the learning rate it comes from.

    Attributes:
        value: λ_c = 2/η_c. Undetermined, with the reason in ``how``, where the loss never falls or never rises.
        lr: η_c, the smallest learning rate found at which the loss no longer falls below L(θ).
        loss: L(θ).
        evaluations: losses evaluated.
    """

    value: Estimate
    lr: Estimate
    loss: float
    evaluations: int

    def __str__(self) -> str:
        if not self.value.determined:
            return f"critical sharpness undetermined: {self.value.how}"
        return f"critical sharpness {self.value}, critical learning rate {self.lr} ({self.evaluations} losses)"

    def __repr__(self) -> str:
        return f"CriticalSharpness({self})"


def critical_sharpness(
    objective: Objective,
    direction: Tensor | None = None,
    *,
    lr: float | None = None,
    tol: float = 0.03,
    max_evaluations: int = 30,
) -> CriticalSharpness:
    """The learning rate along a direction at which the loss is back where it was, and the sharpness that goes with it.

    The relative critical sharpness of two objectives (how a step on one data set fares on another) is the same with
    the direction of the one and the loss of the other: ``critical_sharpness(other, -objective.gradient())``.

    Args:
        objective: whose loss is evaluated.
        direction: u, shape (P,): the update at learning rate 1, θ' = θ + ηu; −∇L by default, from one gradient.
        lr: the learning rate to try first, best the optimizer's own; by default a step of 1 % of 1 + ‖θ‖.
        tol: width of the final bracket in parts of η_c. Three percent tell a ratio of 1 from one of 0.9.
        max_evaluations: give up after so many losses; 8 to 14 are usual.

    Raises:
        DiagnosticsError: a direction of another shape, not finite or zero; an argument out of range.

    Source: arXiv 2601.16979.

    Example:
        >>> model, data = torch.nn.Linear(1, 1, bias=False), (torch.ones(4, 1), torch.zeros(4, 1))
        >>> objective = Objective(model, torch.nn.MSELoss(), data)  # w², of curvature 2
        >>> critical = critical_sharpness(objective, lr=0.1)
        >>> abs(float(critical.value) - 2) < 1e-2, critical.evaluations <= 10
        (True, True)
    """
    require_objective(objective)
    if lr is not None:
        wanted = "a learning rate to try first, or None"
        lr = real_number("lr is not positive", lr, wanted, lambda value: 0 < value < math.inf)
    tol = real_number("tol is out of range", tol, "a share of η_c such as 0.03", lambda value: 0 < value < 1)
    max_evaluations = whole_number("max_evaluations is too small", max_evaluations, "a whole number, at least 6", 6)
    line = _Line(objective, direction if direction is None else checked_direction(objective, direction, "direction"))
    if line.problem:
        return _undetermined(line, line.problem)
    first = FIRST_STEP * (1.0 + line.size) / line.length if lr is None else lr
    problem = _bracket(line, first, max_evaluations)
    if problem:
        return _undetermined(line, problem)
    _close(line, tol, max_evaluations)
    return _result(line, tol)


class _Line:
    """The loss along the direction: what falls and what rises, and how far that is known."""

    def __init__(self, objective: Objective, direction: Tensor | None) -> None:
        self.objective = objective
        self.theta = objective.space.flatten(objective.space.values()).double()
        self.size = float(torch.linalg.vector_norm(self.theta))
        self.source = "the direction given" if direction is not None else "−∇L"
        self.start = objective.loss_at(objective.space.values())
        self.evaluations = 1
        self.direction, self.length, self.problem = self.theta, math.nan, ""
        if not math.isfinite(self.start):
            self.problem = f"the loss is {self.start} at the parameters themselves"
            return
        self.direction = -objective.gradient().double() if direction is None else direction
        self.length = float(torch.linalg.vector_norm(self.direction))
        if not math.isfinite(self.length):
            self.problem = "the gradient is not finite"
        elif self.length == 0.0:
            self.problem = "the gradient is zero: there is no direction to go in"
        self.noise = self._rounding() if not self.problem else 0.0
        self.low, self.low_share = 0.0, math.nan
        self.high, self.high_share = math.inf, math.nan
        self.level: list[float] = []
        self._seen: list[tuple[float, float]] = []

    def _rounding(self) -> float:
        """How much the loss moves by rounding alone: seen, with every parameter moved by its last digit at random."""
        digit = last_digits(self.objective, self.theta)
        seen = [self.objective.loss_at(moved(self.objective, self.theta, sign * digit)) for sign in (1, -1)]
        self.evaluations += len(seen)
        changes = [abs(loss - self.start) for loss in seen if math.isfinite(loss)]
        return max(
            ROUNDING * torch.finfo(self.objective.space.dtype).eps * abs(self.start), JITTER * max(changes, default=0.0)
        )

    def try_at(self, lr: float) -> None:
        """Evaluate the loss at a learning rate between those known to fall and to rise, and move one of them there."""
        change = self.objective.loss_at(moved(self.objective, self.theta, lr * self.direction)) - self.start
        self.evaluations += 1
        self._seen.append((lr, change / lr))
        if change < -self.noise:
            self.low, self.low_share = lr, change / lr
        elif abs(change) <= self.noise:
            self.level.append(lr)
        else:
            # Not a number, as where a model overflows, is no fall either.
            self.high, self.high_share = lr, change / lr if math.isfinite(change) else math.inf

    def zero(self) -> float:
        """Where the straight line through both ends crosses zero; the middle where there is none."""
        if not math.isfinite(self.high_share):
            return 0.5 * (self.low + self.high)
        return self.low + (self.high - self.low) * self.low_share / (self.low_share - self.high_share)

    def factor(self) -> float:
        """How far to go for the other end: a little beyond where the last two shares point, within bounds."""
        if len(self._seen) < 2:
            return 2.0
        (other, other_share), (lr, share) = self._seen[-2:]
        slope = (share - other_share) / (lr - other)
        if not (math.isfinite(slope) and slope > 0.0 and lr > share / slope):
            return 2.0
        zero = lr - share / slope
        return min(max(1.1 * max(zero / lr, lr / zero), 2.0), FASTEST)


def _bracket(line: _Line, first: float, most: int) -> str:
    """Find one learning rate that lowers the loss and a larger one that raises it; says why where there are none."""
    at = first
    while line.evaluations < most:
        line.try_at(at)
        if line.low > 0.0 and line.high < math.inf:
            return ""
        level = sorted(lr for lr in line.level if lr < line.high)
        if line.high == math.inf:
            at *= line.factor() if line.low == at else 2.0
        elif not level:
            at /= line.factor()
        elif line.high > 2.01 * level[-1]:
            at = math.sqrt(level[-1] * line.high)
        elif len(level) == 1:
            # It may be η_c itself that was hit. If so, the loss is lowest at half of it.
            at = 0.5 * level[0]
        else:
            break
    return _unbracketed(line, at)


def _close(line: _Line, tol: float, most: int) -> None:
    """Narrow the bracket from both sides of where the line crosses zero; every third time, halve it."""
    apart, side, turns = 0.4 * tol, -1.0, 0
    while line.high - line.low > tol * line.zero() and line.evaluations < most:
        turns += 1
        at, level = line.zero() * (1.0 + side * apart), len(line.level)
        line.try_at(at if line.low < at < line.high and turns % 3 else 0.5 * (line.low + line.high))
        side = -side
        if len(line.level) > level:
            # Too near to tell in this dtype: look farther out, and be content when that is outside the bracket.
            apart *= 2.0
            if line.zero() * (1 - apart) <= line.low and line.zero() * (1 + apart) >= line.high:
                return


def _unbracketed(line: _Line, at: float) -> str:
    if line.high < math.inf:
        seen = f", and changes by less than rounding at {max(line.level):.3g}" if line.level else ""
        return (
            f"the loss does not fall along {line.source}: it rises at a learning rate of {line.high:.3g}{seen} "
            "(no descent direction, or a fall below the rounding of the loss)"
        )
    if line.low > 0.0:
        return (
            f"the loss still falls at a learning rate of {line.low:.3g}, after {line.evaluations} evaluations: "
            f"the critical one is larger, and the critical sharpness below {2 / line.low:.3g}"
        )
    return (
        f"the loss, {line.start:.6g}, changes by less than its rounding, {line.noise:.2g}, "
        f"up to a learning rate of {at:.3g}"
    )


def _result(line: _Line, tol: float) -> CriticalSharpness:
    lr = line.zero()
    how = (
        f"{line.evaluations} forward passes along {line.source}, η_c within [{line.low:.5g}, {line.high:.5g}]"
        f"; {line.objective.description}"
    )
    if line.high - line.low > tol * lr:
        how += f"; the bracket is wider than {tol:g} of η_c" + (
            ": nearer, the loss changes by rounding" if line.level else ""
        )
    return CriticalSharpness(
        value=Estimate(2 / lr, max(2 / line.low - 2 / lr, 2 / lr - 2 / line.high), "residual", how),
        lr=Estimate(lr, max(lr - line.low, line.high - lr), "residual", how),
        loss=line.start,
        evaluations=line.evaluations,
    )


def _undetermined(line: _Line, reason: str) -> CriticalSharpness:
    nothing = Estimate(math.nan, math.nan, "residual", reason)
    return CriticalSharpness(nothing, nothing, line.start, line.evaluations)
