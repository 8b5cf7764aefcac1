"""The loss of each checkpoint, on the same batches, and whether an earlier one is better than the last."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import exact
from probes.run import Run
from probes.run.reader import Series
from reports.chapter import method_of, reason_missing, step_table, unmeasured
from reports.charts import Line, lines, stacked
from reports.document import Figure
from reports.finding import Finding

ID = "trajectory/loss"
WORSE = 0.05
"""Of the range that the loss went through; less than that is not worth going back for."""


def earlier_is_better(run: Run) -> list[Finding]:
    """Whether the last checkpoint has the lowest loss."""
    loss = run.series("trajectory", "loss")
    if not run.of("trajectory", "loss"):
        return []
    if len(loss) < 2 or not numpy.isfinite(loss.values).all():
        if numpy.isfinite(loss.values).all():
            missing = [record for record in run.of("trajectory", "loss") if record.status != "ok"]
            reason = str(missing[-1].note).rstrip(".") if missing else str(reason_missing(run, "trajectory"))
        else:
            reason = "it is not finite in every checkpoint"
        return [unmeasured(ID, "The loss along the path", reason, (), "")]
    best = int(numpy.argmin(loss.values))
    last, lowest, highest = (float(value) for value in (loss.values[-1], loss.values[best], loss.values.max()))
    worse = last - lowest > WORSE * (highest - lowest)
    method = method_of(run.last("trajectory", "loss"))
    claim = (
        f"The checkpoint at {loss.steps[best]} has a lower loss than the last: {lowest:.4g} against {last:.4g}."
        if worse
        else f"The last checkpoint has {'the lowest loss of all' if last == lowest else 'about the lowest loss'}: "
        f"{last:.4g}, from {float(loss.values[0]):.4g} in the first."
    )
    return [
        Finding(
            id=ID,
            level="warn" if worse else "ok",
            claim=claim,
            value=exact(last, method),
            threshold=f"{WORSE:.0%} of the range above the lowest",
            meaning="On these batches training has gone past its best."
            if worse
            else "On these batches training made progress up to the end.",
            advice=(
                "Take the earlier checkpoint, if these batches are what counts.",
                "Lower the learning rate towards the end; read the verdict on stability.",
            )
            if worse
            else (),
            evidence=("trajectory-loss",),
            method=method,
            citation="",
        )
    ]


def loss_figure(run: Run) -> list[Figure]:
    """The loss by checkpoint."""
    loss = run.series("trajectory", "loss")
    if len(loss) < 2:
        return []
    return [
        Figure(
            id="trajectory-loss",
            title="Loss along the path",
            caption="The loss of each checkpoint, on the same batches.",
            alt=f"Curve: loss of {len(loss)} checkpoints, from {loss.values[0]:.4g} to {loss.values[-1]:.4g}.",
            draw=partial(_draw, loss, str(run.header.get("axis", "optimizer step"))),
            table=step_table(("loss",), (loss,)),
            size=(7.2, 2.6),
        )
    ]


def _draw(loss: Series, axis: str, canvas: Canvas) -> None:
    lines(stacked(canvas, [1], axis)[0], [Line("loss", loss)], "loss")
