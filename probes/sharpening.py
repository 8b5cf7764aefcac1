"""Progressive sharpening along a run: whether the downhill flow raises curvature, and how far off the edge is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.optim import Optimizer

from diagnostics import DiagnosticsError, sharpening_rate, threshold
from diagnostics.arguments import real_number
from probes.probe import Cost, Moment, Need, Reading
from probes.readings import reading_of

MEET = (
    "undetermined: the largest eigenvalue is not told from the next, and where two meet sharpness has no gradient "
    "(usual at the edge of stability)"
)
"""Said in the same words at every check, so that a report tells it once."""


@dataclass
class Sharpening:
    """α = −∇L·∇S, the rise of the sharpness S under gradient flow, and β = ‖∇S⊥‖², how strongly oscillation lowers it.

    Args:
        every: own schedule; the Monitor's by default.
        tol: relative residual of the eigenvalues. The direction matters here, and it is off by the residual over the
            gap to the next eigenvalue: what is not told apart at this tolerance is skipped.

    Raises:
        DiagnosticsError: a tolerance that is not positive.

    Source: Damian, Nichani & Lee, arXiv 2209.15594.
    """

    every: int | Callable[[int], bool] | None = None
    tol: float = 1e-2
    name: ClassVar[str] = "sharpening"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "expensive"

    def __post_init__(self) -> None:
        real_number("tol is not positive", self.tol, "a relative residual, as 1e-2", lambda tol: 0 < tol < math.inf)

    def settings(self) -> dict[str, Any]:
        """The tolerance."""
        return {"tol": self.tol}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """S, α, β, and with SGD the steps that are left; none where sharpness does not rise towards the edge."""
        assert moment.objective is not None
        try:
            measured = sharpening_rate(
                moment.objective, _with_an_edge(moment.optimizer), tol=self.tol, seed=moment.seed
            )
        except DiagnosticsError as reason:
            yield Reading("rate", None, status="skipped", note=str(reason))
            return
        if measured.gradient is None:
            yield Reading("rate", None, status="skipped", note=MEET)
            return
        yield reading_of("sharpness", measured.sharpness)
        yield reading_of("rate", measured.alpha)
        yield reading_of("resistance", measured.beta)
        if measured.steps_to_edge is not None and measured.steps_to_edge.determined:
            yield Reading("steps_to_edge", measured.steps_to_edge)


def _with_an_edge(optimizer: Optimizer | None) -> Optimizer | None:
    """The optimizer where it has a threshold: without one the rates can be measured all the same."""
    if optimizer is None:
        return None
    try:
        threshold(optimizer)
    except DiagnosticsError:
        return None
    return optimizer
