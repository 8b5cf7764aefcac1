"""The gradient noise scale along a run, on the objective's own examples, by layer and as the optimizer sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from diagnostics import DiagnosticsError, noise_scale
from diagnostics.arguments import whole_number
from diagnostics.noise.noise_scale import NoiseScale as Measured
from probes.probe import Cost, Moment, Need, Reading
from probes.readings import reading_of

WHOLE = "(model)"
"""The layer of parameters that are the model's own."""


@dataclass
class NoiseScale:
    """B_simple and B_noise: how many examples a batch needs before its gradient is mostly signal.

    Takes the per-example gradient norms of the objective, and for B_noise a Hessian-vector product and a gradient for
    each draw. Some hundreds of examples are needed, drawn as the trainer's are.

    Args:
        batch_size: the trainer's, all accumulated micro-batches together, to hold against the noise scale; None where
            there is nothing to hold.
        draws: halves of the examples for B_noise; 0 leaves it out.
        every: own schedule; the Monitor's by default.

    Raises:
        DiagnosticsError: a batch size or a number of draws that is none.

    Source: McCandlish et al., arXiv 1812.06162.
    """

    batch_size: int | None = None
    draws: int = 8
    every: int | Callable[[int], bool] | None = None
    name: ClassVar[str] = "noise_scale"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "expensive"

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            whole_number("batch_size is not a number of examples", self.batch_size, "at least 1, or None", 1)
        whole_number("draws is not a number of halves", self.draws, "0, or at least 2", 0)
        if self.draws == 1:
            raise DiagnosticsError("draws is too small", given="1", expected="0, or at least 2: one draw has no error")

    def settings(self) -> dict[str, Any]:
        """The trainer's batch and the number of draws."""
        return {"batch_size": self.batch_size, "draws": self.draws}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """Both scales, what the first is made of, and both in the optimizer's metric."""
        assert moment.objective is not None
        try:
            measured, without = self._measured(moment)
        except DiagnosticsError as reason:
            yield Reading("simple", None, status="skipped", note=str(reason))
            return
        yield Reading("examples", float(measured.examples))
        if self.batch_size is not None:
            yield Reading("batch_size", float(self.batch_size))
        yield reading_of("gradient_sq", measured.gradient_sq)
        yield reading_of("trace_covariance", measured.trace_covariance)
        yield reading_of("simple", measured.simple)
        if measured.hessian is not None:
            yield reading_of("hessian", measured.hessian)
        yield reading_of("coherence", measured.coherence)
        yield reading_of("tail_index", measured.tail)
        yield reading_of("top_share", measured.top_share)
        yield reading_of("median_norm", measured.median_norm)
        if without:
            yield Reading("preconditioned", None, status="skipped", note=without)
        for name in ("preconditioned", "preconditioned_hessian"):
            if (estimate := getattr(measured, name)) is not None:
                yield reading_of(name, estimate)
        for row in measured.by_layer:
            yield reading_of("simple", row.simple, row.layer or WHOLE)
            yield reading_of("trace_covariance", row.trace_covariance, row.layer or WHOLE)

    def _measured(self, moment: Moment) -> tuple[Measured, str]:
        """In the optimizer's metric where there is one; otherwise without, and why."""
        assert moment.objective is not None
        reason = ""
        if moment.optimizer is not None:
            try:
                measured = noise_scale(moment.objective, optimizer=moment.optimizer, draws=self.draws, seed=moment.seed)
                return measured, ""
            except DiagnosticsError as problem:
                reason = str(problem)
        return noise_scale(moment.objective, draws=self.draws, seed=moment.seed), reason
