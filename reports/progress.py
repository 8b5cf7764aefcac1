"""Progress on stderr, with the time left; nothing for work that is over within a second."""

from __future__ import annotations

import time
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
        self._text = text
        self._total = total
        self._done = 0
        self._began = time.monotonic()
        self._task = progress.add_task(text, total=total)
        self._said = False

    def stage(self, text: str) -> None:
        """The next of ``total`` stages begins."""
        self.to(self._done + 1, text, completed=self._done)

    def to(self, done: int, text: str | None = None, completed: int | None = None) -> None:
        """So much is done."""
        self._done = done
        self._text = text or self._text
        late = time.monotonic() - self._began > PATIENCE
        if self._progress.console.is_terminal:
            if late and not self._progress.live.is_started:
                self._progress.start()
            self._progress.update(
                self._task, completed=done if completed is None else completed, description=self._text
            )
        elif late and not self._said:
            # A log file gets one line, not a bar.
            self._progress.console.print(f"{self._text} ...", highlight=False)
            self._said = True


@contextmanager
def progress(total: int, text: str) -> Iterator[Bar]:
    """A bar for the work inside the block."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    shown = Progress(*columns, console=Console(stderr=True), transient=True)
    try:
        yield Bar(shown, total, text)
    finally:
        if shown.live.is_started:
            shown.stop()
