"""The stability ratio: how close a run is to the edge, whatever its optimizer.

Gradient descent follows the loss down only where curvature stays below a threshold set by its step (2/η for plain
gradient descent). Full-batch training tends to drive curvature up to that threshold and to hover there: the edge of
stability. The ratio of curvature to threshold is the one number that can be read without knowing the optimizer: below
1 steps contract, at 1 they oscillate, above 1 they grow. It is the largest eigenvalue of D^½ (H + Λ) D^½, with D the
per-coordinate step sizes divided by 2 − ηλ_d and multiplied by F(−1) (see ``rules``).

Source: Cohen et al., arXiv 2103.00065 (gradient descent), arXiv 2207.14484 (Adam).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from diagnostics.arguments import hessian_of, real_number, require_finite_loss
from diagnostics.curvature.eigen.eigenpairs import Eigenpairs, top_eigenpairs
from diagnostics.curvature.operator import Preconditioned
from diagnostics.curvature.operators import Hessian
from diagnostics.estimate import Estimate
from diagnostics.objective import Objective
from diagnostics.stability.ascent_curvature import AscentCurvature
from diagnostics.stability.directional import directional_sharpness
from diagnostics.stability.preconditioner import scaling
from diagnostics.stability.rules import NoStepRuleError, step_rules
from diagnostics.stability.rules.wrappers import wrapped_by
from diagnostics.stability.trial_step import trial_step

NEAR = 0.9
"""From this ratio on a direction counts as at the edge."""


@dataclass(frozen=True, repr=False)
class Stability:
    """How close a step is to the edge.

    Attributes:
        ratio: curvature over threshold; 1 is the edge for every optimizer with a rule. For others (``rule`` begins
            with "realised update") 1 is where a step of theirs no longer lowers the loss, which it may do below the
            edge of some direction: a lower bound.
        curvature: λmax of the Hessian (SGD) or of the preconditioned Hessian (Adam and its kind); equal to ``ratio``
            when parameter groups differ, for then no one scale is common to them.
        threshold: the curvature at the edge; 1 when groups differ; infinite at a zero learning rate.
        rule: which formula, e.g. ``"adamw: (1+β1)(2−ηλ)/((1−β1)η)"``.
        preconditioned: whether ``curvature`` is of something else than the Hessian itself.
        converged: whether the eigenvalue met its tolerance.
        tracked: the ratios of the directions that were followed, largest first: with ``near`` all from there up, and
            otherwise those that came along with the first, where some may be missing.
        restart: (P,), in the scaled coordinates: a warm start for the next call; None where there is nothing to start.
        matvecs: Hessian-vector products used.
        note: what the number does not cover; empty when nothing.
    """

    ratio: Estimate
    curvature: Estimate
    threshold: float
    rule: str
    preconditioned: bool
    converged: bool
    tracked: tuple[Estimate, ...]
    restart: Tensor | None
    matvecs: int
    note: str

    def directions(self, level: float = NEAR) -> int:
        """How many of the tracked directions have a ratio of at least ``level``, their errors allowed for."""
        return sum(ratio.value - ratio.error >= level for ratio in self.tracked)

    def __str__(self) -> str:
        edge = f"curvature {self.curvature}, threshold {self.threshold:.6g} [{self.rule}]"
        return f"stability ratio {self.ratio} (1 is the edge): {edge}"

    def __repr__(self) -> str:
        return f"Stability({self})"


def stability(
    objective: Objective,
    optimizer: Optimizer,
    *,
    hessian: Hessian | None = None,
    tol: float = 1e-3,
    start: Tensor | None = None,
    seed: int = 0,
    near: float | None = None,
) -> Stability:
    """The stability ratio of an optimizer on an objective, at the parameters as they are now.

    Args:
        objective: the loss whose curvature counts: the trainer's own, reduction included.
        optimizer: the live torch optimizer, in its wrappers. Those of ``threshold`` have a rule; the ratio of others
            (Lion, sign descent, Muon, any class of your own) is taken along the step that a copy of it would take.
        hessian: one already made for this objective, to share its graph.
        tol: relative residual of the eigenvalue.
        start: the ``restart`` of an earlier call, for a warm start.
        seed: of the random start.
        near: follow every direction whose ratio is at least this, where the first one is; several directions mostly
            share the edge. Each costs about as many products as the first.

    Raises:
        DiagnosticsError: an optimizer without state where one is needed, with a state in 8 bits, or for another model;
            one without a rule that cannot take a step by itself; a loss that is not finite.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(model, torch.nn.MSELoss(), (torch.ones(4, 1), torch.zeros(4, 1)))
        >>> s = stability(objective, torch.optim.SGD(model.parameters(), lr=0.25))
        >>> round(float(s.ratio), 6), round(float(s.curvature), 6), s.threshold
        (0.25, 2.0, 8.0)
    """
    operator = hessian_of(objective, hessian)
    if near is not None:
        near = real_number("near is not a ratio", near, "a number such as 0.9, or None", math.isfinite)
    require_finite_loss(objective)
    try:
        rules = step_rules(optimizer)
    except NoStepRuleError as reason:
        return _along_a_step(objective, optimizer, operator, reason)
    gradient = objective.gradient() if any(rule.ascent for rule in rules) else None
    scaled = scaling(optimizer, objective.space, gradient)
    curved = operator if scaled.ascent is None else AscentCurvature(operator, scaled.ascent)
    used = operator.matvecs
    felt = Preconditioned(curved, scaled.root, scaled.shift)
    pairs = top_eigenpairs(felt, tol=tol, start=start, seed=seed)
    while near is not None and pairs.values[-1] >= near and len(pairs.values) < len(scaled.root):
        several = min(2 * len(pairs.values), len(scaled.root))
        pairs = top_eigenpairs(felt, several, tol=tol, start=pairs.restart, seed=seed)
    how = f"{pairs.how}; {objective.description}"
    ratio = Estimate(float(pairs.values[0]), float(pairs.residuals[0]), "residual", how)
    rule = scaled.uniform
    if rule is None:
        text, edge, curvature = "groups differ: ratio of each coordinate to its own edge", 1.0, ratio
    elif not scaled.root.any():
        text, edge = rule.text, scaled.edge
        small = "the learning rate is zero" if rule.weight == 0.0 else "the steps are too small for the dtype"
        curvature = Estimate(math.nan, math.nan, "residual", small)
    elif scaled.shift is None:
        text, edge = rule.text, scaled.edge
        curvature = Estimate(ratio.value * edge, ratio.error * edge, "residual", how)
    else:
        text, edge = rule.text, scaled.edge
        coupled = rule.coupled_decay if rule.denominator is None else 0.0
        curvature = Estimate(
            ratio.value / rule.weight - coupled - rule.normalised_decay, ratio.error / rule.weight, "residual", how
        )
    return Stability(
        ratio=ratio,
        curvature=curvature,
        threshold=edge,
        rule=text,
        preconditioned=rule is None or rule.denominator is not None or scaled.ascent is not None,
        converged=pairs.converged,
        tracked=_tracked(pairs, near, how),
        restart=pairs.restart,
        matvecs=operator.matvecs - used,
        note=scaled.note,
    )


def _tracked(pairs: Eigenpairs, near: float | None, how: str) -> tuple[Estimate, ...]:
    found = torch.stack([pairs.values, pairs.residuals], dim=1)
    if near is None:
        found = torch.cat([found, pairs.behind])
    return tuple(
        Estimate(value, residual, "residual", how)
        for value, residual in sorted(found.tolist(), reverse=True)
        if near is None or value >= near or value == float(pairs.values[0])
    )


def _along_a_step(objective: Objective, optimizer: Optimizer, operator: Hessian, reason: NoStepRuleError) -> Stability:
    """For optimizers without a rule: what the quadratic model says of the step that they would take next."""
    used = operator.matvecs
    step = directional_sharpness(objective, trial_step(objective, optimizer), hessian=operator)
    inner, wrappers = wrapped_by(optimizer)
    name = type(inner).__name__
    around = f", without the {type(optimizer).__name__} around it" if wrappers else ""
    how = f"one step of a copy of {name} with the objective's gradient; {step.ratio.how}"
    ratio = replace(step.ratio, how=how)
    return Stability(
        ratio=ratio,
        curvature=Estimate(2 * ratio.value, 2 * ratio.error, ratio.kind, how),
        threshold=2.0,
        rule=f"realised update of {name}: ΔᵀHΔ / (−g·Δ) against 2",
        preconditioned=True,
        converged=ratio.determined,
        tracked=(ratio,),
        restart=None,
        matvecs=operator.matvecs - used,
        note=f"{str(reason).partition(';')[0]}: along one step of it{around}, a lower bound",
    )


def sharpness(
    objective: Objective,
    *,
    hessian: Hessian | None = None,
    tol: float = 1e-3,
    start: Tensor | None = None,
    seed: int = 0,
) -> Eigenpairs:
    """The largest algebraic Hessian eigenvalue λmax with its vector; ``.estimate()`` is the value with its error.

    Args:
        objective: the loss to measure.
        hessian: one already made for this objective, to share its graph.
        tol: relative residual.
        start: (P,), the ``restart`` of former pairs.
        seed: of the random start.

    Raises:
        DiagnosticsError: a loss or a product that is not finite; a Hessian of something else.

    Example:
        >>> import torch
        >>> model, data = torch.nn.Linear(1, 1, bias=False), (torch.ones(4, 1), torch.zeros(4, 1))
        >>> objective = Objective(model, torch.nn.MSELoss(), data)
        >>> print(sharpness(objective).estimate())
        2.0000 ± 0.0001
    """
    operator = hessian_of(objective, hessian)
    require_finite_loss(objective)
    pairs = top_eigenpairs(operator, tol=tol, start=start, seed=seed)
    return replace(pairs, how=f"{pairs.how}; {objective.description}")
