"""One thing that was tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Check:
    """What was tried, how it went, and who needs it.

    Args:
        group: under which head it stands.
        name: what was tried.
        outcome: ``"ok"``; ``"missing"`` where it is not there, and need not be; ``"broken"`` where it should work.
        found: what was seen, in a few words.
        needed_for: what does not work without it.
    """

    group: str
    name: str
    outcome: Outcome
    found: str
    needed_for: str


class AbsentError(Exception):
    """What was tried is not there, as on many machines; the message says so without its class."""


def tried(group: str, name: str, needed_for: str, attempt: Callable[[], str], *, needed: bool = True) -> Check:
    """The outcome of an attempt, which says what it saw, or raises."""
    try:
        return Check(group, name, "ok", attempt(), needed_for)
    # Whatever a library raises on a machine that it does not suit is what is to be told.
    except Exception as problem:  # noqa: BLE001
        kind = "" if isinstance(problem, AbsentError) else f"{type(problem).__name__}: "
        reason = " ".join(f"{kind}{problem}".split()).partition(". ")[0]
        return Check(group, name, "broken" if needed else "missing", reason[:120], needed_for)
