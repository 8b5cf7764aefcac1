"""Reading the alignment of examples' gradients: whether steps on some undo steps on others, and how large a batch must
be for its step to be one in the right direction.
"""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate, format_value
from probes.run import Run
from reports import palette
from reports.chapter import method_of, reason_missing, step_table, unmeasured
from reports.charts import Line, lines, stacked
from reports.document import Figure
from reports.finding import Finding

ID = "gradient_alignment/cosines"
PROBE = "gradient_alignment"
CITATION = "Sankararaman et al., arXiv 1904.06963; Fort et al., arXiv 1901.09491; Bollapragada et al., arXiv 1710.11258"


def alignment(run: Run) -> list[Finding]:
    """How examples' gradients stand to one another; nothing is alleged."""
    last = run.last(PROBE, "mean_cosine")
    if last is None or last.value is None:
        reason = reason_missing(run, PROBE)
        return [] if reason is None else [unmeasured(ID, "The alignment of gradients", reason, (), CITATION)]
    claim = (
        f"Gradients of two examples have a cosine of {format_value(last.value, last.error)} on average at "
        f"step {last.step}"
    )
    opposed = run.last(PROBE, "opposed")
    if opposed is not None and opposed.value is not None and opposed.step == last.step:
        claim += f"; {opposed.value:.0%} of pairs oppose each other"
    wanted = [run.last(PROBE, f"batch_{name}") for name in ("inner_product", "orthogonality")]
    sizes = [one.value for one in wanted if one is not None and one.value is not None and one.step == last.step]
    if len(sizes) == 2:
        enough = round(max(sizes))
        claim += f"; {f'batches of {enough}' if enough > 1 else 'single'} examples pass the inner-product and "
        claim += "orthogonality tests"
    return [
        Finding(
            id=ID,
            level="ok",
            claim=f"{claim}.",
            value=Estimate(last.value, last.error or 0.0, "standard error", method_of(last)),
            threshold="",
            meaning="Near 1, a step on one example helps all others; near 0, they learn side by side; below 0 they "
            "undo each other's steps. It falls as what is left to learn are the peculiarities of examples."
            + (" Batches that pass both tests go down the loss in most steps." if len(sizes) == 2 else ""),
            advice=(),
            evidence=("gradient-alignment",) if len(run.series(PROBE, "mean_cosine")) > 1 else (),
            method=method_of(last),
            citation=CITATION,
        )
    ]


def figure(run: Run) -> list[Figure]:
    """Mean cosine and share of opposed pairs over steps."""
    cosine, opposed = run.series(PROBE, "mean_cosine"), run.series(PROBE, "opposed")
    if len(cosine) < 2:
        return []
    curves = [
        Line("mean cosine", cosine, band=True),
        Line("pairs that oppose", opposed, color=palette.SERIES[1]),
    ]
    return [
        Figure(
            id="gradient-alignment",
            title="Alignment of examples' gradients",
            caption="Mean cosine over all pairs of examples, with one standard error, and the share of pairs whose "
            "cosine is negative.",
            alt=f"Mean cosine over steps {cosine.steps[0]} to {cosine.steps[-1]}, from {cosine.values[0]:.3g} to "
            f"{cosine.values[-1]:.3g}.",
            draw=partial(_draw, curves),
            table=step_table(tuple(curve.label for curve in curves), [curve.series for curve in curves]),
        )
    ]


def _draw(curves: list[Line], canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    lines(axes, curves, "cosine, share")
