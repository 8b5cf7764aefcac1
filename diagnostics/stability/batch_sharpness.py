"""Batch sharpness: the curvature that a stochastic step meets, and its ratio to the edge.

    E_B[ g_Bᵀ H_B g_B / ‖g_B‖² ],    a mean of quotients over minibatches B of the trainer's size,

with gradient and Hessian of the same minibatch. SGD without momentum keeps this at 2/η, the edge of stochastic
stability, while λmax of the full Hessian stays below: under small batches λmax says little about the edge. At the full
batch it is the curvature along the gradient.

With an optimizer, coordinates are scaled as its step scales them, D = diag(η F(−1) / ((2 − η λ_d) P)), and decay that
goes through the gradient is part of loss, gradient and Hessian: E[ g_BᵀD (H_B + Λ) D g_B / g_BᵀD g_B ] with g_B + Λθ
for g_B. It is 1 where a stochastic step of plain SGD leaves its minibatch's loss, decay included, as it was.

With momentum β the edge is not one number. Batch sharpness was seen to settle at 2(1−β)/η for small batches and at
2(1+β)/η for large ones (arXiv 2604.14108). The ratio here is to the full-batch edge, 2(1+β)/η: read 1 as the edge for
large batches only, and (1−β)/(1+β) for small ones (.05 at β = .9). For Adam there is no such observation at all: the
ratio is defined alike, and where it settles is not known.

Source: Andreyev & Beneventano, arXiv 2412.20553; with momentum arXiv 2604.14108.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from diagnostics.arguments import real_number, whole_number
from diagnostics.averages import looks, mean, tail_warning
from diagnostics.curvature.draws import random_stream
from diagnostics.estimate import Estimate
from diagnostics.minibatches import Minibatches
from diagnostics.objective import Objective
from diagnostics.stability.minibatch_curvature import MinibatchCurvature
from diagnostics.stability.momentum_step import MomentumStep, momentum_step
from diagnostics.stability.preconditioner import Scaling, scaling


@dataclass(frozen=True, repr=False)
class BatchSharpness:
    """Curvature along stochastic gradients.

    Attributes:
        value: E[g_BᵀH_B g_B/‖g_B‖²], in units of curvature, of the loss alone and without any preconditioner.
        ratio: 1 is the edge of plain SGD; see the module on momentum and Adam. None without an optimizer.
        momentum: E[sᵀH_B s/(s·g_B)] for the step s that SGD with momentum would take on B; 2/η where that step leaves
            the minibatch's loss as it was. None without momentum; undetermined where some s leads uphill.
        threshold: the full-batch edge: for SGD in units of ``value``, for Adam of the preconditioned curvature, which
            ``value`` is not; 1 when parameter groups differ; None without an optimizer.
        rule: which formula that is; empty without an optimizer.
        batch_size: examples in a minibatch.
        examples: how many they were drawn from.
        draws: minibatches looked at.
        converged: whether the errors came below ``rtol``.
        matvecs: Hessian-vector products used.
        note: what the number does not cover; empty when nothing.
    """

    value: Estimate
    ratio: Estimate | None
    momentum: Estimate | None
    threshold: float | None
    rule: str
    batch_size: int
    examples: int
    draws: int
    converged: bool
    matvecs: int
    note: str

    def __str__(self) -> str:
        text = f"batch sharpness {self.value} at batch size {self.batch_size}"
        if self.ratio is None:
            return text
        return f"{text}, ratio {self.ratio} to the threshold {self.threshold:.6g} [{self.rule}]"

    def __repr__(self) -> str:
        return f"BatchSharpness({self})"


def batch_sharpness(
    objective: Objective,
    batch_size: int,
    *,
    optimizer: Optimizer | None = None,
    rtol: float = 0.02,
    max_draws: int = 1000,
    seed: int = 0,
) -> BatchSharpness:
    """The average curvature of minibatches along their own gradients.

    When there are no more than ``max_draws`` different minibatches (as at the full batch), all of them are looked at
    and the result is exact. Otherwise at least 30 are drawn, and more until the error is below ``rtol``.

    Args:
        objective: the trainer's loss on examples to draw from, many more than ``batch_size``.
        batch_size: the trainer's. A loss that sums over examples grows with it, as the trainer's does.
        optimizer: the live torch optimizer, for ``ratio`` and ``momentum``.
        rtol: relative standard error at which to stop.
        max_draws: stop there in any case.
        seed: of the draws.

    Raises:
        DiagnosticsError: more examples in a minibatch than the objective has; a loss that is not finite; an optimizer
            without a rule, or for another model; a sharpness-aware one, whose edge moves with each minibatch.

    Source: arXiv 2412.20553.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> objective = Objective(model, torch.nn.MSELoss(), (x, 5 * x))
        >>> b = batch_sharpness(objective, 1, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        >>> round(b.value.value, 4), round(float(b.ratio), 4), b.draws  # mean of 2x²; the threshold is 20
        (9.3333, 0.4667, 3)
    """
    rtol = real_number("rtol is not positive", rtol, "a relative error, as 0.02", lambda value: value > 0)
    max_draws = whole_number("max_draws is not a number of draws", max_draws, "at least 2", 2)
    minibatches = Minibatches(objective, batch_size)
    scaled = None if optimizer is None else scaling(optimizer, objective.space)
    step = None if optimizer is None else momentum_step(optimizer, objective.space, scaled)
    seen = _Seen(objective, scaled, step if isinstance(step, MomentumStep) else None)
    everything = minibatches.distinct <= max_draws
    converged = True
    if everything:
        for minibatch in minibatches.every():
            seen.look(minibatch)
    else:
        generator = random_stream(seed)
        for count in looks(max_draws):
            while seen.draws < count:
                seen.look(minibatches.draw(generator))
            if converged := seen.within(rtol):
                break
    how = f"{seen.draws} minibatches of {batch_size} of {minibatches.examples:,} examples"
    how = f"{'all ' if everything else ''}{how}, {seen.route}; {objective.description}"
    edge, rule = (None, "") if scaled is None else _edge(scaled)
    return BatchSharpness(
        value=_average(seen.values, seen.draws, how, batch_size, everything),
        ratio=None if scaled is None else _average(seen.ratios, seen.draws, how, batch_size, everything),
        momentum=step if isinstance(step, Estimate) else seen.momentum(how, batch_size, everything),
        threshold=edge,
        rule=rule,
        batch_size=minibatches.size,
        examples=minibatches.examples,
        draws=seen.draws,
        converged=converged,
        matvecs=seen.matvecs,
        note="" if scaled is None else scaled.note,
    )


class _Seen:
    """Quotients of the minibatches so far; those without a gradient have none."""

    def __init__(self, objective: Objective, scaled: Scaling | None, step: MomentumStep | None) -> None:
        self.draws = 0
        self.values: list[float] = []
        self.ratios: list[float] = []
        self._steps: list[tuple[float, float]] = []
        self._step = step
        self._curvature = MinibatchCurvature()
        self._scale: Tensor | None = None
        self._factor = math.nan
        self._shift = torch.zeros(())
        self._decay = torch.zeros(())
        if scaled is not None:
            squares = scaled.root.double().square()
            if scaled.shift is None and bool((squares == squares[0]).all()):
                # One step size for all coordinates: the ratio is a multiple of the value, and needs no product.
                self._factor = float(squares[0])
            else:
                self._scale = squares
            if scaled.shift is not None:
                self._shift = scaled.shift.double()
                self._decay = self._shift * objective.space.flatten(objective.space.values()).double()

    @property
    def route(self) -> str:
        """How products were taken."""
        return self._curvature.route

    @property
    def matvecs(self) -> int:
        """Products taken so far."""
        return self._curvature.matvecs

    def look(self, minibatch: Objective) -> None:
        """Take one minibatch's quotients."""
        self.draws += 1
        gradient, products = self._curvature(minibatch, self._directions)
        g = gradient.double()
        along = products[0].double()
        if float(g @ g) > 0.0:
            self.values.append(float(g @ along) / float(g @ g))
            if self._scale is None:
                self.ratios.append(self._factor * self.values[-1])
        full = g + self._decay.to(g)
        if self._scale is not None:
            moved = self._scale * full
            if float(full @ moved) > 0.0:
                curved = products[1].double() + self._shift.to(g) * moved
                self.ratios.append(float(moved @ curved) / float(full @ moved))
        if self._step is not None:
            taken = self._step.of(full)
            curved = products[-1].double() + self._shift.to(g) * taken
            self._steps.append((float(taken @ curved), float(taken @ full)))

    def _directions(self, gradient: Tensor) -> Sequence[Tensor]:
        full = gradient.double() + self._decay.to(gradient.device)
        directions = [gradient]
        if self._scale is not None:
            directions.append((self._scale * full).to(gradient.dtype))
        if self._step is not None:
            directions.append(self._step.of(full).to(gradient.dtype))
        return directions

    def within(self, rtol: float) -> bool:
        """Whether the errors are small enough."""
        series = [self.values, self.ratios] if self._scale is not None else [self.values]
        found = [mean(values, "") for values in series if values]
        return bool(found) and all(estimate.error <= rtol * abs(estimate.value) for estimate in found)

    def momentum(self, how: str, batch_size: int, everything: bool) -> Estimate | None:
        """E[sᵀH_B s/(s·g_B)], where every step leads downhill."""
        if self._step is None:
            return None
        uphill = sum(slope <= 0.0 for _, slope in self._steps)
        if uphill:
            usable = sorted(curved / slope for curved, slope in self._steps if slope != 0.0)
            median = f", median quotient {usable[len(usable) // 2]:.4g}" if usable else ""
            reason = f"the step leads uphill on {uphill} of {self.draws} minibatches, where the quotient has no mean"
            return Estimate(math.nan, math.nan, "standard error", f"{reason}{median}; {how}")
        return _average([curved / slope for curved, slope in self._steps], self.draws, how, batch_size, everything)


def _edge(scaled: Scaling) -> tuple[float, str]:
    if scaled.uniform is None:
        return 1.0, "groups differ: ratio of each coordinate to its own edge"
    return scaled.edge, scaled.uniform.text


def _average(values: list[float], draws: int, how: str, batch_size: int, everything: bool) -> Estimate:
    if not values:
        reason = "no minibatch has a gradient that the optimizer follows"
        return Estimate(math.nan, math.nan, "standard error", f"{reason}; {how}")
    if len(values) < draws:
        how = f"{how}; {draws - len(values)} minibatches without a gradient are left out"
    how = how if everything else how + tail_warning(values, batch_size)
    return mean(values, how, everything=everything)
