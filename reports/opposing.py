"""Reading opposing signals: whether a few examples carry the change of the loss and swing back and forth.

That a few examples change most is nothing wrong: in natural data they often do. It is told. What is warned of is all of
it at once: two groups with opposite gradients that carry most of the change, several times what Gaussian changes
would, and whose losses go up and down by turns. A step is too long for them then, and they decide how far the others
come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate
from probes.run import Record, Run
from reports import palette
from reports.chapter import Chapter, method_of, reason_missing, unmeasured
from reports.document import Figure, Table
from reports.finding import Finding
from reports.words import counted

ID = "opposing/groups"
CITATION = "Rosenfeld & Risteski, arXiv 2311.04163"

MOST = 0.5
"""Of the change of the losses: more is most of it."""

BEYOND = 3.0
"""Times what Gaussian changes would carry: with a handful of examples two of them may well be half."""

OPPOSED = -0.5
"""The cosine between the gradients of two groups that oppose each other, and the correlation of changes that swing."""

LASTING = 0.8
"""Swings of which each is at least so much of the one before. Below, noise throws the network off and it comes back."""

RECENT = 5
"""Checks, counted from the last."""

NAMED = 5
"""Examples of each group in a sentence."""

LISTED = 20
"""Examples of each group in the table."""

POINTS = 400
"""More would not be told apart in the figure."""


@dataclass(frozen=True)
class _Check:
    """One check; NaN for what it could not tell."""

    step: int
    carried: float
    gaussian: float
    cosine: float
    alternation: float
    growth: float

    @property
    def swings(self) -> bool:
        """Whether few carry most, oppose each other, and swing."""
        few = self.carried > max(MOST, BEYOND * self.gaussian)
        opposed = self.cosine < OPPOSED and self.alternation < OPPOSED
        return few and opposed and self.growth > LASTING


@dataclass(frozen=True)
class _Groups:
    """Every change of the losses in one step, and which examples are in the two groups."""

    changes: numpy.ndarray
    rising: list[int]
    falling: list[int]

    def named(self) -> str:
        """The examples in words."""
        parts = [f"{_examples(group)} {verb}" for group, verb in ((self.rising, "rise"), (self.falling, "fall"))]
        return " while ".join(part for part, group in zip(parts, (self.rising, self.falling), strict=True) if group)


def read(run: Run) -> Chapter:
    """Finding and figure about opposing groups of examples."""
    checks = _checks(run)
    if not checks:
        reason = reason_missing(run, "opposing")
        what = "Which examples carry the change of the loss"
        return Chapter() if reason is None else Chapter((unmeasured(ID, what, reason, (), CITATION),))
    # Swings come and go: curvature falls while they last, and rises until they are back.
    shown = next((check for check in reversed(checks[-RECENT:]) if check.swings), checks[-1])
    groups = _groups(run, shown.step)
    figures = () if groups is None else (_figure(groups, shown.step),)
    return Chapter((_finding(run, checks, shown, groups),), figures)


def _checks(run: Run) -> list[_Check]:
    """Every check that told how much the groups carry."""
    names = ("carried", "gaussian", "cosine", "alternation", "growth")
    found = {}
    for name in names:
        series = run.series("opposing", name)
        found[name] = dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))
    steps = [step for step, value in found["carried"].items() if math.isfinite(value)]
    return [_Check(step, *(found[name].get(step, math.nan) for name in names)) for step in steps]


def _at(run: Run, name: str, step: int) -> Record | None:
    """The record of one check."""
    found = [one for one in run.of("opposing", name) if one.step == step]
    return next((one for one in reversed(found) if one.status == "ok"), None)


def _groups(run: Run, step: int) -> _Groups | None:
    """None where arrays are missing or are not what they should be: a folder may be damaged."""
    arrays = []
    for name in ("changes", "rising", "falling"):
        record = _at(run, name, step)
        array = None if record is None else run.array(record, axes=1)
        if array is None:
            return None
        arrays.append(array)
    changes, rising, falling = arrays
    if not all(numpy.isin(group, numpy.arange(len(changes))).all() for group in (rising, falling)):
        return None
    return _Groups(changes.astype(numpy.float64), rising.astype(int).tolist(), falling.astype(int).tolist())


def _finding(run: Run, checks: list[_Check], check: _Check, groups: _Groups | None) -> Finding:
    few = "A few examples" if groups is None else _few(groups)
    claim = f"{few} carry {check.carried:.0%} of the change of the losses in a step"
    if math.isfinite(check.gaussian):
        claim += f" ({check.gaussian:.0%} if changes were Gaussian)"
    if math.isfinite(check.cosine):
        claim += f"; the gradients of those that rise and those that fall have a cosine of {check.cosine:.2f}"
    if math.isfinite(check.alternation):
        claim += f"; changes in this step and in the next have a correlation of {check.alternation:.2f}"
    if check.swings:
        claim = f"Two opposing groups of examples swing from step to step: {claim[0].lower()}{claim[1:]}"
    swinging = sum(one.swings for one in checks)
    several = f"; {swinging} of {counted(len(checks), 'check')} are so" if swinging and len(checks) > 1 else ""
    record = _at(run, "carried", check.step)
    error = 0.0 if record is None or record.error is None else record.error
    return Finding(
        id=ID,
        level="warn" if check.swings else "ok",
        claim=f"{claim}, at step {check.step}{several}.",
        value=Estimate(check.carried, error, "residual", method_of(record)),
        threshold=f"above {MOST:.0%} and {BEYOND:g} times Gaussian, with cosine and correlation below {OPPOSED:g} and "
        f"swings that last, in the last {RECENT} checks, is reported",
        meaning=_meaning(check),
        advice=_advice(groups) if check.swings else (),
        evidence=() if groups is None else ("opposing-changes",),
        method=method_of(record),
        citation=CITATION,
    )


def _few(groups: _Groups) -> str:
    few = counted(len(groups.rising) + len(groups.falling), "example")
    return f"{few} of {len(groups.changes):,}"


def _meaning(check: _Check) -> str:
    if check.swings:
        return (
            "These examples share something large that speaks for different answers. Along it steps are too long: each "
            "one raises the losses of one group and lowers those of the other, and the next one the reverse. They hold "
            "the network at the edge of stability while the others have little to say."
        )
    if check.alternation < OPPOSED:
        return (
            "Losses go up and down from step to step, as at the edge of stability, and many examples have part in it: "
            "no few of them decide."
        )
    return (
        "Which examples a step changes most: rare, hard or wrongly labelled ones, often. Two groups with opposite "
        "gradients balance each other; only where they also swing from step to step is a step too long for them."
    )


def _advice(groups: _Groups | None) -> tuple[str, ...]:
    look = "Look at these examples" + ("" if groups is None else f": {groups.named()}")
    return (
        f"{look}. What do they share, and are their labels right? Numbers count from 0, in the order of the "
        "Objective's batches.",
        "A lower learning rate, or a smaller momentum: the swings shrink at once.",
    )


def _examples(group: list[int]) -> str:
    shown = ", ".join(str(place) for place in group[:NAMED])
    return shown + (f" and {len(group) - NAMED} more" if len(group) > NAMED else "")


def _figure(groups: _Groups, step: int) -> Figure:
    listed = [(place, "rising") for place in groups.rising[:LISTED]]
    listed += [(place, "falling") for place in groups.falling[:LISTED]]
    low, high = float(groups.changes.min()), float(groups.changes.max())
    return Figure(
        id="opposing-changes",
        title="What a step makes of the loss of each example",
        caption="Change of each example's loss in the next step, smallest first. Where a few at both ends tower over "
        "the others, these carry the step. The table lists them, counted from 0 in the order of the batches.",
        alt=f"Changes of the losses of {len(groups.changes):,} examples at step {step}, from {low:.3g} to {high:.3g}.",
        draw=partial(_draw, groups),
        table=Table(
            ("example", "group", "change of its loss"),
            tuple((place, group, float(groups.changes[place])) for place, group in listed),
        ),
    )


def _draw(groups: _Groups, canvas: Canvas) -> None:
    axes = canvas.subplots()
    order = numpy.argsort(groups.changes, kind="stable")
    rank = numpy.empty(len(order), dtype=int)
    rank[order] = numpy.arange(len(order))
    kept = numpy.unique(numpy.linspace(0, len(order) - 1, min(POINTS, len(order))).round().astype(int))
    axes.plot(kept, groups.changes[order][kept], color=palette.MUTED, linewidth=1.2, label="all examples")
    for group, name, color in (
        (groups.rising, "rise most", palette.SERIES[1]),
        (groups.falling, "fall most", palette.SERIES[0]),
    ):
        some = group[:POINTS]
        if some:
            axes.plot(rank[some], groups.changes[some], "o", markersize=4, color=color, label=name)
    axes.axhline(0.0, color=palette.GRID, linewidth=1.0, zorder=1)
    axes.set_xlabel("examples, by the change of their loss")
    axes.set_ylabel("change of the loss")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
