"""Batch sharpness along a run: how close stochastic steps are to the edge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from diagnostics import DiagnosticsError, batch_sharpness, gradient_noise_interaction
from diagnostics.stability.preconditioner import scaling
from probes.probe import Cost, Moment, Need, Reading
from probes.sharpness import NO_EDGE, stands_still

WHOLE_PRODUCTS = 32
"""Draws for the noise interaction at most: each costs a product with the Hessian of the whole objective."""


@dataclass
class BatchSharpness:
    """The curvature along stochastic gradients, its ratio to the threshold, and how noise meets curvature.

    For SGD without momentum a ratio of 1 is the edge of stochastic stability; with momentum the edge is lower for small
    batches (see ``diagnostics.stability.batch_sharpness``). New minibatches are drawn at every check.

    Args:
        batch_size: the trainer's own; the Monitor's objective must hold more examples than that, better many more.
        every: own schedule; the Monitor's by default.
        rtol: relative standard error at which a check stops drawing.
        max_draws: minibatches in a check at most; each costs about three gradients of its size.

    Raises:
        DiagnosticsError: an argument out of range; one error names all that are.

    Source: arXiv 2412.20553.
    """

    batch_size: int
    every: int | Callable[[int], bool] | None = None
    rtol: float = 0.05
    max_draws: int = 200
    name: ClassVar[str] = "batch_sharpness"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "expensive"

    def __post_init__(self) -> None:
        wrong = []
        if not _at_least(self.batch_size, 1):
            wrong.append(f"batch_size={self.batch_size!r}")
        if isinstance(self.rtol, bool) or not isinstance(self.rtol, int | float) or not self.rtol > 0:
            wrong.append(f"rtol={self.rtol!r}")
        if not _at_least(self.max_draws, 2):
            wrong.append(f"max_draws={self.max_draws!r}")
        if wrong:
            raise DiagnosticsError(
                "BatchSharpness cannot measure with these settings",
                given=", ".join(wrong),
                expected="batch_size of at least 1, a positive rtol, max_draws of at least 2",
                attempt="BatchSharpness(batch_size=64)",
            )

    def settings(self) -> dict[str, Any]:
        """Batch size, precision and the most draws."""
        return {"batch_size": self.batch_size, "rtol": self.rtol, "max_draws": self.max_draws}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """Value, ratio with its threshold, momentum's own quotient, and the noise interaction."""
        assert moment.objective is not None
        refusal = "no optimizer was given"
        optimizer = moment.optimizer
        if optimizer is not None and stands_still(optimizer, moment.objective):
            refusal, optimizer = NO_EDGE, None
        if optimizer is not None:
            try:
                scaling(optimizer, moment.objective.space)
            except DiagnosticsError as reason:
                refusal, optimizer = str(reason), None
        measured = batch_sharpness(
            moment.objective,
            self.batch_size,
            optimizer=optimizer,
            rtol=self.rtol,
            max_draws=self.max_draws,
            seed=moment.seed,
        )
        yield Reading("value", measured.value)
        if measured.ratio is None:
            yield Reading("ratio", None, status="skipped", note=refusal)
        else:
            yield Reading("ratio", measured.ratio, note=measured.note or None)
            yield Reading("threshold", measured.threshold, note=measured.rule)
        if measured.momentum is not None:
            yield Reading("momentum", measured.momentum)
        yield Reading("batch_size", float(self.batch_size))
        draws = min(self.max_draws, WHOLE_PRODUCTS)
        interaction = gradient_noise_interaction(moment.objective, self.batch_size, draws=draws, seed=moment.seed)
        yield Reading("noise_interaction", interaction)


def _at_least(given: Any, least: int) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given >= least
