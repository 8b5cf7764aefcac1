"""Reading what is left to learn: along which modes of the kernel it stands, and how each has gone down."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import exact
from probes.run import Run
from probes.tangent_kernel import SMALL
from reports import palette
from reports.chapter import method_of, step_table
from reports.charts import Line, lines, stacked
from reports.document import Figure
from reports.finding import Finding

ID = "tangent_kernel/left"
PROBE = "tangent_kernel"
CITATION = "Pezeshki et al., arXiv 2011.09468; Ortiz-Jiménez et al., arXiv 2106.06770"


def left(run: Run) -> list[Finding]:
    """Which share of what is left to learn is in the small modes; nothing is alleged.

    Noise in the targets, and features that larger ones have starved of gradient, leave the same trace.
    """
    small, size = run.last(PROBE, "residual_small"), run.last(PROBE, "residual")
    if small is None or small.value is None or size is None or size.value is None or small.step != size.step:
        return []
    series = run.series(PROBE, "residual")
    claim = f"{small.value:.0%} of the residual stands in modes of the kernel below {SMALL:.0%} of the largest at step "
    claim += f"{small.step}"
    if len(series) > 1 and series.values[0] > 0:
        claim += f"; the residual is {size.value / series.values[0]:.2g} of what it was at step {int(series.steps[0])}"
    return [
        Finding(
            id=ID,
            level="ok",
            claim=f"{claim}.",
            value=exact(small.value, method_of(small)),
            threshold="",
            meaning="Along an eigenvector of the kernel a plain gradient step takes the residual down in proportion to "
            "the eigenvalue: in modes below a hundredth of the largest it is a hundred times slower. What is left "
            "there may be noise in the targets, or features that larger ones have starved of gradient. Adaptive "
            "optimizers see another kernel.",
            advice=(),
            evidence=("kernel-modes",) if len(series) > 1 else (),
            method=method_of(small),
            citation=CITATION,
        )
    ]


def figure(run: Run) -> list[Figure]:
    """The residual along groups of modes of the first kernel, over steps."""
    groups = run.layers(PROBE, "residual")
    series = [run.series(PROBE, "residual", group) for group in groups]
    if not series or len(series[0]) < 2:
        return []
    curves = [
        Line(group, one, color=palette.SERIES[place % len(palette.SERIES)])
        for place, (group, one) in enumerate(zip(groups, series, strict=True))
    ]
    ends = ", ".join(f"{group} {one.values[-1] / one.values[0]:.2g}" for group, one in zip(groups, series, strict=True))
    return [
        Figure(
            id="kernel-modes",
            title="What is left to learn, by modes of the first kernel",
            caption="Norm of the residual (f − y, or p − y for cross-entropy) along groups of eigenvectors of the "
            "kernel at the first check, largest eigenvalues first. In the lazy regime each goes down at its own pace, "
            "large modes first. A curve that stays up while others have gone is what is learned last, or never.",
            alt=f"Residual by group of modes; at the end, beside the start: {ends}.",
            draw=partial(_draw, curves),
            table=step_table(tuple(groups), series),
        )
    ]


def _draw(curves: list[Line], canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    lines(axes, curves, "norm of the residual", log=True)
