"""Reading curvature along gradients and updates: where the gradient lies, the critical learning rate, and the trace.

The share of the gradient among the sharpest directions says where steps oscillate, not where progress is made (arXiv
2405.16002).
"""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate
from probes.run import Run
from reports import palette
from reports.chapter import Chapter, method_of, reason_missing, step_table, unmeasured
from reports.charts import Line, lines, stacked
from reports.document import Figure
from reports.finding import Finding
from reports.spectrum.records import share
from reports.stability.critical_rate import CITATION, critical_figure, critical_rate
from reports.stability.smoothness import smoothness
from reports.stability.trace_bound import trace_bound
from reports.stability.verdict import measured_without_batch_statistics

SUBSPACE_CITATION = "Gur-Ari et al., arXiv 1812.04754; Song et al., arXiv 2405.16002"

TAKES_PART = 0.5
UNRESOLVED = 0.2
"""A share with a larger error than this is not known."""
ANOTHER_FUNCTION = "evaluation mode is another function than the one that trains with batch normalisation"


def read(run: Run) -> Chapter:
    """Findings and figures about curvature along gradients and updates."""
    other = measured_without_batch_statistics(run) and bool(run.last("gradient_curvature", "critical_lr"))
    findings = [] if other else [*critical_rate(run), *_subspace(run)]
    if not findings:
        reason = ANOTHER_FUNCTION if other else reason_missing(run, "gradient_curvature")
        if reason is not None:
            id = "gradient_curvature/critical_rate"
            findings = [unmeasured(id, "The curvature along steps", reason, (), CITATION)]
    grows = Chapter() if other else smoothness(run)
    figures = (*critical_figure(run), *_alignment_figure(run), *trace_bound(run), *grows.figures)
    return Chapter((*findings, *grows.findings), figures)


def _subspace(run: Run) -> list[Finding]:
    last = run.last("gradient_curvature", "subspace_share")
    if last is None or last.value is None or run.last("spectrum", "gradient_share") is not None:
        # The spectrum's own reading says the same, with the directions followed over time.
        return []
    high, unresolved = last.value >= TAKES_PART, (last.error or 0.0) > UNRESOLVED
    part = share(last.value, last.error or 0.0)
    return [
        Finding(
            id="gradient_curvature/subspace",
            level="ok",
            claim=f"How much of the gradient lies in the few sharpest directions is not resolved: {part}."
            if unresolved
            else f"{part} of the squared gradient lies in the few sharpest directions at step {last.step}.",
            value=Estimate(last.value, last.error or 0.0, "residual", method_of(last)),
            threshold="",
            meaning="The sharpest curvatures are nearly equal, as at the edge of stability: which directions are the "
            "sharpest is then no question with an answer."
            if unresolved
            else "A large share does not say that progress is made there: steps mostly go to and fro along sharp "
            "directions, and what lowers the loss over many steps happens in the bulk."
            if high
            else "Most of the gradient lies in the bulk of directions, where the loss is lowered over many steps.",
            advice=(),
            evidence=("gradient-alignment",) if len(run.series("gradient_curvature", "subspace_share")) > 1 else (),
            method=method_of(last),
            citation=SUBSPACE_CITATION,
        )
    ]


def _alignment_figure(run: Run) -> list[Figure]:
    named = {"share": "subspace_share", "cos(g, Hg)": "alignment"}
    series = {label: run.series("gradient_curvature", name) for label, name in named.items()}
    shown = {label: one for label, one in series.items() if len(one) > 1}
    if not shown:
        return []
    curves = [Line(label, one, color=palette.SERIES[place]) for place, (label, one) in enumerate(shown.items())]
    return [
        Figure(
            id="gradient-alignment",
            title="The gradient among the sharpest directions",
            caption="Share of the squared gradient in the sharpest directions, and the cosine of the gradient and its "
            "own product with the Hessian: 1 when the gradient is an eigenvector. Both rise at the edge of stability.",
            alt=" ".join(f"{label}: from {one.values[0]:.2g} to {one.values[-1]:.2g}." for label, one in shown.items()),
            draw=partial(_draw_alignment, curves),
            table=step_table(tuple(shown), tuple(shown.values())),
            size=(7.2, 2.0 + 1.2 * len(shown)),
        )
    ]


def _draw_alignment(curves: list[Line], canvas: Canvas) -> None:
    panels = stacked(canvas, (1,) * len(curves))
    for axes, curve in zip(panels, curves, strict=True):
        lines(axes, [curve], curve.label)
