"""What feeds a NoiseTracker while a model trains: it says what it could not use, and never raises inside the loop."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

from numpy.typing import ArrayLike

from diagnostics import DiagnosticsError, NoiseTracker
from diagnostics.arguments import whole_number

_log = logging.getLogger("probes")

BatchSize = int | Callable[[], int]
"""Examples, or what is asked for them once a gradient arrives, as ``lambda: len(inputs)``."""


class Stream(ABC):
    """Watches a run until it is closed, or until something on our side fails.

    Attributes:
        tracker: what is fed.
        skipped: steps that could not be used, by the reason.
        off: why nothing is measured any more; None while it is.
    """

    def __init__(self, tracker: NoiseTracker, batch_size: BatchSize | None, scaler: Any) -> None:
        if not isinstance(tracker, NoiseTracker):
            raise DiagnosticsError(
                "tracker is not a NoiseTracker", given=type(tracker).__name__, expected="NoiseTracker()"
            )
        if batch_size is not None and not callable(batch_size):
            _examples(batch_size)
        if scaler is not None and not callable(getattr(scaler, "get_scale", scaler)):
            raise DiagnosticsError(
                "scaler has no scale",
                given=type(scaler).__name__,
                expected="a GradScaler, a callable that returns the loss scale, or None",
            )
        self.tracker = tracker
        self.skipped: Counter[str] = Counter()
        self.off: str | None = None
        self._batch_size = batch_size
        self._scaler = scaler

    @abstractmethod
    def close(self) -> None:
        """Stop measuring, and let go of the model."""

    def settle(self) -> None:  # noqa: B027 - most have nothing on its way
        """Take in what is still on its way."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def note(self) -> str:
        """What was not used, and why; empty where there is nothing to say."""
        parts = [f"{count} steps not used: {reason}" for reason, count in self.skipped.most_common()]
        return "; ".join(parts if self.off is None else [*parts, f"switched off: {self.off}"])

    def _guarded(self, action: Callable[..., None], *given: Any) -> None:
        """Run a part of ours. What goes wrong in it switches the stream off, and is never passed on to the loop."""
        if self.off is not None:
            return
        try:
            action(*given)
        # A hook may run into anything that the user's model or callables can raise.
        except Exception as problem:  # noqa: BLE001
            self._stop(f"{type(problem).__name__}: {problem}")

    def _stop(self, reason: str) -> None:
        self.off = reason
        _log.warning("the gradient noise is no longer measured and training goes on: %s", reason)

    def _take(self, small: ArrayLike, big: float, sizes: ArrayLike, big_size: float | None, scale: float) -> None:
        try:
            self.tracker.update(small, big, sizes, big_size, scale=scale)
        except DiagnosticsError as refusal:
            # Without its numbers, for reasons are counted.
            self.skipped[str(refusal).partition(";")[0]] += 1

    def _size(self, given: int | None = None) -> int:
        known = self._batch_size if given is None else given
        return _examples(known() if callable(known) else known)

    def _scale(self) -> float:
        if self._scaler is None:
            return 1.0
        return float(getattr(self._scaler, "get_scale", self._scaler)())


def _examples(given: Any) -> int:
    return whole_number("batch_size is not a number of examples", given, "at least 1, or a callable that returns it", 1)
