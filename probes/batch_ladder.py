"""λmax against batch size, at a few moments of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diagnostics import DiagnosticsError, batch_ladder
from diagnostics.arguments import whole_number
from probes.probe import Cost, Moment, Need, Reading
from probes.readings import reading_of
from probes.schedule import FIRST_AND_LAST


@dataclass
class BatchLadder:
    """E λmax(H_B) for a ladder of batch sizes B, and the law λ_N + c (1/B − 1/N) through them.

    Each draw of each size is an eigenproblem, some twenty in a check. The objective must hold more examples than the
    batches that are of interest.

    Args:
        every: own schedule. By default the first state and the last; ``every=at(1000, 10_000)`` for more.
        sizes: batch sizes; all examples and halves of them by default.
        draws: mini-batches of each size.

    Raises:
        DiagnosticsError: sizes below 1, fewer than 2 draws.

    Source: Granziol et al., arXiv 2006.09092.
    """

    every: int | Callable[[int], bool] | None = FIRST_AND_LAST
    sizes: Sequence[int] | None = None
    draws: int = 4
    name: ClassVar[str] = "batch_ladder"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "expensive"

    def __post_init__(self) -> None:
        whole_number("draws is not a number of minibatches", self.draws, "at least 2", 2)
        if self.sizes is None:
            return
        if isinstance(self.sizes, str) or not isinstance(self.sizes, Sequence) or not self.sizes:
            raise DiagnosticsError(
                "sizes is no series of batch sizes", given=repr(self.sizes), expected="such as [8, 64], or None"
            )
        for size in self.sizes:
            whole_number("a batch size is out of range", size, "a whole number from 1", 1)

    def settings(self) -> dict[str, Any]:
        """Sizes and draws."""
        return {"sizes": None if self.sizes is None else list(self.sizes), "draws": self.draws}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """λmax by batch size, which stands where other probes name a layer; then the law."""
        assert moment.objective is not None
        try:
            ladder = batch_ladder(moment.objective, self.sizes, draws=self.draws, seed=moment.seed)
        except DiagnosticsError as reason:
            yield Reading("sharpness", None, status="skipped", note=str(reason))
            return
        yield Reading("examples", float(ladder.examples))
        for size, value in zip(ladder.sizes, ladder.values, strict=True):
            yield reading_of("sharpness", value, layer=str(size))
        if len(ladder.sizes) > 1:
            yield reading_of("whole", ladder.whole)
            yield reading_of("slope", ladder.slope)
        if math.isfinite(ladder.r_squared):
            yield Reading("r_squared", ladder.r_squared, note=ladder.slope.how)
