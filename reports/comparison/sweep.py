"""Which runs are a sweep: alike in everything that their headers say but for the learning rate, and perhaps the width.

Nothing is guessed. All groups of a run share one rate, and runs belong together where class, wrappers, all other
hyperparameters, the names of the tensors and the objective are the same. The rate is the one that a schedule starts
from, where a scheduler has left it in the optimizer; schedules themselves are not in the header.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from diagnostics.estimate import Estimate
from probes.run import Run
from probes.run.reader import Series
from reports.comparison.contender import Contender
from reports.comparison.estimating import closing, finite, on_line, within
from reports.comparison.matched_loss import smoothed
from reports.comparison.quantities import Compared

FEWEST = 3
"""With two rates one of them is always at the end."""


@dataclass(frozen=True)
class Point:
    """One learning rate.

    Attributes:
        rate: the learning rate.
        runs: the names of those trained at it.
        final: their loss over the last half of the steps in common; None where one ran away.
        lowest: the lowest smoothed loss of any; None where there is none.
        ratio: the stability ratio over the same steps; None where it was not measured.
    """

    rate: float
    runs: tuple[str, ...]
    final: Estimate | None
    lowest: float | None
    ratio: Estimate | None


@dataclass(frozen=True)
class Sweep:
    """Runs at three learning rates or more, of one size.

    Attributes:
        size: parameters of the model; 0 where the header does not say.
        kind: what the runs have in common; sweeps of one kind differ in the width.
        points: by rate, rising.
        steps: the steps over which it was taken.
    """

    size: int
    kind: str
    points: tuple[Point, ...]
    steps: str

    @property
    def best(self) -> int | None:
        """The place of the rate with the lowest loss there."""
        known = [place for place, one in enumerate(self.points) if one.final is not None]
        return min(known, key=lambda place: float(self.points[place].final or math.nan), default=None)

    @property
    def gaps(self) -> tuple[float | None, float | None]:
        """How far the neighbours of the best rate are, in octaves; None at an end of the grid."""
        if self.best is None:
            return None, None
        octaves = [math.log2(one.rate) for one in self.points]
        below = octaves[self.best] - octaves[self.best - 1] if self.best > 0 else None
        above = octaves[self.best + 1] - octaves[self.best] if self.best + 1 < len(octaves) else None
        return below, above


def sweeps(runs: Sequence[Contender], quantities: Sequence[Compared]) -> list[Sweep]:
    """The sweeps among the runs, the smallest model first; none where headers differ in anything else."""
    loss = next((one for one in quantities if one.quantity.theme == "Loss"), None)
    if loss is None or loss.quantity.better is None:
        return []
    ratio = next((one for one in quantities if one.quantity.name == "stability ratio"), None)
    groups: dict[tuple[str, int, str], list[int]] = defaultdict(list)
    for place, one in enumerate(runs):
        if rate_of(one.run) is not None and one.same_as is None:
            model = one.run.header.get("model") or {}
            groups[_kind(one.run), int(model.get("parameters") or 0), str(model.get("hash"))].append(place)
    found = []
    for (kind, size, _), places in groups.items():
        if len({rate_of(runs[place].run) for place in places}) >= FEWEST:
            found.append(_sweep(size, kind, [runs[place] for place in places], *_parts(loss, ratio, places)))
    return sorted((one for one in found if one.best is not None), key=lambda one: one.size)


def _parts(loss: Compared, ratio: Compared | None, places: Sequence[int]) -> tuple[list[Series], list[Series]]:
    return [loss.series[place] for place in places], [] if ratio is None else [ratio.series[place] for place in places]


def rate_of(run: Run) -> float | None:
    """The one learning rate of all groups; None where there are several, or none above 0."""
    groups = (run.header.get("optimizer") or {}).get("groups") or []
    rates = {group.get("initial_lr", group.get("lr")) for group in groups}
    rate = rates.pop() if len(rates) == 1 else None
    return float(rate) if isinstance(rate, int | float) and 0 < rate < math.inf else None


def _kind(run: Run) -> str:
    """Everything that must be the same, as text."""
    header = run.header
    optimizer, model, objective = (header.get(key) or {} for key in ("optimizer", "model", "objective"))
    groups = [
        {key: value for key, value in one.items() if key not in ("lr", "initial_lr")} for one in optimizer["groups"]
    ]
    ranks = {name: len(shape) for name, shape in (model.get("shapes") or {}).items()}
    measured = {key: objective.get(key) for key in ("loss_terms", "mode")}
    same: list[Any] = [optimizer.get("class"), optimizer.get("wrappers"), groups, model.get("class"), ranks, measured]
    return json.dumps(same, sort_keys=True)


def _sweep(size: int, kind: str, runs: Sequence[Contender], losses: list[Series], ratios: list[Series]) -> Sweep:
    alive = [place for place, one in enumerate(losses) if len(one) and math.isfinite(one.values[-1])]
    steps = closing([finite(losses[place]) for place in alive]) if alive else None
    by_rate: dict[float, list[int]] = defaultdict(list)
    for place, one in enumerate(runs):
        by_rate[rate_of(one.run) or math.nan].append(place)
    points = []
    for rate, places in sorted(by_rate.items()):
        ends = [_end(losses[place], steps) if place in alive else None for place in places]
        lowest = [float(one.values.min()) for one in (smoothed(losses[place]) for place in places) if len(one)]
        there = [_end(ratios[place], steps) for place in places] if ratios else []
        names = tuple(runs[place].name for place in places)
        points.append(Point(rate, names, _together(ends), min(lowest, default=None), _together(there)))
    said = "" if steps is None else f"steps {math.ceil(steps[0])} to {steps[1]:.0f}"
    return Sweep(size, kind, tuple(points), said)


def _end(series: Series, steps: tuple[float, float] | None) -> Estimate | None:
    checks = None if steps is None else within(finite(series), *steps)
    return None if checks is None or steps is None or len(checks) < 3 else on_line(checks, sum(steps) / 2, log=True)


def _together(found: Sequence[Estimate | None]) -> Estimate | None:
    """Of several runs at one rate the mean, with what they differ by; None where one of them has no value."""
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    values = numpy.array([one.value for one in known])
    spread = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    own = float(numpy.mean([one.error**2 for one in known]))
    return Estimate(float(values.mean()), math.sqrt(spread + own), "spread", known[0].how)
