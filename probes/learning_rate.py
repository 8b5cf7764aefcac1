"""Effective learning rates and realised updates along a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from diagnostics import DiagnosticsError, effective_learning_rates
from probes.probe import Cost, Moment, Need, Reading


@dataclass
class EffectiveLearningRate:
    """Per tensor: how far the last step moved it and, with an objective, the rate it really trains at.

    Args:
        every: own schedule; the Monitor's by default.

    Source: van Laarhoven, arXiv 1706.05350; Lyle et al., arXiv 2407.01800.
    """

    every: int | Callable[[int], bool] | None = None
    name: ClassVar[str] = "learning_rate"
    needs: ClassVar[frozenset[Need]] = frozenset({"updates"})
    cost: ClassVar[Cost] = "expensive"

    def settings(self) -> dict[str, Any]:
        """None beyond the schedule."""
        return {}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """Realised relative updates first; then rates, for optimizers whose step is understood."""
        for tensor, update in moment.updates.items():
            before, change = update.norm, update.change
            if not (math.isfinite(before) and math.isfinite(change)):
                yield Reading("relative_update", None, tensor, note="the tensor is not finite", status="skipped")
            elif before > 0:
                how = "norm of the realised step over the norm before it"
                yield Reading("relative_update", change / before, tensor, note=how)
            else:
                yield Reading("relative_update", None, tensor, note="the tensor was all zero", status="skipped")
        if moment.objective is None or moment.optimizer is None:
            reason = moment.no_objective if moment.objective is None else "no optimizer was given"
            yield Reading("effective", None, status="skipped", note=reason)
            return
        try:
            table = effective_learning_rates(moment.model, moment.optimizer, moment.objective)
        except DiagnosticsError as reason:
            yield Reading("effective", None, status="skipped", note=str(reason))
            return
        for row in table.rows:
            yield Reading("lr", row.lr, row.tensor)
            yield Reading("coordinate_rate", row.coordinate_rate, row.tensor)
            yield Reading("weight_norm", row.weight_norm, row.tensor)
            yield Reading("gradient_norm", row.gradient_norm, row.tensor)
            yield Reading("alignment", row.alignment, row.tensor)
            if row.effective is not None:
                yield Reading("effective", row.effective, row.tensor)
            if row.epsilon_share is not None:
                yield Reading("epsilon_share", row.epsilon_share, row.tensor)
