"""The gradient noise scale along a run, from norms that training makes anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from diagnostics import DiagnosticsError, NoiseTracker
from diagnostics.arguments import whole_number
from probes.probe import Cost, Moment, Need, Reading
from probes.readings import reading_of
from probes.streams.stream import Stream


@dataclass
class NoiseStream:
    """Writes down what a tracker knows: B_simple, what it is made of, and its lower bound.

    Args:
        source: what ``watch_microbatches`` or ``watch_ranks`` returned; or a NoiseTracker that the loop feeds.
        batch_size: the trainer's, all micro-batches and ranks together, to hold against the noise scale; None where
            there is nothing to hold.
        every: own schedule; the Monitor's by default.

    Raises:
        DiagnosticsError: a source or a batch size that is none.

    Source: McCandlish et al., arXiv 1812.06162.

    Example:
        >>> tracker = NoiseTracker()
        >>> for gradient in (1.0, 1.2, 1.1):
        ...     tracker.update([gradient + 1, gradient + 1.2], gradient, small_size=8)
        >>> readings = NoiseStream(tracker, batch_size=16).measure(Moment(3, None, None))
        >>> [reading.name for reading in readings]
        ['steps', 'batch_size', 'gradient_sq', 'trace_covariance', 'simple', 'at_least']
    """

    source: Stream | NoiseTracker
    batch_size: int | None = None
    every: int | Callable[[int], bool] | None = None
    name: ClassVar[str] = "noise_stream"
    needs: ClassVar[frozenset[Need]] = frozenset()
    cost: ClassVar[Cost] = "free"

    def __post_init__(self) -> None:
        if not isinstance(self.source, Stream | NoiseTracker):
            raise DiagnosticsError(
                "source feeds no tracker",
                given=type(self.source).__name__,
                expected="watch_microbatches(...), watch_ranks(...), or a NoiseTracker",
            )
        if self.batch_size is not None:
            whole_number("batch_size is not a number of examples", self.batch_size, "at least 1, or None", 1)

    def settings(self) -> dict[str, Any]:
        """The trainer's batch, the tracker's memory, and what feeds it."""
        return {"batch_size": self.batch_size, "decay": self._tracker.decay, "source": type(self.source).__name__}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """What is known by now, and what a stream could not use."""
        note = None
        if isinstance(self.source, Stream):
            self.source.settle()
            note = self.source.note or None
            if self.source.off is not None:
                # What the tracker knows is of the steps before, and not of this moment.
                yield Reading("simple", None, status="skipped", note=note)
                return
        noise = self._tracker.noise
        yield Reading("steps", float(self._tracker.steps), note=note)
        if self.batch_size is not None:
            yield Reading("batch_size", float(self.batch_size))
        yield reading_of("gradient_sq", noise.gradient_sq)
        yield reading_of("trace_covariance", noise.trace_covariance)
        simple = reading_of("simple", noise.simple)
        yield simple if simple.status == "ok" or note is None else replace(simple, note=f"{simple.note}; {note}")
        if noise.at_least > 0.0:
            yield Reading("at_least", noise.at_least, note="of B_simple, one-sided, at 95 %")
        else:
            yield Reading("at_least", None, status="skipped", note="no lower bound of B_simple is known yet")

    @property
    def _tracker(self) -> NoiseTracker:
        return self.source.tracker if isinstance(self.source, Stream) else self.source
