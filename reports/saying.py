"""Messages on stderr, within 80 columns."""

from __future__ import annotations

import re
import sys
import textwrap


def say(message: str, label: str = "diagnose: ") -> None:
    """A message; what was given, what was expected and what to try stand on lines of their own."""
    first, *details = re.split("; (?=(?:given|expected|try): )", message)
    lines = _wrapped(first, label, " " * len(label))
    for detail in details:
        lines += _wrapped(detail, "  ", "    ")
    sys.stderr.write("\n".join(lines) + "\n")


def _wrapped(text: str, first: str, following: str) -> list[str]:
    width = 80 - max(len(first), len(following))
    lines = textwrap.wrap(_shown(text), width, break_long_words=False, break_on_hyphens=False) or [""]
    return [first + lines[0], *(following + line for line in lines[1:])]


def _shown(text: str) -> str:
    """File names may hold what would steer a terminal."""
    return "".join(mark if mark.isprintable() or mark.isspace() else "\ufffd" for mark in text)
