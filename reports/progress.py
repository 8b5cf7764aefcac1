"""Progress on stderr, with the time left; nothing for work that is over within a second."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PATIENCE = 1.0
"""Seconds before a bar appears."""


class Bar:
    """One piece of long work: a total, or stages with their weights, and what is being done."""

    def __init__(self, progress: Progress, work: int | Mapping[str, int], text: str) -> None:
        self._progress = progress
        self._weights = work if isinstance(work, Mapping) else {}
        self._task = progress.add_task(text, total=sum(work.values()) if isinstance(work, Mapping) else work)
        self._behind, self._weight = 0, 0

    def stage(self, text: str) -> None:
        """The next stage begins."""
        self._behind += self._weight
        self._weight = self._weights.get(text, 1)
        self._progress.update(self._task, completed=self._behind, description=text)

    def part(self, share: float) -> None:
        """So much of the present stage is done, 0 to 1."""
        self._progress.update(self._task, completed=self._behind + share * self._weight)

    def to(self, done: int) -> None:
        """So much is done."""
        self._progress.update(self._task, completed=done)


@contextmanager
def progress(work: int | Mapping[str, int], text: str) -> Iterator[Bar]:
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
        yield Bar(shown, work, text)
    finally:
        appear.cancel()
        appear.join()
        if terminal:
            shown.stop()
