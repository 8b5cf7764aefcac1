"""Effective learning rates and realised updates along a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from diagnostics import (
    DiagnosticsError,
    Estimate,
    effective_learning_rates,
    equilibrium_rotation,
    quiet,
    rotation,
    update_statistics,
)
from diagnostics.stability.rules import unwrap_optimizer
from probes.probe import Cost, Moment, Need, Reading, TensorUpdate

OF_MATRICES = ("invariant_rows", "row_effective", "gradient_over_moment", "sign_agreement")
"""Columns of the table that are recorded for tensors with two axes or more."""


@dataclass(frozen=True)
class _Start:
    """A matrix as it was at a step; and the parameter, for a module may be replaced under its name."""

    step: int
    parameter: ReferenceType[Tensor]
    values: Tensor

    def of(self, tensor: Tensor | None, step: int) -> bool:
        """Whether this is where a tensor of that step came from."""
        return (
            tensor is not None and self.parameter() is tensor and self.values.shape == tensor.shape and self.step < step
        )


@dataclass
class EffectiveLearningRate:
    """Per tensor: how far the last step moved it and, with an objective, the rate it really trains at. Per matrix (two
    axes or more) also the angle the step turned it by and the one to expect, norms and ranks of the step, and how far
    it has come from the start.

    Args:
        every: own schedule; the Monitor's by default.
        memory: GiB of host memory for copies of the matrices as they were at the first measurement (of a resumed run,
            where it was resumed), which ``distance`` and ``drift_stable_rank`` need; matrices beyond it are left out.

    Raises:
        DiagnosticsError: a negative memory.

    Source: van Laarhoven, arXiv 1706.05350; Lyle et al., arXiv 2407.01800; Kosson et al., arXiv 2305.17212.
    """

    every: int | Callable[[int], bool] | None = None
    memory: float = 1.0
    name: ClassVar[str] = "learning_rate"
    needs: ClassVar[frozenset[Need]] = frozenset({"updates"})
    cost: ClassVar[Cost] = "expensive"
    _start: dict[str, _Start] = field(default_factory=dict, init=False, repr=False)
    _left_out: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.memory >= 0:
            raise DiagnosticsError("memory is negative", given=str(self.memory), expected="GiB, as 1.0, or 0 for none")

    def settings(self) -> dict[str, Any]:
        """Memory for the start."""
        return {"memory": self.memory}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """Realised updates first; then rates, for optimizers whose step is understood."""
        moved = {}
        for tensor, update in moment.updates.items():
            before, change = update.norm, update.change
            if not (math.isfinite(before) and math.isfinite(change)):
                yield Reading("relative_update", None, tensor, note="the tensor is not finite", status="skipped")
            elif before > 0:
                how = "norm of the realised step over the norm before it"
                yield Reading("relative_update", change / before, tensor, note=how)
                moved[tensor] = update
            else:
                note = "the tensor was all zero" if update.before.numel() else "the tensor has no entries"
                yield Reading("relative_update", None, tensor, note=note, status="skipped")
        yield from self._remember(moment)
        yield from self._expected(moment)
        rates = _by_name(moment)
        for tensor, update in moved.items():
            if _is_matrix(update.before):
                yield from self._step(moment, tensor, update, rates.get(tensor, 1.0))
        yield from _rates(moment)

    def _remember(self, moment: Moment) -> Iterator[Reading]:
        """Copies of matrices not seen before, or that belong to another run than the one this probe was last in; and
        once, how many there was no room for.
        """
        named = dict(moment.model.named_parameters())
        self._start = {name: start for name, start in self._start.items() if start.of(named.get(name), moment.step)}
        left_out = 0
        for name, tensor in named.items():
            seen = name in self._start
            if tensor.requires_grad and _is_matrix(tensor) and not seen and bool(tensor.isfinite().all()):
                if self._kept() + tensor.nbytes > self.memory * 2**30:
                    left_out += 1
                    continue
                with torch.inference_mode(False), torch.no_grad():
                    self._start[name] = _Start(moment.step, ref(tensor), tensor.detach().to("cpu", copy=True))
        if left_out and left_out != self._left_out:
            note = f"copies of {left_out} matrices as they were at first would take more than {self.memory:g} GiB: "
            yield Reading("distance", None, note=f"{note}EffectiveLearningRate(memory=...)", status="skipped")
        self._left_out = left_out

    def _kept(self) -> int:
        """Bytes of the copies."""
        return sum(start.values.nbytes for start in self._start.values())

    def _expected(self, moment: Moment) -> Iterator[Reading]:
        """What equilibrium has in store for the matrices of each group that has one."""
        if moment.optimizer is None:
            return
        names = {id(tensor): name for name, tensor in moment.model.named_parameters() if _is_matrix(tensor)}
        held = unwrap_optimizer(moment.optimizer).param_groups
        groups = zip(held, equilibrium_rotation(moment.optimizer), strict=True)
        for group, expected in groups:
            for name in (names[id(tensor)] for tensor in group["params"] if id(tensor) in names):
                if name in moment.updates and expected.rotation.determined:
                    note = f"{expected.rotation.how}, for scale-invariant weights"
                    yield Reading("rotation_predicted", expected.rotation.value, name, note=note)
                    yield Reading("timescale", expected.timescale.value, name, note=expected.timescale.how)

    def _step(self, moment: Moment, name: str, update: TensorUpdate, lr: float) -> list[Reading]:
        """What is defined of the step of one matrix."""
        start = self._start.get(name)
        moved = start is not None and start.step < moment.step
        with quiet(moment.model):
            turned = rotation(update.before, update.after)
            step = update_statistics(
                update.before,
                update.after,
                initial=start.values if start is not None and moved else None,
                lr=lr,
            )
        found = {
            "rotation": turned.rows,
            "update_norm_ratio": step.update_norm_ratio,
            "operator_norm_ratio": step.operator_norm_ratio,
            "update_stable_rank": step.update_stable_rank,
            "drift_stable_rank": step.drift_stable_rank,
            "distance": step.distance,
            "trust_ratio": step.trust_ratio,
        }
        notes = {
            "rotation": f"{turned.whole} rad as a whole",
            **dict.fromkeys(("drift_stable_rank", "distance"), f"since step {start.step if start else 0}"),
        }
        return [
            Reading(quantity, value, name, note=notes.get(quantity))
            for quantity, value in found.items()
            if value is not None and value.determined
        ]


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.ndim >= 2 and not tensor.is_complex()


def _by_name(moment: Moment) -> dict[str, float]:
    """η of each tensor that the optimizer holds."""
    if moment.optimizer is None:
        return {}
    groups = unwrap_optimizer(moment.optimizer).param_groups
    rates = {id(tensor): float(group["lr"]) for group in groups for tensor in group["params"]}
    named = moment.model.named_parameters()
    return {name: rates[id(tensor)] for name, tensor in named if id(tensor) in rates}


def _rates(moment: Moment) -> Iterator[Reading]:
    """The columns of the table, as far as they are defined."""
    if moment.objective is None or moment.optimizer is None:
        reason = moment.no_objective if moment.objective is None else "no optimizer was given"
        yield Reading("effective", None, status="skipped", note=reason)
        return
    try:
        table = effective_learning_rates(moment.model, moment.optimizer, moment.objective)
    except DiagnosticsError as problem:
        yield Reading("effective", None, status="skipped", note=str(problem))
        return
    if table.note:
        yield Reading("effective", None, status="skipped", note=table.note)
    axes = {name: tensor.ndim for name, tensor in moment.objective.space.items()}
    for row in table.rows:
        yield Reading("lr", row.lr, row.tensor)
        always = (
            *("coordinate_rate", "weight_norm", "weight_magnitude", "gradient_norm", "alignment"),
            *("effective", "epsilon_share"),
        )
        for quantity in (*always, *(OF_MATRICES if axes[row.tensor] >= 2 else ())):
            value: Estimate | None = getattr(row, quantity)
            if value is not None and (quantity in always or value.determined):
                yield Reading(quantity, value, row.tensor)
