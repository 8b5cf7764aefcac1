"""A bound on the time that measuring takes, kept also within one long measure."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 10.0
"""Seconds until a measure is interrupted once more, should the first time have been lost in a callback."""


class OutOfTimeError(BaseException):
    """The time is over. No ``Exception``: a measure that tries one route after another must not take it for one."""


class Allowance:
    """Seconds that measures may take together.

    Args:
        seconds: the bound; None for none.

    Example:
        >>> allowance = Allowance(60.0)
        >>> with allowance.spend():
        ...     pass
        >>> 0.0 < allowance.spent < 60.0
        True
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.spent = 0.0

    @contextmanager
    def spend(self) -> Iterator[None]:
        """Count the time inside; raises ``OutOfTimeError`` there as soon as nothing is left.

        By an alarm, where there is one and it is free: in the main thread of a system with POSIX signals. Elsewhere a
        measure that has begun is finished.
        """
        if self.seconds is None:
            yield
            return
        left = self.seconds - self.spent
        if left <= 0:
            raise OutOfTimeError
        began = time.perf_counter()
        try:
            with _alarm(left):
                yield
        finally:
            self.spent += time.perf_counter() - began


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    if not _is_free():
        yield
        return
    previous = signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


def _is_free() -> bool:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return False
    handled = signal.getsignal(signal.SIGALRM) not in (signal.SIG_DFL, signal.SIG_IGN)
    return not handled and signal.getitimer(signal.ITIMER_REAL)[0] == 0.0


def _ring(number: int, frame: FrameType | None) -> None:
    raise OutOfTimeError
