"""Checkpoints of several runs at equal loss: one of each, and what differs between these."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate, exact
from diagnostics.trajectory.path import STATISTICS
from probes.checkpoint.matched import EQUAL, Branch, apart
from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import method_of, step_table
from reports.charts import Line, lines, stacked
from reports.comparison.compose import methods, skipped
from reports.comparison.contender import Contender
from reports.comparison.differences import Difference, judged, table
from reports.comparison.matched_loss import SOONER
from reports.comparison.quantities import Compared, Quantity, compared, median_of
from reports.comparison.settings import settings
from reports.comparison.verdicts import CITATION, diagnose, listed, of_runs, strip
from reports.compose import compose
from reports.document import Document, Figure, Sheet
from reports.finding import LEVELS, Finding

ID = "comparison/matched_loss"
HOW = (
    "One checkpoint of each run: of those whose losses are within "
    f"{EQUAL:.0%}, the ones with the lowest; where none are, the nearest. ± is the error of the measurement alone. "
    "✓ better, ✗ worse, ≠ different with no better direction, ? unclear: within twice the error of the difference, to "
    "which goes the relative difference of the two losses. What other checkpoints, or another seed, would have given "
    "is not in these errors."
)


def compose_checkpoints(branches: Sequence[Branch], only: Collection[str] | None = None) -> Document:
    """The whole comparison.

    Args:
        branches: the runs, the first being the one that the others are held against.
        only: names of the chapters wanted, by probe name; None for all.
    """
    runs = [_contender(place, one) for place, one in enumerate(branches)]
    documents = [compose(one.run, one.name, only) for one in runs]
    quantities = [one for one in compared([one.run for one in runs], only) if one.quantity.theme != "Loss"]
    if only is None or "weights" in only:
        quantities += [Compared(one, tuple(one.read(run.run) for run in runs)) for one in _WEIGHTS]
    found = [one for place in range(1, len(runs)) for one in _against_first(runs, branches, quantities, place)]
    return Document(
        title=f"{listed([one.name for one in runs], len(runs))} at equal loss",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        level=min((one.level for one in documents), key=LEVELS.index),
        diagnosis=diagnose(runs, documents, [one for one in found if one.name != SOONER]),
        summary=f"held against {runs[0].name}",
        findings=(*of_runs(runs, documents), _finding(branches, found)),
        figures=(_figure(runs, branches),),
        facts=tuple((one.name, f"{_path(one)}, {one.order.how}") for one in branches),
        methods=methods(runs, documents, quantities),
        skipped=skipped(runs, documents),
        sheets=(
            strip(runs, documents),
            Sheet("matched", "Differences at equal loss", HOW, table(found, runs), "Nothing was measured in both."),
            Sheet("settings", "What was set differently", "", settings(runs), "Nothing that the checkpoints hold."),
        ),
    )


def _contender(place: int, branch: Branch) -> Contender:
    turn, color = divmod(place, len(palette.SERIES))
    return Contender(branch.name, branch.run, palette.SERIES[color], turn > 0)


def _against_first(
    runs: Sequence[Contender], branches: Sequence[Branch], quantities: Sequence[Compared], place: int
) -> list[Difference]:
    pair, both = (runs[0], runs[place]), (branches[0], branches[place])
    gap = apart(*(_loss(one) for one in both))
    where = f"at {_step(both[0])} and at {_step(both[1])}"
    losses = [exact(_loss(one), "one pass over the batches") for one in both]
    found = [Difference("loss", *pair, losses[0], losses[1], judged(losses[0], losses[1], None), where)]
    if all(one.order.axis == "optimizer step" for one in both) and gap < EQUAL:
        steps = [_came(one) for one in both]
        found.append(Difference(SOONER, *pair, steps[0], steps[1], judged(steps[0], steps[1], "lower"), where))
    for one in quantities:
        series = (one.series[0], one.series[place])
        if not all(len(each) and numpy.isfinite(each.values[-1]) for each in series):
            continue
        before, value = (_estimate(each) for each in series)
        # By as much as the losses are apart, anything may be for that alone.
        wide = replace(value, error=math.hypot(value.error, gap * value.value), kind="spread")
        verdict = judged(before, wide, one.quantity.better, log=one.quantity.log)
        # Where the losses differ, everything that moves with them does.
        unequal = gap >= EQUAL and verdict != "equal"
        said = f"losses {gap:.0%} apart" if unequal else where
        found.append(Difference(one.quantity.name, *pair, before, value, "unclear" if unequal else verdict, said))
    return found


def _estimate(series: Series) -> Estimate:
    value, error = float(series.values[-1]), float(series.errors[-1])
    how = "measured on one checkpoint"
    return Estimate(value, error, "standard error", how) if error > 0 else exact(value, how)


def _came(one: Branch) -> Estimate:
    """The step, uncertain by half the distance to the checkpoint before."""
    step = one.order.steps[one.chosen]
    before = one.order.steps[one.chosen - 1] if one.chosen else step
    return Estimate(float(step), (step - before) / 2, "bound", "half the distance to the checkpoint before")


def _finding(branches: Sequence[Branch], found: Sequence[Difference]) -> Finding:
    gap = max(apart(_loss(branches[0]), _loss(one)) for one in branches[1:])
    equal = gap < EQUAL
    at = "; ".join(f"{one.name} has a loss of {_loss(one):.4g} at {one.order.axis} {_step(one)}" for one in branches)
    clear = list(dict.fromkeys(one.name for one in found if one.verdict not in ("unclear", "equal")))
    clear = [name for name in clear if name not in ("loss", SOONER)]
    differ = f"they differ there in {listed(clear)}" if clear else "nothing else is told apart there"
    return Finding(
        id=ID,
        level="ok" if equal else "unmeasured",
        claim=f"{at}; {differ}."
        if equal
        else f"The runs have no checkpoints of equal loss: {at}, {gap:.0%} apart at the nearest.",
        value=exact(gap, "difference of the losses, relative to the larger"),
        threshold=f"losses within {EQUAL:.0%} of each other",
        meaning="What differs at equal loss is the work of the settings or of the seed, not of how far a run has come."
        if equal
        else "What differs between these checkpoints may only be how far each run has come.",
        advice=() if equal else ("Save checkpoints more often, or go on with the run that is behind.",),
        evidence=("checkpoints-loss",),
        method=method_of(branches[0].run.last("sharpness", "loss"))
        or "the loss of every checkpoint on the same batches",
        citation=CITATION,
    )


def _figure(runs: Sequence[Contender], branches: Sequence[Branch]) -> Figure:
    series = [_series(one) for one in branches]
    chosen = ", ".join(f"{one.name} at {_step(one)}" for one in branches)
    return Figure(
        id="checkpoints-loss",
        title="Loss of the checkpoints",
        caption="All on the same batches. The ringed ones are compared.",
        alt=f"A curve of the loss for each of {len(runs)} runs; compared are {chosen}.",
        draw=partial(_draw, runs, branches, series),
        table=step_table([one.name for one in runs], series),
        size=(7.2, 2.8),
    )


def _draw(runs: Sequence[Contender], branches: Sequence[Branch], series: Sequence[Series], canvas: Canvas) -> None:
    axes_named = dict.fromkeys(one.order.axis for one in branches)
    panel = stacked(canvas, [1], " or ".join(axes_named))[0]
    curves = [Line(run.name, one, color=run.color, dashed=run.dashed) for run, one in zip(runs, series, strict=True)]
    lines(panel, curves, "loss", log=True)
    for run, branch in zip(runs, branches, strict=True):
        at, loss = [_step(branch)], [_loss(branch)]
        panel.plot(at, loss, marker="o", markersize=10, markerfacecolor="none", color=run.color, linestyle="none")


def _series(one: Branch) -> Series:
    none = numpy.full(len(one.losses), numpy.nan)
    return Series(numpy.array(one.order.steps), numpy.array(one.losses), none)


def _loss(one: Branch) -> float:
    return one.losses[one.chosen]


def _step(one: Branch) -> int:
    return one.order.steps[one.chosen]


def _path(one: Branch) -> str:
    return str(one.order.checkpoints[one.chosen].path)


def _norm(run: Run) -> Series:
    """Of all weights together, running statistics left out."""
    names = [name for name in run.layers("weights", "norm") if not name.endswith(STATISTICS)]
    parts = [run.series("weights", "norm", name) for name in names]
    if not parts or not all(len(one) for one in parts):
        return Series(numpy.array([], dtype=numpy.int64), numpy.array([]), numpy.array([]))
    total = float(numpy.sqrt(sum(float(one.values[-1]) ** 2 for one in parts)))
    return Series(parts[0].steps[-1:], numpy.array([total]), numpy.array([numpy.nan]))


_WEIGHTS = (
    Quantity("norm of all weights", "Weights", "weights", _norm, log=True),
    Quantity(
        "spectral norm, median of matrices",
        "Weights",
        "weights",
        partial(median_of, "weights", "spectral_norm"),
        log=True,
    ),
    Quantity(
        "stable rank, median of matrices", "Weights", "weights", partial(median_of, "weights", "stable_rank"), log=True
    ),
)
