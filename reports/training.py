"""Reading the run itself: the loss, the loop's own numbers, how the run ended, and what measuring could not do."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import exact
from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import Chapter, method_of, step_table
from reports.charts import Line, lines, stacked
from reports.document import Figure
from reports.finding import Finding, Level
from reports.words import counted

HARDLY = 0.02
ENOUGH_STEPS = 50
MOST_PANELS = 4
COMPLETED = "completed"


def read(run: Run) -> Chapter:
    """Findings and figures about the run as a whole."""
    return Chapter((*_loss(run), *_end(run), *_waited(run), *_failures(run)), tuple(_logged(run)))


def _loss(run: Run) -> list[Finding]:
    loss = run.series("sharpness", "loss")
    if len(loss) < 2 or not numpy.isfinite(loss.values[-1]):
        # A loss that is no number is the business of the verdict on stability.
        return []
    first, last = float(loss.values[0]), float(loss.values[-1])
    steps = int(loss.steps[-1] - loss.steps[0])
    claim = f"Loss on the monitored batches went from {first:.4g} to {last:.4g} in {counted(steps, 'step')}."
    level: Level = "ok"
    meaning = "Training makes progress on what it is measured on."
    advice: tuple[str, ...] = ()
    if last > first:
        level = "warn"
        meaning = "The run ends with a higher loss than it began with."
        advice = ("Read the verdict on stability first; then the data and the schedule.",)
    elif first - last < HARDLY * abs(first):
        claim = f"Loss has hardly moved: {claim[0].lower()}{claim[1:]}"
        meaning = "Nothing has been learnt on the monitored batches. For a classifier, a loss of ln(classes) is chance."
        if steps >= ENOUGH_STEPS:
            level = "warn"
            advice = (
                "See that gradients arrive: units that are dead, saturated or at zero, layers that do not move.",
                "Compare the size of updates with 10⁻³: far below it, raise the learning rate.",
                "Try to overfit one small batch; if that fails, look at the labels and the loss.",
            )
    return [
        Finding(
            id="training/loss",
            level=level,
            claim=claim,
            value=exact(last, method_of(run.last("sharpness", "loss"))),
            threshold="below where it began",
            meaning=meaning,
            advice=advice,
            evidence=("sharpness-ratio",) if len(run.series("sharpness", "ratio")) > 1 else (),
            method=method_of(run.last("sharpness", "loss")),
            citation="",
        )
    ]


def _end(run: Run) -> list[Finding]:
    ended = run.last("monitor", "ended")
    if ended is None or ended.note in (None, COMPLETED) or ended.step < run.steps:
        return []
    return [
        _about_measuring(
            "training/ended",
            "warn",
            f"The training loop was ended by {str(ended.note).rstrip('.')}, at step {ended.step}.",
            "What is said here holds up to that step. The last state was not measured.",
            ("Mend the cause, and go on from a checkpoint with Monitor(..., resume=STEP).",),
        )
    ]


def _waited(run: Run) -> list[Finding]:
    waits = [record for record in run.records if record.status == "skipped" and str(record.note).startswith("waits")]
    held = sorted({record.probe for record in waits})
    few = [probe for probe in held if len({r.step for r in run.records if r.probe == probe and r.status == "ok"}) <= 3]
    if not few:
        return []
    shown = ", ".join(probe.replace("_", " ") for probe in few)
    return [
        _about_measuring(
            "training/budget",
            "unmeasured",
            f"Too few measurements of {shown}: they waited for the budget from step {min(r.step for r in waits)} on.",
            "Measuring was held to a share of training time. What happened between the first state and the last was "
            "not "
            "seen.",
            (
                "Monitor(..., budget=0.2), or budget=None for a short run.",
                "Measure on fewer examples: Objective(..., limit=1).",
            ),
        )
    ]


def _failures(run: Run) -> list[Finding]:
    failed = [record for record in run.records if record.status == "failed"]
    if not failed:
        return []
    probes = ", ".join(sorted({record.probe.replace("_", " ") for record in failed}))
    reason = str(failed[-1].note).rstrip(".")
    return [
        _about_measuring(
            "training/probes",
            "unmeasured",
            f"{counted(len(failed), 'measurement')} failed ({probes}); the last: {reason}.",
            "Training was not disturbed. The numbers of these probes are missing at those steps.",
            ("The table at the end lists every failure with its reason.",),
        )
    ]


def _about_measuring(id: str, level: Level, claim: str, meaning: str, advice: tuple[str, ...]) -> Finding:
    return Finding(
        id=id,
        level=level,
        claim=claim,
        value=None,
        threshold="",
        meaning=meaning,
        advice=advice,
        evidence=(),
        method="",
        citation="",
    )


def _logged(run: Run) -> list[Figure]:
    """What the loop logged of itself."""
    names = list(dict.fromkeys(record.name for record in run.records if record.probe == "loop"))
    series = {name: one for name in names if len(one := run.series("loop", name)) > 1}
    if not series:
        return []
    shown = dict(list(series.items())[:MOST_PANELS])
    return [
        Figure(
            id="logged",
            title="Logged by the loop",
            caption=f"As passed to monitor.log: {', '.join(shown)}."
            + (f" {len(series) - len(shown)} more are in the run." if len(series) > len(shown) else ""),
            alt=f"{counted(len(shown), 'curve')} over steps: {', '.join(shown)}.",
            draw=partial(_draw, shown),
            table=step_table(tuple(series), list(series.values())),
            size=(7.2, 1.0 + 1.5 * len(shown)),
        )
    ]


def _draw(series: dict[str, Series], canvas: Canvas) -> None:
    for panel, (name, one) in zip(stacked(canvas, [1] * len(series)), series.items(), strict=True):
        lines(panel, [Line(name, one, color=palette.SERIES[1])], name)
