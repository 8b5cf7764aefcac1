"""Docstrings of the public names, read from the source: importing them would take the seconds that torch takes."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("diagnostics", "probes")


@cache
def public_names() -> dict[str, str]:
    """Each name that ``diagnostics`` or ``probes`` gives its users, and the module that it comes from."""
    return {name: module for package in _PACKAGES for name, module in _exports(package).items()}


def docstring(name: str) -> str | None:
    """Of a public name; None where there is none."""
    module = public_names().get(name)
    while module is not None:
        tree = _parsed(module)
        for node in tree.body if tree else ():
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                text = ast.get_docstring(node)
                return None if text is None else inspect.cleandoc(text)
        # A package hands on what a module of its own defines.
        module = _exports(module).get(name) if tree else None
    return None


def rewrapped(text: str, width: int) -> str:
    """A docstring in Google style for a narrower terminal; code stays as it is."""
    lines: list[str] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        before = lines[-1] if lines else ""
        # A paragraph goes on at its own indentation, and the description of an argument further in.
        goes_on = (indent == 0 and before[:1] not in (" ", "")) or (indent > 4 and before.startswith(" "))
        if line.strip() and goes_on and not _is_code(before) and not _is_code(line) and not before.endswith(":"):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(part for line in lines for part in _folded(line, width))


def _folded(line: str, width: int) -> list[str]:
    if len(line) <= width or _is_code(line):
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(line, width, subsequent_indent=indent + (" " * 4 if indent else ""), break_long_words=False)


def _is_code(line: str) -> bool:
    return line.lstrip().startswith((">>>", "...", "- ", "|"))


def _exports(module: str) -> dict[str, str]:
    tree = _parsed(module)
    found = {}
    for node in tree.body if tree else ():
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update({alias.asname: node.module for alias in node.names if alias.asname == alias.name})
    return found


@cache
def _parsed(module: str) -> ast.Module | None:
    place = _ROOT.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return None
