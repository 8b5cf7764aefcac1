"""Reading churn: how many predictions one update changes. Nothing is alleged: what is usual differs between tasks."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate, exact
from probes.run import Run
from reports import palette
from reports.chapter import Chapter, method_of, reason_missing, step_table, unmeasured
from reports.charts import Line, lines, stacked
from reports.document import Figure
from reports.finding import Finding

ID = "churn/changed"
CITATION = "Schaul et al., arXiv 2206.00730; Tang & Berseth, arXiv 2409.04792"


def read(run: Run) -> Chapter:
    """Finding and figure about churn."""
    changed, moved = run.last("churn", "changed"), run.last("churn", "relative_change")
    if changed is None and moved is None:
        reason = reason_missing(run, "churn")
        return Chapter() if reason is None else Chapter((unmeasured(ID, "Churn", reason, (), CITATION),))
    parts, record = [], changed if changed is not None else moved
    assert record is not None
    if changed is not None:
        others = method_of(changed).partition(";")[0]
        parts.append(f"changed {changed.value:.2%} of predictions ({others})")
    if moved is not None:
        parts.append(f"moved outputs by {moved.value:.2g} of their spread over examples")
    value: Estimate = exact(record.value or 0.0, method_of(record))
    finding = Finding(
        id=ID,
        level="ok",
        claim=f"The update at step {record.step} {' and '.join(parts)}.",
        value=value,
        threshold="",
        meaning="On examples that were not in the batch this is a side effect. It is large early and with high "
        "learning rates; where it does not fall although the loss has settled, updates undo each other.",
        advice=(),
        evidence=("churn",) if len(run.series("churn", "relative_change")) > 1 else (),
        method=method_of(record),
        citation=CITATION,
    )
    return Chapter((finding,), tuple(_figure(run)))


def _figure(run: Run) -> list[Figure]:
    changed, moved = run.series("churn", "changed"), run.series("churn", "relative_change")
    if len(moved) < 2:
        return []
    curves = [Line("outputs, of their spread", moved, color=palette.SERIES[1])]
    if len(changed) > 1:
        curves.insert(0, Line("predictions changed", changed))
    return [
        Figure(
            id="churn",
            title="What one update changes",
            caption="Share of predictions that the last update changed, and how far it moved outputs beside how they "
            "differ between examples.",
            alt=f"Churn over steps {moved.steps[0]} to {moved.steps[-1]}.",
            draw=partial(_draw, curves),
            table=step_table(tuple(curve.label for curve in curves), [curve.series for curve in curves]),
        )
    ]


def _draw(curves: list[Line], canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    lines(axes, curves, "share")
