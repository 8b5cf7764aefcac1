"""Reading the critical learning rate: the smallest at which the next step would raise the loss.

Below it a step helps. Where momentum or noise of former steps carries it uphill, the loss rises at any rate: that is
said, and is no fault. A rate that stays above the critical one is.
"""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate, exact, format_value
from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import method_of, step_table
from reports.charts import Line, lines, stacked
from reports.document import Figure
from reports.finding import Finding
from reports.learning_rate.rates import last_at_rate, rates_in_force
from reports.words import counted

CITATION = "Kalra et al., arXiv 2601.16979"

RECENT = 5
FEW = 3
ABOVE = 1.15
"""Over several checks; one alone may be a swing about the critical rate."""
FAR_ABOVE = 2.0
"""For fewer checks, where a swing cannot be told from a state."""
FALLS = 0.98
"""A loss that has come below this share of what it was over the same checks is falling."""
UPHILL = "does not fall along"
"""How the measurement says that there is no critical rate, because the loss rises from the start."""


def critical_rate(run: Run) -> list[Finding]:
    """The learning rate over the critical one, at the last checks."""
    critical, lr = _with_rates(run)
    uphill = _uphill(run)
    checks = {*critical.steps.tolist(), *uphill}
    if not checks:
        return []
    end = last_at_rate(run, checks)
    recent = sorted(step for step in checks if step <= end)[-RECENT:]
    rising = sum(step in uphill for step in recent)
    kept = numpy.isin(critical.steps, recent) & numpy.isfinite(critical.values)
    over = lr.values[kept] / critical.values[kept]
    over = over[numpy.isfinite(over)]
    last = run.last("gradient_curvature", "critical_lr")
    beyond = astray = False
    value: Estimate | None = None
    if not kept.any() or last is None or last.value is None:
        claim = f"The next step would raise the loss at any rate, at {rising} of the last "
        claim += counted(len(recent), "check")
    else:
        step = int(critical.steps[kept][-1])
        rate = format_value(float(critical.values[kept][-1]), float(critical.errors[kept][-1]))
        if not len(over):
            claim, value = (
                f"The critical learning rate is {rate} at step {step}",
                exact(float(critical.values[kept][-1]), ""),
            )
        else:
            of_late = float(numpy.median(over))
            # Where most checks lead uphill the others are a selection that says nothing of a usual step.
            beyond = of_late > ABOVE if len(over) >= FEW else of_late > FAR_ABOVE and not rising
            astray = beyond and _falling(run, recent)
            beyond = beyond and not astray
            claim = "A step raises the loss: the" if beyond else "The"
            claim += f" learning rate is {of_late:.2g} times the critical one"
            if len(over) < 2:
                claim += f" at step {step} ({rate})"
            else:
                claim += f", the median of {'the last ' if not rising else ''}{len(over)} checks ({over[-1]:.2g} times "
                claim += f"at step {step}, where the critical one is {rate})"
            value = exact(of_late, method_of(last))
        claim += f"; at {rising} of the last {len(recent)} checks the loss rose at any rate" if rising else ""
    return [
        Finding(
            id="gradient_curvature/critical_rate",
            level="warn" if beyond else "ok",
            claim=claim + ".",
            value=value,
            threshold=f"above {ABOVE:g} times it over the last checks is reported ({FAR_ABOVE:g} for fewer than {FEW})",
            meaning=_meaning(beyond, rising, astray),
            advice=(
                "Lower the learning rate by that factor: it is the most that such an update carries.",
                "Start with a warm-up, or lengthen it, if it happened early; lower momentum if updates point away "
                "from the gradient.",
            )
            if beyond
            else (),
            evidence=("critical-rate",) if _drawable(critical) else (),
            method=method_of(last),
            citation=CITATION,
        )
    ]


def _meaning(beyond: bool, rising: int, astray: bool) -> str:
    text = (
        "The critical rate is the smallest at which the next step, with the gradient of the whole objective, would "
        "raise the loss. "
    )
    if beyond:
        return text + "Beyond it progress has to come from steps that cancel, which costs time at best."
    if astray:
        return text + "Single steps are beyond it here, and the loss falls over many of them: no fault."
    if rising:
        return (
            text + "There is none where the step leads uphill: momentum or the noise of former steps carries it "
            "there, and what is gained is gained over many of them."
        )
    return (
        text
        + "Below it such a step helps. The noise of small batches, and sharp directions off this one, are not in it."
    )


def _falling(run: Run, steps: list[int]) -> bool:
    """Whether the loss falls all the same: under mini-batches single steps lead astray, and many of them do not."""
    loss = run.series("sharpness", "loss")
    over = loss.values[(loss.steps >= steps[0]) & (loss.steps <= steps[-1])]
    return bool(len(over) > 1 and over[-1] < FALLS * over[0])


def _uphill(run: Run) -> set[int]:
    """Checks at which the loss rose along the step from the start."""
    return {
        record.step
        for record in run.of("gradient_curvature", "critical_lr")
        if record.status == "skipped" and UPHILL in str(record.note)
    }


def _drawable(critical: Series) -> bool:
    return len(critical) > 1 and bool(numpy.isfinite(critical.values).any())


def _with_rates(run: Run) -> tuple[Series, Series]:
    """Critical learning rates, and the rates that were in force at the same steps."""
    critical, lr = run.series("gradient_curvature", "critical_lr"), rates_in_force(run)
    known = dict(zip(lr.steps.tolist(), lr.values.tolist(), strict=True))
    rates = numpy.array([known.get(step, float("nan")) for step in critical.steps.tolist()], dtype=numpy.float64)
    positive = numpy.where(critical.values > 0, critical.values, float("nan"))
    nothing = numpy.full(len(rates), float("nan"))
    return Series(critical.steps, positive, critical.errors), Series(critical.steps, rates, nothing)


def critical_figure(run: Run) -> list[Figure]:
    """Both rates over steps."""
    critical, lr = _with_rates(run)
    if not _drawable(critical):
        return []
    curves = [Line("critical", critical)]
    model = _of_quadratic_model(run, lr)
    if len(model) > 1:
        curves.append(Line("quadratic model", model, color=palette.SERIES[2]))
    if numpy.isfinite(lr.values).any():
        curves.append(Line("in force", lr, color=palette.EDGE))
    told = " The quadratic model knows gradient and curvature at the point alone." if len(model) > 1 else ""
    columns = ("critical learning rate", "learning rate", *(("of the quadratic model",) if len(model) > 1 else ()))
    uphill = len(_uphill(run))
    gaps = f" At {counted(uphill, 'check')} there was none: the loss rose along it at any rate." if uphill else ""
    return [
        Figure(
            id="critical-rate",
            title="Critical learning rate and the rate in force",
            caption="Where the rate in force is above the critical one, the next step would raise the loss."
            + told
            + gaps,
            alt=f"Critical learning rate over steps {critical.steps[0]} to {critical.steps[-1]}, from "
            f"{critical.values[0]:.3g} to {critical.values[-1]:.3g}, log scale.",
            draw=partial(_draw_rates, curves),
            table=step_table(columns, [critical, lr, model][: len(columns)]),
        )
    ]


def _of_quadratic_model(run: Run, lr: Series) -> Series:
    """The rate over the step ratio: where the quadratic model stops falling along the same step."""
    ratio = run.series("gradient_curvature", "step_ratio")
    known = dict(zip(lr.steps.tolist(), lr.values.tolist(), strict=True))
    rates = numpy.array([known.get(step, float("nan")) for step in ratio.steps.tolist()], dtype=numpy.float64)
    kept = numpy.isfinite(rates) & (ratio.values > 0)
    values = rates[kept] / ratio.values[kept]
    return Series(ratio.steps[kept], values, numpy.full(len(values), float("nan")))


def _draw_rates(curves: list[Line], canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    lines(axes, curves, "learning rate", log=True)
