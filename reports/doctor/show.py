"""Printing what works, as a table or as JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from reports.doctor.check import Check, Outcome
from reports.doctor.checks import checks
from reports.progress import progress

_SHAPE: dict[Outcome, tuple[str, str]] = {"ok": ("✓", "green"), "missing": ("–", "dim"), "broken": ("✗", "bold red")}
_WIDEST = 100
_ABOUT = 28
"""Checks there are, for the bar."""


def show(*, as_json: bool) -> int:
    """Print what works; 0 unless something that is needed is broken, and 1 then."""
    found: list[Check] = []
    with progress(_ABOUT, "looking around") as bar:
        for check in checks():
            found.append(check)
            bar.to(len(found))
    broken = [check for check in found if check.outcome == "broken"]
    if as_json:
        content = {"ok": not broken, "checks": [asdict(check) for check in found]}
        sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    else:
        _table(found)
        names = ", ".join(check.name for check in broken)
        sys.stdout.write(f"\nBroken: {names}.\n" if broken else "\nEverything that is needed works.\n")
    return 1 if broken else 0


def _table(found: list[Check]) -> None:
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    console = Console(width=width, color_system="standard" if color else None, highlight=False, emoji=False)
    group = ""
    for check in found:
        if check.group != group:
            group = check.group
            console.print(Text(("\n" if check is not found[0] else "") + group, style="bold"))
        grid = Grid.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=9)
        grid.add_column(width=19)
        grid.add_column(overflow="fold")
        shape, style = _SHAPE[check.outcome]
        said = Text.assemble(check.found, (f"; for {check.needed_for}", "dim"))
        grid.add_row(Text(f"{shape} {check.outcome}", style=style), check.name, said)
        with console.capture() as capture:
            console.print(grid)
        sys.stdout.write("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")
