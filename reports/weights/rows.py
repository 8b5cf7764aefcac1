"""Reading rows that do nothing of their own: zero ones, and those that repeat another."""

from __future__ import annotations

from diagnostics.estimate import exact
from probes.run import Run
from reports.charts import short
from reports.finding import Finding
from reports.weights.latest import latest
from reports.words import counted

NOTABLE = 0.05
LEAST = 2
"""One row is a padding token, or chance."""


def zero_rows(run: Run) -> list[Finding]:
    """A warning where a notable share of a matrix's rows is zero, but not all of it."""
    found = _notable(run, "zero_rows")
    if not found:
        return []
    share, claim = _claim(run, found, "zero_rows")
    return [
        Finding(
            id="weights/zero_rows",
            level="warn",
            claim=f"{claim} zero throughout.",
            value=exact(share, "every row looked at"),
            threshold=f"{LEAST} rows and {NOTABLE:.0%} of a matrix, all-zero matrices aside",
            meaning="A unit behind a zero row puts out its bias whatever it sees: it was pruned, never trained, or "
            "driven to zero by weight decay while no gradient came.",
            advice=(
                "If the model was pruned, remove these units: they cost time and hold nothing.",
                "Otherwise look for dead units (a task makes them visible), and for embeddings of tokens that never "
                "occur.",
            ),
            evidence=("weights-spectra",),
            method="every row looked at",
            citation="",
        )
    ]


def repeated_rows(run: Run) -> list[Finding]:
    """A warning where a notable share of a matrix's rows repeats another row.

    A table in which all rows are one, and which is not called a weight, is a design: state-space models start so.
    """
    shapes = (run.header.get("model") or {}).get("shapes", {})
    counts = latest(run, "repeated_rows")
    found = {
        matrix: share
        for matrix, share in _notable(run, "repeated_rows").items()
        if "weight" in matrix.rpartition(".")[2] or counts[matrix] < shapes[matrix][0] - 1
    }
    if not found:
        return []
    share, claim = _claim(run, found, "repeated_rows")
    return [
        Finding(
            id="weights/repeated_rows",
            level="warn",
            claim=f"{claim} another row over again, up to scale and sign.",
            value=exact(share, "every pair of rows, |cos| ≥ 0.9999"),
            threshold=f"{LEAST} rows and {NOTABLE:.0%} of a matrix",
            meaning="Units with the same incoming weights compute the same thing. With the same outgoing weights too "
            "they get the same gradient, and stay the same for ever: so it is after a constant initialisation, or "
            "after weights were copied to make a network wider.",
            advice=(
                "Initialise at random: units have to differ for training to tell them apart.",
                "After copying weights, add a little noise to the copies.",
            ),
            evidence=("weights-spectra",),
            method="every pair of rows, |cos| ≥ 0.9999",
            citation="",
        )
    ]


def _notable(run: Run, name: str) -> dict[str, float]:
    """Shares by matrix, those that are notable."""
    shapes = (run.header.get("model") or {}).get("shapes", {})
    rows = {matrix: shapes[matrix][0] for matrix in latest(run, name) if shapes.get(matrix)}
    counts = {matrix: count for matrix, count in latest(run, name).items() if matrix in rows}
    return {
        matrix: count / rows[matrix]
        for matrix, count in counts.items()
        if LEAST <= count < rows[matrix] and count >= NOTABLE * rows[matrix]
    }


def _claim(run: Run, found: dict[str, float], name: str) -> tuple[float, str]:
    worst = max(found, key=lambda matrix: found[matrix])
    count = int(latest(run, name)[worst])
    more = f" ({counted(len(found), 'matrix')} in all)" if len(found) > 1 else ""
    verb = "are" if name == "zero_rows" else "are each"
    return found[worst], f"{count:,} rows ({found[worst]:.0%}) of {short(worst)}{more} {verb}"
