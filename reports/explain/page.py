"""docs/measures.md as data: its sections, and the names that its tables define.

The page is the one source of what names mean. It lies in the package, so an installed ``diagnose`` can read it, and
nothing of it is said twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

_HEADING = re.compile(r"^(##+) (.+)$")
_FENCE = "```"
_COMMENT = re.compile(r"<!---.*?-->", re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\(#([\w-]+)\)")
_CELL = re.compile(r"(?<!\\)\|")
_KINDS = ("probe", "finding", "number")


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, up to the next one."""

    title: str
    text: str

    @property
    def anchor(self) -> str:
        """As pages of Markdown make it: lower case, hyphens for spaces, no punctuation."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


@dataclass(frozen=True)
class Entry:
    """A name that a table defines: a row of it.

    Args:
        name: as in the first cell, without its backticks.
        kind: the head of the first column: ``"probe"``, ``"finding"``, ``"number"``, or another one.
        cells: the other cells by the head of their column.
        section: the title of where the table stands.
    """

    name: str
    kind: str
    cells: tuple[tuple[str, str], ...]
    section: str

    @property
    def line(self) -> str:
        """What it is, in one line."""
        return self.cells[0][1] if self.cells else ""

    @property
    def link(self) -> str | None:
        """The anchor of the section that explains it, where the row names one."""
        found = [match[1] for _, text in self.cells for match in _LINK.finditer(text)]
        return found[0] if found else None


@cache
def sections() -> tuple[Section, ...]:
    """In the order of the page."""
    text = resources.files("reports").joinpath("measures.md").read_text(encoding="utf-8")
    found: list[tuple[str, list[str]]] = []
    fenced = False
    for line in _COMMENT.sub("", text).splitlines():
        fenced ^= line.startswith(_FENCE)
        heading = None if fenced else _HEADING.match(line)
        if heading:
            found.append((heading[2], []))
        elif found:
            found[-1][1].append(line)
    return tuple(Section(title, "\n".join(lines).strip().replace("&nbsp;", " ")) for title, lines in found)


@cache
def entries() -> tuple[Entry, ...]:
    """Every name in backticks that begins a row of a table; a row may name several."""
    return tuple(entry for section in sections() for entry in _of(section))


def _of(section: Section) -> list[Entry]:
    found: list[Entry] = []
    heads: list[str] | None = None
    for line in section.text.splitlines():
        if not line.startswith("|"):
            heads = None
        elif heads is None:
            heads = _cells(line)
        else:
            first, *rest = _cells(line)
            cells = tuple((head, cell) for head, cell in zip(heads[1:], rest, strict=False) if cell)
            found += [Entry(name, heads[0], cells, section.title) for name in _CODE.findall(first)]
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in _CELL.split(line.strip().strip("|"))]
