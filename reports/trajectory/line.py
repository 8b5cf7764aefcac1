"""The loss along the straight line from the first checkpoint to the last, before and after matching units."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate, exact
from probes.run import Record, Run
from reports import palette
from reports.chapter import method_of, unmeasured
from reports.document import Figure, Table, curve_id
from reports.finding import Finding

ID = "trajectory/barrier"
CITATION = "Frankle et al., arXiv 1912.05671; Ainsworth et al., arXiv 2209.04836"
SMALL = 0.02
"""Of the larger loss at the ends: less than that is no barrier. A choice; arXiv 1912.05671 takes 2 % of error."""

Curves = dict[str, numpy.ndarray]


def barrier(run: Run) -> list[Finding]:
    """How far the loss rises between the first checkpoint and the last. Told, never warned of."""
    asked = run.of("trajectory", "barrier")
    if not asked:
        return []
    found = run.last("trajectory", "barrier")
    if found is None or found.value is None:
        reason = str(asked[-1].note).rstrip(".")
        return [unmeasured(ID, "The loss between the first and the last checkpoint", reason, (), CITATION)]
    ends = _ends(run, found)
    there = found.value > SMALL * max(abs(end) for end in ends)
    value: Estimate = exact(found.value, method_of(found))
    claim = (
        f"Between the first checkpoint and the last stands a loss barrier of {found.value:.4g}."
        if there
        else "No loss barrier between the first checkpoint and the last: "
        + (f"at most {found.value:.2g}" if found.value else "nowhere")
        + " above the line between their losses."
    )
    return [
        Finding(
            id=ID,
            level="ok",
            claim=claim + _matched(run),
            value=value,
            threshold=f"a barrier is above {SMALL:.0%} of the larger loss at the ends",
            meaning="The two lie in different valleys: their average is worse than either. Early checkpoints often do."
            if there
            else "The straight way is open: weights between the two can be averaged.",
            advice=(),
            evidence=("trajectory-line",),
            method=method_of(found),
            citation=CITATION,
        )
    ]


def _matched(run: Run) -> str:
    matched, units = run.last("trajectory", "matched_barrier"), run.last("trajectory", "matched_units")
    if matched is not None and matched.value is not None and units is not None and units.value is not None:
        return f" With {units.value:.0f} units put in the order of the first, it is {matched.value:.4g}."
    if units is not None and units.value == 0:
        return " Every hidden unit of the last is nearest to its own place in the first."
    why = [record.note for record in run.of("trajectory", "matched_barrier") if record.status == "skipped"]
    return f" Not matched: {str(why[-1]).removeprefix('units not matched: ').rstrip('.')}." if why else ""


def _ends(run: Run, record: Record) -> tuple[float, float]:
    array = run.array(record)
    return (float("nan"), float("nan")) if array is None else (float(array[1, 0]), float(array[1, -1]))


def line_figure(run: Run) -> list[Figure]:
    """L along the line, with what lies between its ends if it were straight."""
    curves: Curves = {}
    for label, name in (("as they are", "barrier"), ("units matched", "matched_barrier")):
        record = run.last("trajectory", name)
        array = None if record is None else run.array(record)
        if array is not None:
            curves[label] = array
    if not curves:
        return []
    first = next(iter(curves.values()))
    rows = tuple(
        (float(alpha), *(float(curve[1, place]) for curve in curves.values())) for place, alpha in enumerate(first[0])
    )
    return [
        Figure(
            id="trajectory-line",
            title="Loss between the first checkpoint and the last",
            caption="On the straight line from the first (0) to the last (1). Dashed: what would be no barrier.",
            alt=f"Loss over the line: from {first[1, 0]:.4g} to {first[1, -1]:.4g}, at most {first[1].max():.4g}.",
            draw=partial(_draw, curves),
            table=Table(("place on the line", *curves), rows),
            size=(7.2, 3.0),
        )
    ]


def _draw(curves: Curves, canvas: Canvas) -> None:
    axes = canvas.subplots()
    for (label, curve), color in zip(curves.items(), palette.SERIES, strict=False):
        axes.plot(curve[0], curve[1], marker="o", markersize=3, color=color, label=label, gid=curve_id(label))
    first = next(iter(curves.values()))
    axes.plot([0.0, 1.0], first[1, [0, -1]], color=palette.MUTED, linewidth=1.0, linestyle=(0, (5, 2)))
    axes.set_xlabel("place on the line: 0 the first checkpoint, 1 the last")
    axes.set_ylabel("loss")
    if len(curves) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
