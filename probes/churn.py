"""What one update changes on the objective's examples, along a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from diagnostics import DiagnosticsError, churn
from probes.probe import Cost, Moment, Need, Reading
from probes.readings import reading_of
from probes.updates import last_update


@dataclass
class Churn:
    """The share of predictions that the last update changed, and how far it moved the outputs.

    Give the Monitor an objective of examples that are not trained on: on those of the batch itself change is what the
    step is for.

    Args:
        axis: which axis of the outputs holds the classes or actions, where the loss is no cross-entropy.
        every: own schedule; the Monitor's by default.

    Source: Schaul et al., arXiv 2206.00730; Tang & Berseth, arXiv 2409.04792.
    """

    axis: int | None = None
    every: int | Callable[[int], bool] | None = None
    name: ClassVar[str] = "churn"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective", "updates"})
    cost: ClassVar[Cost] = "cheap"

    def settings(self) -> dict[str, Any]:
        """Where predictions are read."""
        return {"axis": self.axis}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """Two forward passes: now, and with the last update taken back."""
        assert moment.objective is not None
        try:
            # Seen from its end, a step changes as many predictions as from its start.
            measured = churn(moment.objective, -last_update(moment.updates, moment.objective), axis=self.axis)
        except DiagnosticsError as reason:
            yield Reading("changed", None, status="skipped", note=str(reason))
            return
        if measured.changed is not None and measured.interval is not None:
            low, high = measured.interval
            others = f"for other examples {low:.2%} to {high:.2%}, with 95% confidence"
            yield Reading("changed", measured.changed, note=others)
            yield Reading("predictions", float(measured.predictions))
        yield reading_of("mean_change", measured.mean_change)
        yield reading_of("relative_change", measured.relative_change)
