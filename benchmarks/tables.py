"""Tables of ratios, one column for each network, each with its aim below."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.curvature_clock import Taken

Rows = dict[str, dict[str, str]]


def number(result: Taken, unit: float) -> str:
    """The median in units, or that there is none."""
    return "fails" if result.failure else ratio(result.median / unit)


def ratio(value: float) -> str:
    """With two places."""
    return f"{value:.2f}"


def judge(rows: Rows, column: str, value: float, aim: float, what: str = "aim") -> None:
    """Put down whether an aim was met."""
    verdict = f"<= {aim} met" if value <= aim else f"> {aim} MISSED"
    rows.setdefault(f"  {what}", {})[column] = f"{ratio(value)} {verdict}"


def show(title: str, rows: Mapping[str, Mapping[str, str]]) -> None:
    """Print a table, aims last."""
    columns = list(next(iter(rows.values())))
    print(title)
    print(f"{'':<34}" + "".join(f"{column:>20}" for column in columns))
    for name in sorted(rows, key=lambda name: name.startswith("  ")):
        print(f"{name:<34}" + "".join(f"{rows[name].get(column, ''):>20}" for column in columns))
