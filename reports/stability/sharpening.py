"""Reading progressive sharpening: whether the descent itself raises curvature, and how far off the edge is.

α = −∇L·∇S is what the downhill flow adds to the sharpness S per unit of learning rate × steps. Away from the edge its
sign says where curvature is going. At the edge the swing across the valley takes away what the descent adds, so that α
changes sign, and where the two largest eigenvalues meet it does not exist.
"""

from __future__ import annotations

import math
from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate
from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import Chapter, method_of, reason_missing, step_table, unmeasured
from reports.charts import Line, lines, stacked
from reports.document import Figure
from reports.finding import Finding
from reports.stability.deciding import draws_batches
from reports.stability.gradient_curvature import ANOTHER_FUNCTION
from reports.stability.verdict import measured_without_batch_statistics
from reports.words import counted

ID = "sharpening/rate"
CITATION = "Damian, Nichani & Lee, arXiv 2209.15594"

RECENT = 5
WILD = 20.0
"""From this ratio of the largest to the usual magnitude a linear axis shows nothing but the peak."""


LOG_RANGE = 100.0
"""So many times the linear part around zero: further decades on both sides would crowd its labels."""


def read(run: Run) -> Chapter:
    """Finding and figure about the pace of sharpening."""
    rate = _finite(run.series("sharpening", "rate"))
    reason = None if len(rate) else reason_missing(run, "sharpening")
    if len(rate) and measured_without_batch_statistics(run):
        reason, rate = ANOTHER_FUNCTION, Series(rate.steps[:0], rate.values[:0], rate.errors[:0])
    if reason is not None:
        return Chapter((unmeasured(ID, "The pace of sharpening", reason, (), CITATION),))
    return Chapter((_pace(run, rate),), tuple(_figure(rate))) if len(rate) else Chapter()


def _finite(one: Series) -> Series:
    kept = numpy.isfinite(one.values)
    return Series(one.steps[kept], one.values[kept], one.errors[kept])


def _pace(run: Run, rate: Series) -> Finding:
    recent, doubt = rate.values[-RECENT:], numpy.nan_to_num(rate.errors[-RECENT:], posinf=math.inf)
    rising, falling = bool((recent > doubt).all()), bool((recent < -doubt).all())
    last = run.last("sharpening", "rate")
    if len(recent) > 1:
        value = Estimate(float(numpy.median(recent)), float(recent.std(ddof=1)), "spread", method_of(last))
        when = f"over the last {counted(len(recent), 'check')}, to step {rate.steps[-1]}"
    else:
        value = Estimate(float(recent[0]), float(doubt[0]), "residual", method_of(last))
        when = f"at step {rate.steps[-1]}"
    what = (
        "Curvature is rising by itself"
        if rising
        else "Curvature is falling by itself"
        if falling
        else "Curvature neither rises nor falls steadily by itself"
    )
    claim = f"{what}: α is {value} per unit of learning rate × steps {when}"
    return Finding(
        id=ID,
        level="ok",
        claim=claim + (_until_the_edge(run, rate) if rising else "") + ".",
        value=value,
        threshold="",
        meaning=" ".join((_meaning(run, rising, value), *_limits(run))),
        advice=(),
        evidence=("sharpening-rate",) if len(rate) > 1 else (),
        method=method_of(last),
        citation=CITATION,
    )


def _until_the_edge(run: Run, rate: Series) -> str:
    """How many steps are left, as the middle of the latest checks has it: under noise single ones are far apart."""
    left = run.series("sharpening", "steps_to_edge")
    latest = numpy.isin(left.steps, rate.steps[-RECENT:]) & numpy.isfinite(left.values)
    if not latest.any():
        return _until_doubled(run, rate)
    which = "the edge for whole batches" if draws_batches(run) else "the edge of stability"
    steps = float(f"{float(numpy.median(left.values[latest])):.2g}")
    return f"; at that pace {which} is some {steps:,.0f} steps away"


def _until_doubled(run: Run, rate: Series) -> str:
    """A pace says little without what it is added to."""
    now = run.last("sharpening", "sharpness")
    if now is None or now.value is None or now.value <= 0:
        return ""
    left = now.value / float(numpy.median(rate.values[-RECENT:]))
    return f", at which it doubles within {left:.2g} of these"


def _meaning(run: Run, rising: bool, value: Estimate) -> str:
    if not rising:
        return (
            "Curvature falls by itself early in training and, with cross-entropy, late in it. At the edge of stability "
            "the swing across the valley takes away what the descent adds, and α changes sign."
        )
    text = (
        "Progressive sharpening: the descent itself makes the loss sharper, as is usual and no fault, until steps "
        "reach the edge and their swing pushes curvature back."
    )
    back = run.last("sharpening", "resistance")
    if back is not None and back.value is not None and back.value > 0:
        text += f" A swing of {math.sqrt(2 * value.value / back.value):.2g}, √(2α/β), would hold it there."
    return text


def _limits(run: Run) -> list[str]:
    """Where α was not to be had, and where it is not the optimizer's own."""
    said = []
    checks = {record.step for record in run.of("sharpening", "rate")}
    taken = set(run.series("sharpening", "rate").steps.tolist())
    if checks - taken:
        missed = len(checks - taken)
        reason = (reason_missing(run, "sharpening") or "").removeprefix("undetermined: ")
        said.append(f"Undetermined at {missed} of {counted(len(checks), 'check')}: {reason}.")
    optimizer = (run.header.get("optimizer") or {}).get("class")
    if optimizer not in (None, "SGD"):
        said.append(f"This is the pace along the plain gradient; {optimizer} descends along another path.")
    return said


def _figure(rate: Series) -> list[Figure]:
    if len(rate) < 2:
        return []
    return [
        Figure(
            id="sharpening-rate",
            title="What the descent adds to the sharpness",
            caption="α = −∇L·∇S: above zero the downhill flow raises the largest eigenvalue S, below it lowers it. "
            "Missing points are those at which the two largest eigenvalues could not be told apart.",
            alt=f"Sharpening rate over steps {rate.steps[0]} to {rate.steps[-1]}, from {rate.values[0]:.3g} to "
            f"{rate.values[-1]:.3g}; positive at {int((rate.values > 0).sum())} of {len(rate)} checks.",
            draw=partial(_draw, rate),
            table=step_table(("α", "its error"), (rate, Series(rate.steps, rate.errors, rate.errors))),
        )
    ]


def _draw(rate: Series, canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    lines(axes, [Line("α", rate)], "sharpening rate α")
    axes.axhline(0.0, color=palette.MUTED, linewidth=0.8)
    sizes = numpy.abs(rate.values)
    usual = float(numpy.median(sizes))
    if usual > 0 and sizes.max() > WILD * usual:
        # The sign matters, so no log axis.
        axes.set_yscale("symlog", linthresh=max(usual, float(sizes.max()) / LOG_RANGE))
