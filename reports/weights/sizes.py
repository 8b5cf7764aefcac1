"""The size of every tensor: a figure, and the table behind it."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure as Canvas

from probes.run import Run
from reports.charts import dots
from reports.document import Figure, Table
from reports.weights.latest import latest

MOST_BARS = 40
_COLUMNS = ("elements", "norm", "rms", "max_abs", "zeros", "non_finite")


def size_figure(run: Run) -> list[Figure]:
    """Root mean square by tensor; the table has the rest."""
    values = {column: latest(run, column) for column in _COLUMNS}
    sized = {name: rms for name, rms in values["rms"].items() if rms > 0}
    if not sized:
        # Nothing but zeros or NaN has no place on a log axis, and findings say so.
        return []
    shown = dict(sorted(sized.items(), key=lambda item: -item[1])[:MOST_BARS]) if len(sized) > MOST_BARS else sized
    left_out = f" The {MOST_BARS} largest of {len(sized)}." if len(sized) > MOST_BARS else ""
    return [
        Figure(
            id="weights-rms",
            title="Size of the tensors",
            caption=f"Root mean square of each tensor's finite entries, log scale.{left_out}",
            alt=f"Dots: root mean square of {len(shown)} tensors.",
            draw=partial(_draw, list(shown), list(shown.values())),
            table=Table(
                ("tensor", *_COLUMNS),
                tuple((name, *(values[column].get(name) for column in _COLUMNS)) for name in values["elements"]),
            ),
            size=(7.2, min(9.0, 1.1 + 0.22 * max(1, len(shown)))),
        )
    ]


def _draw(names: list[str], values: list[float], canvas: Canvas) -> None:
    dots(canvas, names, values, "root mean square")
