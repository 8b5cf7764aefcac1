"""What a name can mean: a probe, a finding, a number of a run, a section of the page, a function or class."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from reports.explain.docstrings import docstring, public_names
from reports.explain.page import Entry, Section, entries, sections

KINDS = ("probe", "finding", "number")
"""Heads of the tables whose names are listed; names of other tables are understood too."""


@dataclass(frozen=True)
class Meaning:
    """All that is known of one name."""

    name: str
    entries: tuple[Entry, ...] = ()
    docstring: str | None = None
    sections: tuple[Section, ...] = field(default=())

    def __bool__(self) -> bool:
        return bool(self.entries or self.docstring or self.sections)


def names() -> dict[str, dict[str, str]]:
    """Every name with one line, under heads: probes, findings, numbers, functions and classes."""
    found = {
        f"{kind.capitalize()}s": {entry.name: entry.line for entry in entries() if entry.kind == kind} for kind in KINDS
    }
    texts = {name: docstring(name) for name in sorted(public_names())}
    summaries = {name: " ".join(text.partition("\n\n")[0].split()) for name, text in texts.items() if text}
    return {**found, "Functions and classes": summaries}


def every_name() -> list[str]:
    """All of them, without their lines."""
    return list(dict.fromkeys(name for lines in names().values() for name in lines))


def meaning(name: str) -> Meaning:
    """What a name means; false when nothing is known of it."""
    asked = name.strip().removeprefix("diag/")
    text = docstring(asked)
    asked = asked if text else asked.lower().replace(" ", "_").replace("-", "_")
    found = [
        entry for entry in entries() if entry.name == asked and ("/" in asked or entry.kind in ("probe", "number"))
    ]
    found = found or [entry for entry in entries() if _last(entry.name) == asked]
    found = found or [entry for entry in entries() if entry.name.partition("(")[0] == asked]
    titled = [section for section in sections() if section.anchor.replace("-", "_") == asked]
    about = titled or _explaining(found) or (_mentioning(name.strip()) if text else [])
    return Meaning(name.strip(), tuple(found), text, tuple(about))


def nearest(name: str) -> list[str]:
    """Names that look like one that is not known."""
    everything = every_name()
    known = {**{_last(full): full for full in everything}, **{full: full for full in everything}}
    close = difflib.get_close_matches(name.lower(), [one.lower() for one in known], n=5, cutoff=0.6)
    lower: dict[str, str] = {}
    for one, full in {**{full: full for full in everything}, **known}.items():
        lower.setdefault(one.lower(), full)
    return list(dict.fromkeys(lower[one] for one in close))


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _mentioning(name: str) -> list[Section]:
    """The first section that shows a function or class at work."""
    return [section for section in sections() if f"{name}(" in section.text][:1]


def _explaining(found: list[Entry]) -> list[Section]:
    """The sections behind entries: the one a row names, the one of its probe, or where its table stands."""
    by_anchor = {section.anchor: section for section in sections()}
    probes = {entry.name: entry.link for entry in entries() if entry.kind == "probe"}
    titles = {section.title: section for section in sections()}
    chosen = []
    for entry in found:
        table = titles[entry.section]
        of_probe = by_anchor.get(probes.get(entry.name.partition("/")[0]) or entry.link or "")
        chosen.append(of_probe if entry.kind in KINDS and of_probe is not None else table)
    # What has its own long table of names explains nothing beyond its rows; a name of many probes has many sections.
    unique = [section for section in dict.fromkeys(chosen) if section.title not in ("Findings", "Numbers", "Probes")]
    return unique if len(unique) == 1 else []
