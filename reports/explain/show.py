"""Printing what a name means, in a terminal."""

from __future__ import annotations

import os
import shutil
import sys

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table as Grid
from rich.text import Text

from reports.explain.docstrings import rewrapped
from reports.explain.names import Meaning, meaning, names, nearest
from reports.explain.page import Entry
from reports.saying import say

OK, USAGE = 0, 2
_WIDEST = 80


def show(name: str | None) -> int:
    """Print the meaning of a name, or all names; returns the exit code."""
    console = _console()
    if name is None:
        _all(console)
        return OK
    found = meaning(name)
    if not found:
        close = nearest(name)
        tip = ", ".join(close) if close else "diagnose explain, which lists all names"
        say(f"nothing is known as {name[:60]!r}; expected: a probe, a finding, a number or a function; try: {tip}")
        return USAGE
    _one(console, found)
    return OK


def _console() -> Console:
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return Console(
        width=min(shutil.get_terminal_size().columns, _WIDEST),
        color_system="standard" if color else None,
        force_terminal=color,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )


def _all(console: Console) -> None:
    for place, (head, lines) in enumerate(names().items()):
        console.print(Text(head if place == 0 else f"\n{head}", style="bold"))
        grid = Grid.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=max(len(name) for name in lines))
        grid.add_column(overflow="fold")
        for name, line in lines.items():
            grid.add_row(name, Text(_plain(line)))
        _print(console, grid)
    console.print(Text("\nMore on each: diagnose explain NAME", style="dim"))


def _one(console: Console, found: Meaning) -> None:
    for entry in found.entries:
        console.print(Text.assemble((entry.name, "bold"), f"  ({entry.kind})" if entry.kind else ""))
        _print(console, Markdown(_list(entry)))
        console.print()
    if found.docstring:
        console.print(Text(found.name, style="bold"))
        console.print(Text(rewrapped(found.docstring, console.width)), soft_wrap=True)
        console.print()
    for section in found.sections:
        _print(console, Markdown(f"## {section.title}\n\n{section.text}", code_theme="ansi_dark"))


def _list(entry: Entry) -> str:
    return "\n".join(f"- {head}: {cell}" if head else f"- {cell}" for head, cell in entry.cells if "](#" not in cell)


def _plain(line: str) -> str:
    """Without the marks of Markdown, which a list of names does not render."""
    return line.replace("`", "").replace("**", "")


def _print(console: Console, what: object) -> None:
    with console.capture() as capture:
        console.print(what)
    sys.stdout.write("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")
