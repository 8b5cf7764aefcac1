"""The sharpness that gradient flow would end at, at a few moments of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.optim import Optimizer

from diagnostics import DiagnosticsError, gradient_flow_sharpness, threshold
from diagnostics.arguments import whole_number
from diagnostics.stability.gradient_flow import STEP_COST
from probes.probe import Cost, Moment, Need, Reading
from probes.readings import reading_of
from probes.schedule import FIRST_AND_LAST


@dataclass
class GradientFlow:
    """λmax where gradient flow from the present parameters ends, beside λmax now and the threshold of plain SGD.

    A check takes as many gradients of the whole objective as the training that is left: for small models, on few
    batches. A flow that has not ended by then gives no number.

    Args:
        every: own schedule. By default the first state and the last; ``every=at(1000, 10_000)`` for more.
        max_gradients: a check gives up after about so many gradients.

    Raises:
        DiagnosticsError: too few gradients.

    Source: Kreisler et al., arXiv 2305.13064.
    """

    every: int | Callable[[int], bool] | None = FIRST_AND_LAST
    max_gradients: int = 2000
    name: ClassVar[str] = "gradient_flow"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "expensive"

    def __post_init__(self) -> None:
        least = 2 * STEP_COST
        whole_number("max_gradients is too small", self.max_gradients, f"a whole number, at least {least}", least)

    def settings(self) -> dict[str, Any]:
        """The most gradients."""
        return {"max_gradients": self.max_gradients}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """λmax now and the threshold, then λmax, distance and loss at the end of the flow, if it was reached."""
        assert moment.objective is not None
        try:
            end = gradient_flow_sharpness(moment.objective, max_gradients=self.max_gradients, seed=moment.seed)
        except DiagnosticsError as reason:
            yield Reading("sharpness", None, status="skipped", note=str(reason))
            return
        yield reading_of("now", end.start)
        yield from _edge(moment.optimizer)
        if not end.converged:
            # Where it got to is no end: a number there would only say how far it was followed.
            left, _, _ = end.sharpness.how.partition("; ")
            advice = f"GradientFlow(max_gradients=...) allows more than {self.max_gradients}"
            yield Reading("sharpness", None, status="skipped", note=f"{left}; {advice}")
            return
        yield reading_of("sharpness", end.sharpness)
        yield Reading("distance", end.distance, note=end.sharpness.how)
        yield Reading("loss", end.loss, note=end.sharpness.how)


def _edge(optimizer: Optimizer | None) -> Iterator[Reading]:
    """The threshold where it is one on the plain sharpness, which alone the end of a plain flow can be held against."""
    if optimizer is None:
        return
    try:
        edges = threshold(optimizer)
        if edges.rule.startswith("sgd: "):
            yield Reading("threshold", edges.value, note=edges.rule)
    except DiagnosticsError:
        return
