"""Unit activity along a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from diagnostics import DiagnosticsError, unit_activity
from probes.probe import Cost, Moment, Need, Reading

_WHERE_KNOWN = (
    *("duplicate", "outliers", "outlier_ratio", "gated_dormant", "gradient_dormant", "frozen"),
    *("sign_entropy", "rms"),
)
"""Written where they could be told: without a gate, or with too few samples, there is no such number."""


@dataclass
class Units:
    """Per non-linearity: how many units are dormant, dead, saturated or linearised; duplicates, outliers, units that
    are shut off by their gate, that have no gradient at their output or in their weights; their signs and size.

    Args:
        every: own schedule; the Monitor's by default.
        tau: threshold of the dormant score.

    Raises:
        DiagnosticsError: τ is negative.

    Source: Sokar et al., arXiv 2302.12902; Lyle et al., arXiv 2402.18762; for gradients arXiv 2505.24061.
    """

    every: int | Callable[[int], bool] | None = None
    tau: float = 0.025
    name: ClassVar[str] = "units"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "cheap"

    def __post_init__(self) -> None:
        if not self.tau >= 0:
            raise DiagnosticsError("tau is negative", given=str(self.tau), expected="a threshold such as 0.025")

    def settings(self) -> dict[str, Any]:
        """The threshold τ."""
        return {"tau": self.tau}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """One pass over the objective's batches, forwards and backwards."""
        try:
            table = unit_activity(moment.model, moment.objective, self.tau)
        except DiagnosticsError as reason:
            yield Reading("units", None, status="skipped", note=str(reason))
            return
        if not table.rows:
            yield Reading("units", None, status="skipped", note="the model ran no non-linearity that is known here")
        for row in table.rows:
            how = f"{row.nonlinearity}, {row.samples} samples per unit"
            yield Reading("units", row.units, row.layer, note=how, array=row.scores.numpy())
            yield Reading("dormant", row.dormant, row.layer, note=f"score at most {self.tau:g}; {how}")
            firing = f"a dead unit works on less than {row.firing_bound:.2g} of inputs (95 %)"
            yield Reading("dead", row.dead, row.layer, note=f"{how}; {firing}")
            yield Reading("saturated", row.saturated, row.layer, note=how)
            yield Reading("linearised", row.linearised, row.layer, note=how)
            for name in _WHERE_KNOWN:
                if (value := getattr(row, name)) is not None:
                    yield Reading(name, value, row.layer, note=how)
        if table.rows and table.without_gradients:
            yield Reading("gradient_dormant", None, status="skipped", note=table.without_gradients)
