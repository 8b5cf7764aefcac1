"""Churn: what one update changes on examples that it was not made for.

A step for one batch moves the outputs on all other inputs too. Counted are the examples whose prediction (the largest
output) is another one after it, and how far outputs move. On data that the update was computed on the change is its
purpose; on other data it is a side effect, the off-diagonal part of the tangent kernel: so give an objective of other
examples. In value-based reinforcement learning the prediction is the greedy action.

Counts are exact for these examples. For others like them, the share has its Clopper-Pearson interval.

Source: Schaul et al., arXiv 2206.00730; Tang & Berseth, arXiv 2409.04792.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor, nn

from diagnostics.arguments import require_finite_loss, require_objective
from diagnostics.averages import mean
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.objective import Objective
from diagnostics.output_loss import Categorical, Elementwise, OutputLoss
from diagnostics.quiet import quiet
from diagnostics.stability.directional import moved, parameter_vector


@dataclass(frozen=True, repr=False)
class Churn:
    """What one update changes.

    Attributes:
        changed: share of predictions that are another one after it, exact for these examples; None where outputs hold
            no classes or actions.
        interval: where that share lies for other examples like these, with 95 % confidence, if they are independent
            (tokens of one text are not); None likewise.
        predictions: how many were looked at.
        mean_change: mean |f' − f| over outputs, then over examples, in units of the outputs.
        relative_change: √(Σ(f' − f)² / Σ(f − f̄)²), f̄ the mean over examples: the change beside how outputs differ.
    """

    changed: Estimate | None
    interval: tuple[float, float] | None
    predictions: int
    mean_change: Estimate
    relative_change: Estimate

    def __str__(self) -> str:
        change = f"outputs move by {self.mean_change} on average, {self.relative_change} of their spread"
        if self.changed is None or self.interval is None:
            return change
        low, high = self.interval
        return (
            f"{self.changed:.2%} of {self.predictions:,} predictions change (95 % interval {low:.2%} to {high:.2%}); "
            f"{change}"
        )

    def __repr__(self) -> str:
        return f"Churn({self})"


def churn(objective: Objective, update: Tensor, *, axis: int | None = None) -> Churn:
    """What an update at the present parameters changes of the outputs on the objective's examples.

    Costs two forward passes over all batches.

    Args:
        objective: made with ``Objective(model, loss, batches)`` or ``Objective.huggingface``.
        update: Δ, shape (P,), in the order of ``objective.space``: θ' − θ, learning rate and all.
        axis: which axis of the outputs holds the classes or actions. Told by a cross-entropy; for other losses, such as
            those of action values, nothing is predicted unless it is given.

    Raises:
        DiagnosticsError: outputs that cannot be seen, or are not finite before or after; an update of another shape, or
            not finite; no such axis.

    Source: arXiv 2206.00730, 2409.04792.

    Example:
        >>> model, data = nn.Linear(1, 2, bias=False), (torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]))
        >>> _ = nn.init.constant_(model.weight, 0.0)
        >>> with torch.no_grad():
        ...     model.weight[0] = 1.0
        >>> print(churn(Objective(model, nn.CrossEntropyLoss(), data), torch.tensor([-2.0, 0.0])).changed)
        1
    """
    require_objective(objective)
    delta = parameter_vector(objective, update, "update")
    require_finite_loss(objective)
    seen = _Seen(axis)
    with quiet(objective.model, objective.mode), torch.no_grad():
        start = objective.space.flatten(objective.space.values()).double()
        after = moved(objective, start, delta)
        for index, weight in enumerate(objective.weights):
            if weight:
                first = objective.batch_outputs(index, objective.space.values())
                seen.add(first, objective.batch_outputs(index, after).outputs)
    return seen.summary(objective.description)


def clopper_pearson(hits: int, count: int) -> tuple[float, float]:
    """The exact 95 % interval of a share.

    Example:
        >>> low, high = clopper_pearson(0, 100)
        >>> low, round(high, 4)
        (0.0, 0.0362)
    """
    low = float(betaincinv(hits, count - hits + 1, 0.025)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, 0.975)) if hits < count else 1.0
    return low, high


class _Seen:
    """Sums over batches."""

    def __init__(self, axis: int | None) -> None:
        self._axis = axis
        self._changed, self._predictions = 0, 0
        self._moves: list[float] = []
        self._squares: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def add(self, first: OutputLoss, after: Tensor) -> None:
        """Take in one batch."""
        before = first.outputs
        for outputs in (before, after):
            if not bool(torch.isfinite(outputs).all()):
                raise DiagnosticsError(
                    "the outputs are not finite",
                    given="NaN or infinity before or after the update",
                    expected="finite outputs at both ends",
                )
        away = (after.double() - before.double()).reshape(len(before) if before.ndim else 1, -1)
        self._moves += away.abs().mean(1).tolist()
        self._squares.append(away.square().sum().cpu())
        self._outputs.append(before.double().cpu())
        if (both := self._predicted(first, after)) is not None:
            self._changed += int((both[0] != both[1]).sum())
            self._predictions += both[0].numel()

    def _predicted(self, first: OutputLoss, after: Tensor) -> tuple[Tensor, Tensor] | None:
        """Predictions before and after; None where there are none."""
        if self._axis is not None:
            if not -first.outputs.ndim <= self._axis < first.outputs.ndim:
                raise DiagnosticsError(
                    "axis is not one of the outputs",
                    given=f"axis={self._axis}",
                    expected=f"an axis of outputs of shape {tuple(first.outputs.shape)}",
                )
            return first.outputs.argmax(self._axis), after.argmax(self._axis)
        if isinstance(first.kind, Categorical):
            counts = first.kind.weight > 0
            before, then = (first.kind.rows(outputs).argmax(1)[counts] for outputs in (first.outputs, after))
            return before, then
        if isinstance(first.kind, Elementwise) and isinstance(first.kind.criterion, nn.BCEWithLogitsLoss):
            return first.outputs > 0, after > 0
        return None

    def summary(self, data: str) -> Churn:
        """Shares and means over everything."""
        shapes = {outputs.shape[1:] for outputs in self._outputs if outputs.ndim}
        alike = len(shapes) == 1 and all(outputs.ndim for outputs in self._outputs)
        every = torch.cat(self._outputs if alike else [outputs.reshape(-1) for outputs in self._outputs])
        spread = float((every - every.mean(0)).square().sum())
        size = float(torch.stack(self._squares).sum())
        relative = (
            exact((size / spread) ** 0.5, data)
            if spread > 0
            else Estimate(float("nan"), float("nan"), "exact", "outputs are the same for all examples")
        )
        count = self._predictions
        return Churn(
            changed=exact(self._changed / count, f"of {count:,} predictions; {data}") if count else None,
            interval=clopper_pearson(self._changed, count) if count else None,
            predictions=count,
            mean_change=mean(self._moves, f"over {len(self._moves):,} examples; {data}"),
            relative_change=relative,
        )
