"""Reading the run itself: the loss, the loop's own numbers, how the run ended, and what measuring could not do."""

from __future__ import annotations

import math
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
from reports.facts import has_no_end
from reports.finding import Finding, Level
from reports.words import counted

HARDLY = 0.02
ENOUGH_STEPS = 50
MOST_PANELS = 4
COMPLETED = "completed"
WANTED = 10
"""Measurements that say how something went, where a probe had to wait."""
BEARABLE = 60.0
"""Seconds that anyone gives a run for them, however short it is."""
CHEAPER = {
    "sharpness": "Sharpness(tol=0.05)",
    "batch_sharpness": "BatchSharpness(..., max_draws=50)",
    "gradient_curvature": "GradientCurvature(critical=False)",
    "spectrum": "Spectrum(steps=16, layers=False)",
}
"""Settings at which a probe costs a good deal less."""


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
    if has_no_end(run):
        return [
            _about_measuring(
                "training/no_end",
                "ok",
                f"No end was recorded after step {run.steps}: the process was killed, or is still running.",
                "What is said here holds up to that step. A last state was not measured.",
                ("If it was killed, go on from a checkpoint with Monitor(..., resume=STEP).",),
            )
        ]
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
    few = [probe for probe in held if _measurements(run, probe) <= 3]
    if not few:
        return []
    shown = ", ".join(probe.replace("_", " ") for probe in few)
    claim = f"Too few measurements of {shown}: they waited for the budget from step {min(r.step for r in waits)} on."
    advice = []
    costs = {probe: seconds for probe, seconds in _seconds(run).items() if _measurements(run, probe)}
    training = run.last("monitor", "training_seconds")
    if costs and training is not None and training.value:
        dearest = max(costs, key=lambda probe: costs[probe])
        times = _measurements(run, dearest)
        claim += (
            f" The costliest was {dearest.replace('_', ' ')}, with {costs[dearest]:.3g} s in "
            f"{counted(times, 'measurement')} beside {training.value:.3g} s of training."
        )
        advice = [_cheaper(dearest, times), *_raised(run, costs, few, training.value)]
    return [
        _about_measuring(
            "training/budget",
            "unmeasured",
            claim,
            "Measuring was held to a share of training time. What happened between the first state and the last was "
            "hardly seen.",
            (*advice, "Measure on fewer examples: Objective(..., limit=1)."),
        )
    ]


def _measurements(run: Run, probe: str) -> int:
    return len({record.step for record in run.of(probe) if record.status == "ok"})


def _seconds(run: Run) -> dict[str, float]:
    """What each probe took; nothing where the run was killed before it could say."""
    records = {probe: run.last("monitor", "seconds", probe) for probe in run.layers("monitor", "seconds")}
    return {probe: one.value for probe, one in records.items() if one is not None and one.value is not None}


def _cheaper(probe: str, times: int) -> str:
    """What makes the costliest probe cost less: fewer checks, where it was not down to the first and the last."""
    name, settings = probe.replace("_", " "), CHEAPER.get(probe)
    cheaper = f"cheaper settings: {settings}" if settings else "fewer parameters or examples to measure on"
    if times > 2:
        return f"Give {name} a rarer schedule of its own (every=...), or {cheaper}."
    return f"Leave {name} out of runs as short as this, for its first and last state alone took that; or {cheaper}."


def _raised(run: Run, costs: dict[str, float], few: list[str], training: float) -> list[str]:
    """The budget under which the probes that waited could have measured, where there is one that anyone would give."""
    more = {probe: WANTED * costs[probe] / _measurements(run, probe) for probe in few if probe in costs}
    if not more:
        return []
    # One measures while all together keep to the budget, or while it alone keeps to an equal part.
    together = sum(_seconds(run).values()) + sum(more.values())
    alone = len(run.header.get("probes") or costs) * max(costs[probe] + extra for probe, extra in more.items())
    needed = math.ceil(20 * min(together, alone) / training) / 20
    if needed <= 1:
        given = (run.header.get("settings") or {}).get("budget")
        enough = given is not None and needed <= given
        return [] if enough else [f"Monitor(..., budget={needed:g}) has room for {WANTED} more of each."]
    if sum(more.values()) <= BEARABLE:
        return [f"Monitor(..., budget=None): {WANTED} more of each take about {sum(more.values()):.2g} s."]
    return []


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
    names = list(dict.fromkeys(record.name for record in run.of("loop")))
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
