"""Reading the gradient noise scale: whether batches are small or large for the noise in their gradients.

Far below the noise scale a gradient is mostly noise, and twice the batch saves half of the steps; far above it, it is
mostly signal, and more examples per step buy next to nothing (arXiv 1812.06162). The scale grows while the loss falls.
It is a proxy of the critical batch size, which was seen to differ from it (arXiv 2505.23971), so a batch alone is no
fault. It is one where the loss has stopped falling as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate, format_value
from probes.run import Record, Run
from reports import palette
from reports.chapter import method_of, reason_missing, step_table, unmeasured
from reports.charts import Edge, Line, lines, stacked
from reports.document import Figure
from reports.finding import Finding
from reports.noise.held_up import APART, HeldUp, held_up
from reports.stability.verdict import loss_of

CITATION = "McCandlish et al., arXiv 1812.06162; Merrill et al., arXiv 2505.23971"


@dataclass(frozen=True)
class _Source:
    """A probe that measures the noise scale: what its number is called, what would make it more certain, and how far it
    is behind.
    """

    probe: str
    what: str
    more: str
    lag: str = ""

    @property
    def id(self) -> str:
        return f"{self.probe}/batch"

    @property
    def advice(self) -> str:
        return f"{self.more}: noise is told from signal only where there are about as many as the noise scale."


OBJECTIVE = _Source("noise_scale", "The gradient noise scale", "More examples in the Objective")
STREAM = _Source(
    "noise_stream",
    "The gradient noise scale of the run's own steps",
    "More steps in a longer average",
    " An average over past steps, in which those with long gradients count most: it lags behind what is measured at "
    "one step, and after an early phase of long gradients it is theirs until they are forgotten.",
)


def batch(run: Run) -> list[Finding]:
    """Whether batches are small or large for the noise in their gradients."""
    return [finding for source in (OBJECTIVE, STREAM) for finding in _finding(run, source)]


def _finding(run: Run, source: _Source) -> list[Finding]:
    last = run.last(source.probe, "simple")
    if last is None or last.value is None:
        reason = _reason(run, source.probe)
        return [] if reason is None else [unmeasured(source.id, source.what, reason, (source.advice,), CITATION)]
    claim = f"{source.what} is {format_value(last.value, last.error)} examples at step {last.step}"
    weighted = run.last(source.probe, "hessian")
    if weighted is not None and weighted.value is not None and weighted.step == last.step:
        claim += f" ({format_value(weighted.value, weighted.error)} weighted by curvature)"
    first = run.series(source.probe, "simple")
    known = first.values[numpy.isfinite(first.values)]
    if len(known) > 1:
        claim += f", {'up' if last.value > known[0] else 'down'} from {known[0]:.3g}"
    gone = next((one for one in run.of(source.probe, "simple") if _lost(one, last.step)), None)
    if gone is not None:
        claim += f"; from step {gone.step} on it is not to be told"
    used = run.last(source.probe, "batch_size")
    size, reach = used.value if used else None, 1.96 * (last.error or 0.0)
    said, meaning = _against(size, last.value, reach, source.more)
    if gone is not None:
        # A scale that has grown out of sight is still far above.
        below = size is not None and 0 < APART * size < last.value - reach
        said, meaning = f"; batches of {size:g} were far below it before" if below else "", _SINCE
    held = held_up(first, size, loss_of(run))
    if held is not None and size is not None:
        return [_held(source, held, size, last, len(first) > 1)]
    return [
        Finding(
            id=source.id,
            level="ok",
            claim=f"{claim}{said}.",
            value=Estimate(last.value, last.error or 0.0, "standard error", method_of(last)),
            threshold="",
            meaning=f"{meaning}{source.lag} A proxy for the critical batch size, which was seen to differ from it.",
            advice=() if gone is None else (source.advice,),
            evidence=("noise-scale",) if len(first) > 1 else (),
            method=method_of(last),
            citation=CITATION,
        )
    ]


def _held(source: _Source, held: HeldUp, size: float, last: Record, drawn: bool) -> Finding:
    """Noise that keeps the loss where it is."""
    assert last.value is not None
    return Finding(
        id=source.id,
        level="fail" if held.lost else "warn",
        claim=f"Noise holds the loss up: {held}, and batches of {size:g} are far below the gradient noise scale, "
        f"{format_value(last.value, last.error)} examples at step {last.step}.",
        value=Estimate(last.value, last.error or 0.0, "standard error", method_of(last)),
        threshold=f"batches {APART:g} times smaller than the noise scale, errors allowed for, while the loss is high "
        "and no longer falls",
        meaning="Each gradient is mostly noise, and what one step gains the noise of the next takes back. At a "
        "constant rate the loss stays at a height in proportion to the learning rate over the batch. Where the loss "
        f"cannot fall further, for labels that are noise, it looks the same.{source.lag}",
        advice=(
            "Raise the batch, or accumulate gradients, towards the noise scale.",
            "Or lower the learning rate, or let it decay: that averages noise out as well, over more steps.",
        ),
        evidence=("noise-scale",) if drawn else (),
        method=method_of(last),
        citation=f"{CITATION}; Zhang et al., arXiv 1907.04164",
    )


_SINCE = (
    "Since then |G|² is within its error of zero: the scale may have grown past what can be seen, and where batches "
    "stand now is open."
)


def _lost(record: Record, step: int) -> bool:
    """Whether a check after this step could not tell signal from noise."""
    return record.layer is None and record.status == "skipped" and record.step > step


def _reason(run: Run, probe: str) -> str | None:
    """Why there is no number: of B_simple itself, where the probe came so far."""
    silent = [record for record in run.of(probe, "simple") if record.note]
    return str(silent[-1].note).rstrip(".") if silent else reason_missing(run, probe)


def _against(batch: float | None, scale: float, reach: float, more: str) -> tuple[str, str]:
    """The claim's second half, and its meaning."""
    if batch is None or not batch > 0.0:
        return "", "Gradients of fewer examples than this are mostly noise, of more mostly signal."
    if APART * batch < scale - reach:
        return f"; batches of {batch:g} are far below it", (
            "Each gradient is mostly noise. That costs no examples: batches up to this size save steps in the same "
            "proportion, if the learning rate is raised along."
        )
    if batch > APART * (scale + reach):
        return f"; batches of {batch:g} are far above it", (
            "Each gradient is mostly signal: smaller batches would take about as many steps, with fewer examples. "
            "Early in training that is usual, for the noise scale grows as the loss falls."
        )
    if not 1 / APART < scale / batch < APART:
        return f"; whether batches of {batch:g} are far from it is not certain", (
            f"The error reaches to where they are of its order. {more} would tell."
        )
    return f"; batches of {batch:g} are of its order", "Steps and examples are both used well at such a size."


def figure(run: Run) -> list[Figure]:
    """The noise scale over steps, and the batch in use."""
    named = (
        Line("B_simple", run.series(OBJECTIVE.probe, "simple"), band=True),
        Line("B_noise", run.series(OBJECTIVE.probe, "hessian"), color=palette.SERIES[1]),
        Line("B_simple of the steps", run.series(STREAM.probe, "simple"), band=True, color=palette.SERIES[2]),
    )
    curves = [curve for curve in named if len(curve.series) > 1]
    if not curves:
        return []
    simple = curves[0].series
    used = run.last(OBJECTIVE.probe, "batch_size") or run.last(STREAM.probe, "batch_size")
    return [
        Figure(
            id="noise-scale",
            title="Gradient noise scale",
            caption="In examples, log scale. B_simple is tr Σ/|G|², with one standard error; B_noise weighs both "
            "by curvature." + (" Dashed: the batch in use." if used else ""),
            alt=f"Gradient noise scale over steps {simple.steps[0]} to {simple.steps[-1]}, from {simple.values[0]:.3g} "
            f"to {simple.values[-1]:.3g} examples.",
            draw=partial(_draw, curves, None if used is None else used.value),
            table=step_table(tuple(curve.label for curve in curves), [curve.series for curve in curves]),
        )
    ]


def _draw(curves: list[Line], batch: float | None, canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    positive = all(bool((one.series.values[numpy.isfinite(one.series.values)] > 0).all()) for one in curves)
    lines(axes, curves, "examples", log=positive, edge=None if batch is None else Edge(batch, "batch"))
