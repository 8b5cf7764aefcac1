"""Reading λmax against batch size: how much of the curvature that a mini-batch shows is its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from diagnostics.estimate import Estimate, format_value
from probes.run import Record, Run
from reports import palette
from reports.chapter import Chapter, method_of, reason_missing, unmeasured
from reports.document import Figure, Table
from reports.finding import Finding

ID = "batch_ladder/law"
CITATION = "Granziol et al., arXiv 2006.09092"

FITS = 0.8
"""Below this R² the law is not that of the sizes measured."""


@dataclass(frozen=True)
class _Check:
    """One ladder: sizes ascending, E λmax(H_B) of each with its error, and the law where there is one."""

    step: int
    sizes: numpy.ndarray
    values: numpy.ndarray
    errors: numpy.ndarray
    examples: float | None
    whole: Record | None
    slope: Record | None
    r_squared: float

    def law(self, sizes: numpy.ndarray) -> numpy.ndarray:
        """λ_N + c (1/B − 1/N); NaN where none was fitted."""
        level, slope = (math.nan if one is None or one.value is None else one.value for one in (self.whole, self.slope))
        law: numpy.ndarray = level + slope * (1 / sizes - 1 / (self.examples or math.nan))
        return law


def read(run: Run) -> Chapter:
    """Finding and figure about λmax against batch size."""
    checks = _checks(run)
    if not checks:
        reason = reason_missing(run, "batch_ladder")
        what = "Sharpness against batch size"
        return Chapter() if reason is None else Chapter((unmeasured(ID, what, reason, (), CITATION),))
    return Chapter((_finding(run, checks[-1]),), (_figure(checks),))


def _checks(run: Run) -> list[_Check]:
    """Every ladder of at least two sizes with positive curvature."""
    rungs: dict[int, dict[int, tuple[float, float]]] = {}
    for layer in run.layers("batch_ladder", "sharpness"):
        series = run.series("batch_ladder", "sharpness", layer)
        for step, value, error in zip(series.steps, series.values, series.errors, strict=True):
            if layer.isdecimal() and int(layer) > 0 and math.isfinite(value) and value > 0:
                shown = error if math.isfinite(error) else 0.0
                rungs.setdefault(int(step), {})[int(layer)] = (float(value), float(shown))
    checks = []
    for step, of_step in sorted(rungs.items()):
        if len(of_step) > 1:
            sizes = sorted(of_step)
            examples = _at(run, "examples", step)
            fit = _at(run, "r_squared", step)
            checks.append(
                _Check(
                    step=step,
                    sizes=numpy.array(sizes, dtype=numpy.float64),
                    values=numpy.array([of_step[size][0] for size in sizes]),
                    errors=numpy.array([of_step[size][1] for size in sizes]),
                    examples=None if examples is None else examples.value,
                    whole=_at(run, "whole", step),
                    slope=_at(run, "slope", step),
                    r_squared=math.nan if fit is None or fit.value is None else fit.value,
                )
            )
    return checks


def _at(run: Run, name: str, step: int) -> Record | None:
    """A finite number of one check."""
    found = [one for one in run.of("batch_ladder", name) if one.step == step]
    return next((one for one in reversed(found) if one.value is not None and math.isfinite(one.value)), None)


def _finding(run: Run, check: _Check) -> Finding:
    small, large = int(check.sizes[0]), int(check.sizes[-1])
    ratio = float(check.values[0] / check.values[-1])
    error = ratio * math.hypot(check.errors[0] / check.values[0], check.errors[-1] / check.values[-1])
    against = f"all {large:,} examples" if check.examples == large else f"batches of {large:,}"
    method = method_of(run.last("batch_ladder", "sharpness", str(small)))
    return Finding(
        id=ID,
        level="ok",
        claim=f"λmax of mini-batches of {small:,} is {format_value(ratio, error)} times that of {against}, at step "
        f"{check.step}: compare sharpness at one batch size only.",
        value=Estimate(ratio, error, "standard error", method),
        threshold="",
        meaning="A mean over few examples has larger extreme eigenvalues than one over many. "
        + _law(check)
        + "Where SGD settles is not decided by this but by the curvature along gradients: batch sharpness.",
        advice=(),
        evidence=("batch-ladder",),
        method=method,
        citation=CITATION,
    )


def _law(check: _Check) -> str:
    """What the fit says: at which size a batch's own curvature is as large as that of the whole."""
    slope, whole = check.slope, check.whole
    if slope is None or whole is None or not slope.value or not whole.value or math.isnan(check.r_squared):
        return ""
    fit = f"R² {check.r_squared:.2f}"
    if check.r_squared < FITS or whole.value <= 0 or slope.value <= 1.96 * (slope.error or 0.0):
        return (
            f"The law λ + c/B describes these sizes poorly ({fit}), as where the noise of small batches has the "
            "largest eigenvalue by itself. "
        )
    return (
        f"The excess falls about as 1/B ({fit}) and equals λmax of the whole near B = {slope.value / whole.value:.2g}: "
        "far below that size curvature, and the rate that a batch's own λmax allows, go with B; far above it a larger "
        "batch changes little. "
    )


def _figure(checks: list[_Check]) -> Figure:
    shown = [checks[0], checks[-1]] if len(checks) > 1 else checks
    sizes = sorted({int(size) for check in shown for size in check.sizes})
    columns: list[str] = ["batch size"]
    rows: list[list[float | int | None]] = [[size] for size in sizes]
    for check in shown:
        columns += [f"λmax at step {check.step}", "its error"]
        known = dict(zip(check.sizes.tolist(), zip(check.values, check.errors, strict=True), strict=True))
        for row, size in zip(rows, sizes, strict=True):
            row += [float(one) for one in known[size]] if size in known else [None, None]
    last = shown[-1]
    return Figure(
        id="batch-ladder",
        title="Largest eigenvalue against batch size",
        caption="Mean of λmax over mini-batches of each size, with its error, on log axes. Dashed: λ + c (1/B − 1/N) "
        "through the latest check. Where the curve is flat, a batch is as good as the whole.",
        alt=f"λmax at step {last.step} falls from {last.values[0]:.3g} at batch size {int(last.sizes[0])} to "
        f"{last.values[-1]:.3g} at {int(last.sizes[-1])}.",
        draw=partial(_draw, shown),
        table=Table(tuple(columns), tuple(tuple(row) for row in rows)),
    )


def _draw(shown: list[_Check], canvas: Canvas) -> None:
    axes = canvas.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    # The latest check in the first colour, as everywhere.
    for check, color in zip(reversed(shown), palette.SERIES, strict=False):
        # A log axis has no place for an error as large as its value.
        below = numpy.minimum(check.errors, 0.95 * check.values)
        axes.errorbar(
            check.sizes,
            check.values,
            yerr=(below, check.errors),
            marker="o",
            markersize=4,
            capsize=2,
            color=color,
            label=f"step {check.step}",
        )
    last = shown[-1]
    grid = numpy.geomspace(last.sizes[0], last.sizes[-1], 60)
    law = last.law(grid)
    if (law > 0).all():
        axes.plot(grid, law, color=palette.MUTED, linewidth=1.0, linestyle=(0, (4, 2)), label="λ + c (1/B − 1/N)")
    sizes = sorted({int(size) for check in shown for size in check.sizes})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    # Curvature seldom spans a decade here: powers of ten alone would leave the axis without a label.
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("batch size B")
    axes.set_ylabel("E λmax")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
