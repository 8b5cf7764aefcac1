"""Sharpness and the stability ratio along a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from diagnostics import DiagnosticsError, Hessian, Objective, sharpness, stability
from diagnostics.arguments import real_number, whole_number
from diagnostics.stability.rules import unwrap_optimizer
from diagnostics.stability.sharpness import NEAR
from probes.probe import Cost, Moment, Need, Reading

NO_EDGE = "the learning rate is 0: no step, and no edge"
"""Why there is no ratio where a schedule has come to its end, or not begun."""


@dataclass
class Sharpness:
    """λmax of the Hessian, and its ratio to the optimizer's threshold (1 is the edge of stability).

    Args:
        every: own schedule; the Monitor's by default.
        tol: relative residual of the eigenvalues. One percent is enough to read a ratio, at half the products of 0.1
            %.
        cold_every: every so many measurements start from a random vector, for a warm start can miss a newly risen
            direction.

    Raises:
        DiagnosticsError: a tolerance that is not positive, or ``cold_every`` below 1.

    Source: Cohen et al., arXiv 2103.00065, 2207.14484.
    """

    every: int | Callable[[int], bool] | None = None
    tol: float = 1e-2
    cold_every: int = 10
    name: ClassVar[str] = "sharpness"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "expensive"
    _warm: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _count: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        expected = "a relative residual, as 1e-2"
        self.tol = real_number("tol is not positive", self.tol, expected, lambda value: 0 < value < math.inf)
        self.cold_every = whole_number("cold_every is too small", self.cold_every, "a whole number, at least 1", 1)

    def settings(self) -> dict[str, Any]:
        """Tolerance and how often it starts cold."""
        return {"tol": self.tol, "cold_every": self.cold_every}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """Loss, stability ratio, curvature, threshold and sharpness, from one Hessian."""
        assert moment.objective is not None
        other_model = any(len(start) != moment.objective.num_parameters for start in self._warm.values())
        if other_model or self._count % self.cold_every == 0:
            self._warm.clear()
        self._count += 1
        yield Reading("loss", moment.objective.loss(), note=moment.objective.description)
        hessian = Hessian(moment.objective)
        plain_is_known = yield from self._ratio(moment, hessian)
        if not plain_is_known:
            pairs = sharpness(
                moment.objective, hessian=hessian, tol=self.tol, start=self._warm.get("sharpness"), seed=moment.seed
            )
            self._warm["sharpness"] = pairs.restart
            yield Reading("sharpness", pairs.estimate())

    def _ratio(self, moment: Moment, hessian: Hessian) -> Generator[Reading, None, bool]:
        """The ratio and what it is made of; says whether that gave the plain sharpness too."""
        assert moment.objective is not None
        if moment.optimizer is None:
            yield Reading("ratio", None, status="skipped", note="no optimizer was given")
            return False
        if stands_still(moment.optimizer, moment.objective):
            yield Reading("ratio", None, status="skipped", note=NO_EDGE)
            return False
        try:
            measured = stability(
                moment.objective,
                moment.optimizer,
                hessian=hessian,
                tol=self.tol,
                start=self._warm.get("ratio"),
                seed=moment.seed,
            )
        except DiagnosticsError as reason:
            yield Reading("ratio", None, status="skipped", note=str(reason))
            return False
        if measured.restart is not None:
            self._warm["ratio"] = measured.restart
        yield Reading("ratio", measured.ratio, note=measured.note or None)
        if measured.directions():
            yield Reading("directions", measured.directions(), note=f"at least so many, with a ratio from {NEAR:g} on")
        yield Reading("curvature", measured.curvature)
        yield Reading("threshold", measured.threshold, note=measured.rule)
        if measured.preconditioned or not measured.curvature.determined:
            return False
        yield Reading("sharpness", measured.curvature)
        return True


def stands_still(optimizer: Optimizer, objective: Objective) -> bool:
    """Whether every group that holds parameters of the objective has a learning rate of 0."""
    selected = {id(tensor) for tensor in objective.space.tensors}
    rates = [
        group.get("lr")
        for group in unwrap_optimizer(optimizer).param_groups
        if any(id(tensor) in selected for tensor in group["params"])
    ]
    return bool(rates) and all(rate is not None and float(rate) == 0.0 for rate in rates)
