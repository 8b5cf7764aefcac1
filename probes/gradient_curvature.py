"""Curvature along the gradient and along the next step, and the learning rate at which that step stops helping.

A Monitor measures right after a step. The next one is found by letting a copy of the optimizer take it, with the
objective's gradient. Where a copy cannot (a step that needs a closure), the last one is used at the point it led to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from diagnostics import (
    DiagnosticsError,
    Hessian,
    Objective,
    critical_sharpness,
    directional_sharpness,
    gradient_curvature,
    trace_ratio,
)
from diagnostics.stability.trial_step import trial_step
from probes.probe import Cost, Moment, Need, Reading
from probes.readings import reading_of
from probes.sharpness import NO_EDGE, stands_still
from probes.updates import last_update

NEXT_STEP = "along the step a copy of the optimizer takes with the objective's gradient"
FORWARD_PASSES = 16
"""At most, for the critical rate: with separable data the loss falls along some steps for ever."""

NO_STEP = "the learning rate is 0: there is no next step"
LAST_UPDATE = "along the last update, at the point it led to"


@dataclass
class GradientCurvature:
    """gᵀHg/‖g‖², cos(g, Hg), the ratio of the next step to the one that the quadratic model allows, and η_c.

    Args:
        every: own schedule; the Monitor's by default.
        k: follow the share of the gradient in the k sharpest directions; 0 leaves it out, for it costs an eigenvalue
            search.
        critical: measure the critical learning rate along the next step, from some ten forward passes.
        trace_products: products for the trace over the threshold, at least 4; 0 leaves it out.

    Raises:
        DiagnosticsError: an argument out of range.

    Source: arXiv 1812.04754, 2601.16979, 2403.04081, 2305.17490.
    """

    every: int | Callable[[int], bool] | None = None
    k: int = 0
    critical: bool = True
    trace_products: int = 0
    name: ClassVar[str] = "gradient_curvature"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective", "updates"})
    cost: ClassVar[Cost] = "expensive"

    def __post_init__(self) -> None:
        if not _whole(self.k) or self.k < 0:
            raise DiagnosticsError(
                "k is out of range", given=repr(self.k), expected="a whole number, 0 to leave it out"
            )
        if not _whole(self.trace_products) or (self.trace_products != 0 and self.trace_products < 4):
            raise DiagnosticsError(
                "trace_products is out of range", given=repr(self.trace_products), expected="0, or at least 4"
            )

    def settings(self) -> dict[str, Any]:
        """What is followed, and to how many products."""
        return {"k": self.k, "critical": self.critical, "trace_products": self.trace_products}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """Each part by itself: forward passes work where second derivatives do not."""
        objective = moment.objective
        assert objective is not None
        hessian = Hessian(objective)
        yield from _or_skipped("directional", lambda: self._along_gradient(objective, hessian))
        try:
            update, along = _update(moment, objective)
        except DiagnosticsError as reason:
            for name in ("step_ratio", *(("critical_sharpness",) if self.critical else ())):
                yield Reading(name, None, status="skipped", note=str(reason))
        else:
            yield from _or_skipped("step_ratio", lambda: _along_update(update, along, objective, hessian))
            if self.critical:
                yield from _or_skipped("critical_sharpness", lambda: _critical(moment, objective, update, along))
        if self.trace_products:
            yield from _or_skipped("trace_ratio", lambda: self._trace(moment, objective, hessian))

    def _along_gradient(self, objective: Objective, hessian: Hessian) -> Iterator[Reading]:
        k = min(self.k, objective.num_parameters)
        measured = gradient_curvature(objective, k, hessian=hessian)
        yield reading_of("gradient_norm", measured.norm)
        yield reading_of("directional", measured.curvature)
        yield reading_of("alignment", measured.alignment)
        if measured.subspace_share is not None:
            yield reading_of("subspace_share", measured.subspace_share)

    def _trace(self, moment: Moment, objective: Objective, hessian: Hessian) -> Iterator[Reading]:
        if moment.optimizer is None:
            raise DiagnosticsError("no optimizer was given")
        if stands_still(moment.optimizer, objective):
            raise DiagnosticsError(NO_EDGE)
        products = self.trace_products
        yield reading_of(
            "trace_ratio",
            trace_ratio(objective, moment.optimizer, hessian=hessian, matvecs=products, seed=moment.seed),
        )


def _along_update(update: Tensor, along: str, objective: Objective, hessian: Hessian) -> Iterator[Reading]:
    measured = directional_sharpness(objective, update, hessian=hessian)
    yield reading_of("step_ratio", measured.ratio, note=along)


def _critical(moment: Moment, objective: Objective, update: Tensor, along: str) -> Iterator[Reading]:
    lr, note = _learning_rate(moment, objective)
    measured = critical_sharpness(objective, update / lr, lr=lr, max_evaluations=FORWARD_PASSES)
    yield reading_of("critical_sharpness", measured.value, note=along + note)
    yield reading_of("critical_lr", measured.lr, note=along + note)


def _update(moment: Moment, objective: Objective) -> tuple[Tensor, str]:
    """Δ (P,) of the next step, or else of the last one; and which it is."""
    if moment.optimizer is not None:
        if stands_still(moment.optimizer, objective):
            raise DiagnosticsError(NO_STEP)
        try:
            planned = trial_step(objective, moment.optimizer)
        except DiagnosticsError:
            return last_update(moment.updates, objective), LAST_UPDATE
        if bool(planned.any()):
            return planned, NEXT_STEP
    return last_update(moment.updates, objective), LAST_UPDATE


def _learning_rate(moment: Moment, objective: Objective) -> tuple[float, str]:
    """The learning rate that the update is in units of, and what to say of it."""
    if moment.optimizer is None:
        raise DiagnosticsError("no optimizer was given, and so no learning rate to be critical")
    selected = {id(tensor) for tensor in objective.space.tensors}
    rates = {
        float(group["lr"])
        for group in moment.optimizer.param_groups
        if any(id(tensor) in selected for tensor in group["params"])
    }
    if not rates:
        raise DiagnosticsError("the optimizer holds none of the objective's parameters")
    lr = max(rates)
    if not 0 < lr < math.inf:
        raise DiagnosticsError("the learning rate is not positive", given=f"{lr:g}")
    return lr, f"; groups differ, in units of the largest rate {lr:g}" if len(rates) > 1 else ""


def _or_skipped(name: str, part: Callable[[], Iterable[Reading]]) -> Iterator[Reading]:
    """A part's readings, or why there are none."""
    try:
        yield from part()
    except DiagnosticsError as reason:
        yield Reading(name, None, status="skipped", note=str(reason))


def _whole(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)
