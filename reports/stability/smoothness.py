"""Reading (L0, L1)-smoothness: whether curvature grows with the gradient along a run, and clipping therefore helps."""

from __future__ import annotations

import math
from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics import DiagnosticsError, SmoothnessFit, smoothness_fit
from probes.run import Run
from reports import palette
from reports.chapter import Chapter
from reports.document import Figure, Table
from reports.finding import Finding
from reports.words import counted

ID = "gradient_curvature/smoothness"
CITATION = "Zhang et al., arXiv 1905.11881; Crawshaw et al., arXiv 2208.11195"

MOST = 0.5
"""A line that explains less of the scatter than this is not what curvature depends on."""
SMALL = 0.25
"""Growth over the whole range of gradients, as a share of the usual curvature, that counts as none."""
WIDE = 20.0
"""From this factor between smallest and largest a linear axis hides the small ones."""


def smoothness(run: Run) -> Chapter:
    """Finding and scatter, from the gradient norm and λmax of the same checks; nothing where no line can be drawn."""
    steps, norms, bends = _points(run)
    try:
        fit = smoothness_fit(norms.tolist(), bends.tolist())
    except DiagnosticsError:
        # Too few points: most runs are measured too seldom, and that is no gap to report.
        return Chapter()
    if not _tells(fit, norms, bends):
        return Chapter()
    return Chapter((_finding(fit),), (_figure(fit, steps, norms, bends),))


def _points(run: Run) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Steps, gradient norms and λmax where both were measured. λmax stands for ‖∇²L‖ where it is positive."""
    norm, largest = run.series("gradient_curvature", "gradient_norm"), run.series("sharpness", "sharpness")
    steps, of_norm, of_largest = numpy.intersect1d(norm.steps, largest.steps, return_indices=True)
    norms, bends = norm.values[of_norm], largest.values[of_largest]
    kept = numpy.isfinite(norms) & (norms >= 0) & numpy.isfinite(bends) & (bends > 0)
    return steps[kept], norms[kept], bends[kept]


def _tells(fit: SmoothnessFit, norms: numpy.ndarray, bends: numpy.ndarray) -> bool:
    """Whether the line says anything: growth that explains most of the scatter, or none within a small error."""
    if fit.grows is None or not math.isfinite(fit.r_squared) or not math.isfinite(fit.l1.error):
        return False
    if fit.grows:
        return fit.r_squared >= MOST
    return fit.l1.interval()[1] * float(norms.max() - norms.min()) < SMALL * float(numpy.median(bends))


def _finding(fit: SmoothnessFit) -> Finding:
    checks = counted(fit.points, "check")
    if fit.grows:
        base = "" if fit.l0.value == 0.0 else f"{fit.l0} plus "
        claim = f"Curvature grows with the gradient: λmax is about {base}{fit.l1} times ‖∇L‖"
        meaning = (
            "Where the gradient is large the loss is sharp as well, so the sharpest places limit a fixed rate. "
            "Clipping shortens the steps just there, and provably lets the rate be larger elsewhere. It looks alike "
            "where noise swings steps across a valley that becomes steeper: then curvature makes the gradient large."
        )
    else:
        by = fit.l1 if fit.l1.value else f"0 ± {fit.l1.error:.2g}"
        claim = f"Curvature does not grow with the gradient: λmax by {by} for each unit of ‖∇L‖"
        meaning = (
            "On this account nothing speaks for clipping: the largest gradients are not where the loss is sharpest. At "
            "the edge of stability curvature is held at the threshold, and this tells little."
        )
    return Finding(
        id=ID,
        level="ok",
        claim=f"{claim}, over {checks} (R² {fit.r_squared:.2f}).",
        value=fit.l1,
        threshold="",
        meaning=meaning,
        advice=(),
        evidence=("smoothness",),
        method=fit.l1.how,
        citation=CITATION,
    )


def _figure(fit: SmoothnessFit, steps: numpy.ndarray, norms: numpy.ndarray, bends: numpy.ndarray) -> Figure:
    rows = tuple((int(step), float(norm), float(bend)) for step, norm, bend in zip(steps, norms, bends, strict=True))
    return Figure(
        id="smoothness",
        title="Curvature against the gradient",
        caption="One point for each check, darker the later. The line is L0 + L1 ‖∇L‖ with both at least zero: flat "
        "where curvature does not grow with the gradient.",
        alt=f"λmax against the gradient norm at {fit.points} checks, with a line from {fit.l0.value:.3g} that rises by "
        f"{fit.l1.value:.3g} per unit.",
        draw=partial(_draw, fit, norms, bends),
        table=Table(("step", "gradient norm", "λmax"), rows),
    )


def _draw(fit: SmoothnessFit, norms: numpy.ndarray, bends: numpy.ndarray, canvas: Canvas) -> None:
    axes = canvas.subplots()
    for place, (norm, bend) in enumerate(zip(norms, bends, strict=True)):
        shade = 0.25 + 0.75 * (place + 1) / len(norms)
        axes.plot(norm, bend, marker="o", markersize=4, linestyle="none", color=palette.SERIES[0], alpha=shade)
    grid = numpy.linspace(float(norms.min()), float(norms.max()), 60)
    axes.plot(grid, fit.l0.value + fit.l1.value * grid, color=palette.SERIES[1], label="L0 + L1 ‖∇L‖")
    if norms.min() > 0 and norms.max() > WIDE * norms.min():
        axes.set_xscale("log")
    if bends.max() > WIDE * bends.min() and fit.l0.value > 0:
        axes.set_yscale("log")
    axes.set_xlabel("gradient norm ‖∇L‖")
    axes.set_ylabel("λmax")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
