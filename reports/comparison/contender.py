"""The runs of a comparison: each with a short name and a colour of its own, the same in every table and figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diagnostics import DiagnosticsError
from probes.run import Run
from reports import palette
from reports.charts import short

FEWEST, MOST = 2, 12


@dataclass(frozen=True)
class Contender:
    """One of the runs.

    Attributes:
        name: unique among them: the end of its path.
        run: what was measured.
        color: of its curves.
        dashed: whether its curves are, since another run has the same colour.
        same_as: the name of an earlier one that is this very run; None for a run of its own.
    """

    name: str
    run: Run
    color: str
    dashed: bool
    same_as: str | None = None


def contenders(runs: Sequence[str | Path | Run]) -> tuple[Contender, ...]:
    """The runs, opened and named, in the order given.

    Raises:
        DiagnosticsError: fewer than 2 or more than 12, or no run at one of the places.

    Example:
        >>> [one.name for one in contenders([Run({}, []), Run({}, [])])]
        ['run 1', 'run 2']
    """
    if not FEWEST <= len(runs) <= MOST:
        raise DiagnosticsError(
            "a comparison is of a few runs", given=f"{len(runs)}", expected=f"{FEWEST} to {MOST} run folders or Runs"
        )
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs]
    found: list[Contender] = []
    for place, (name, run) in enumerate(zip(names([run.path for run in opened]), opened, strict=True)):
        twin = next((one.name for one in found if one.same_as is None and _same(one.run, run)), None)
        turn, color = divmod(place, len(palette.SERIES))
        found.append(Contender(name, run, palette.SERIES[color], turn > 0, twin))
    return tuple(found)


def names(paths: Sequence[Path | None]) -> list[str]:
    """As much of the end of each path as tells it from the others; a number where that does not help.

    Example:
        >>> names([Path("runs/a/sgd"), Path("runs/b/sgd"), Path("runs/a/adam"), None])
        ['a/sgd', 'b/sgd', 'adam', 'run 4']
        >>> names([Path("runs/a"), Path("runs/a")])
        ['a', 'a (2)']
    """
    given = [None if path is None else path.absolute().parts for path in paths]
    chosen = []
    for place, parts in enumerate(given, start=1):
        if parts is None:
            chosen.append(f"run {place}")
            continue
        others = [other for other in given if other is not None and other != parts]
        kept = next((n for n in range(1, len(parts)) if all(other[-n:] != parts[-n:] for other in others)), len(parts))
        chosen.append(short("/".join(parts[-kept:])))
    used: Counter[str] = Counter()
    for place, name in enumerate(chosen):
        used[name] += 1
        if used[name] > 1:
            chosen[place] = f"{name} ({used[name]})"
    return chosen


def _same(one: Run, other: Run) -> bool:
    if one is other or (one.path is not None and other.path is not None and one.path.resolve() == other.path.resolve()):
        return True
    # A copy of the folder is the same run, unless one of them went on.
    known = one.header.get("id")
    return known is not None and known == other.header.get("id") and one.records == other.records
