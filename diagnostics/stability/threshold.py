"""The curvature at which a live optimizer's step stops contracting, read from its parameter groups."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer

from diagnostics.arguments import real_number
from diagnostics.errors import DiagnosticsError
from diagnostics.stability.rules import step_rules


@dataclass(frozen=True)
class GroupThreshold:
    """The edge of one parameter group: ``value`` in units of (preconditioned) curvature, and the ``rule`` it came
    from.
    """

    group: int
    value: float
    rule: str
    lr: float


@dataclass(frozen=True)
class Threshold:
    """The edge of stability of an optimizer, one entry per parameter group in ``by_group``."""

    by_group: tuple[GroupThreshold, ...]

    @property
    def value(self) -> float:
        """The threshold all groups share.

        Raises:
            DiagnosticsError: the groups differ; ``stability(objective, optimizer).ratio`` handles that.
        """
        first = self.by_group[0]
        if any(group.value != first.value for group in self.by_group):
            values = ", ".join(f"{group.value:g}" for group in self.by_group)
            raise DiagnosticsError(
                "the parameter groups have different thresholds",
                given=values,
                expected="one value",
                attempt=".by_group, or stability(objective, optimizer).ratio, whose edge is 1 whatever the groups",
            )
        return first.value

    @property
    def rule(self) -> str:
        """The rules in use, each once."""
        return "; ".join(dict.fromkeys(group.rule for group in self.by_group))

    def __str__(self) -> str:
        return ", ".join(f"group {group.group}: {group.value:.6g} ({group.rule})" for group in self.by_group)


def threshold(optimizer: Optimizer, *, gradient_norm: float | None = None) -> Threshold:
    """The largest curvature each parameter group's step can follow without growing.

    For SGD, ASGD and schedule-free SGD the curvature is that of the Hessian; for optimizers with a preconditioner P
    (the Adam family, RMSprop, Adagrad, Adadelta, Adafactor, schedule-free AdamW) that of P^-½ H P^-½ with P as it is
    now. Read anew from the learning rates and states as they are, so it follows schedules, and NAdam's momentum.

    Args:
        optimizer: the live optimizer, also inside accelerate's wrapper, SAM, ASAM or Lookahead.
        gradient_norm: ‖∇L‖, which the edge of SAM depends on; not used for others.

    Raises:
        NoStepRuleError: an optimizer whose step has a length of its own (Lion, sign descent, Muon) and so no
            threshold, or an unknown one. ``stability`` falls back to a step of theirs.
        DiagnosticsError: 8-bit states, ``maximize``, weight decay that overshoots by itself; ASAM, and SAM around a
            preconditioner, whose edge is no curvature of that kind: ``stability`` handles them.

    Source: arXiv 2103.00065, 2207.14484; 2309.12488 for SAM, 2405.15682 for schedule-free.

    Example:
        >>> import torch
        >>> weights = [torch.nn.Parameter(torch.zeros(2))]
        >>> threshold(torch.optim.SGD(weights, lr=0.1)).value
        20.0
        >>> round(threshold(torch.optim.Adam(weights, lr=0.01)).value)
        3800
    """
    if gradient_norm is not None:
        gradient_norm = real_number(
            "gradient_norm is not a norm", gradient_norm, "‖∇L‖, zero or more", lambda value: value >= 0
        )
    return Threshold(
        tuple(
            GroupThreshold(group=index, value=rule.threshold_at(gradient_norm), rule=rule.text, lr=rule.lr)
            for index, rule in enumerate(step_rules(optimizer))
        )
    )
