"""Progress on stderr, with the time left; nothing for work that is over within a second."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PATIENCE = 1.0
"""Seconds before a bar appears."""


class Bar:
    """One piece of long work: a total, and what is being done."""

    def __init__(self, progress: Progress, total: int, text: str) -> None:
        self._progress = progress
        self._task = progress.add_task(text, total=total)
        self._begun = 0

    def stage(self, text: str) -> None:
        """The next of ``total`` stages begins."""
        self._progress.update(self._task, completed=self._begun, description=text)
        self._begun += 1

    def part(self, share: float) -> None:
        """So much of the present stage is done, 0 to 1."""
        self._progress.update(self._task, completed=self._begun - 1 + share)

    def to(self, done: int) -> None:
        """So much is done."""
        self._progress.update(self._task, completed=done)


@contextmanager
def progress(total: int, text: str) -> Iterator[Bar]:
    """A bar for the work inside the block: on a terminal; a log file gets one line."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=16),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    shown = Progress(*columns, console=Console(stderr=True), transient=True)
    terminal = shown.console.is_terminal
    # From a timer, so that it also appears when the work sits in one long stage.
    appear = threading.Timer(
        PATIENCE, shown.start if terminal else lambda: shown.console.print(f"{text} ...", highlight=False)
    )
    appear.daemon = True
    appear.start()
    try:
        yield Bar(shown, total, text)
    finally:
        appear.cancel()
        appear.join()
        if terminal:
            shown.stop()
