"""Reading the ranks of features: whether inputs are still told apart where the network ends.

A low rank is no fault by itself: a classifier that has learned two classes well may end in two directions. What is
said here is said of the end of the network, from some place to the last: gates and bottlenecks on the way may be as
narrow as they like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate, exact
from probes.run import Record, Run
from reports.chapter import Chapter, method_of, reason_missing, unmeasured
from reports.charts import heatmap, short
from reports.document import Figure, Table
from reports.finding import Finding
from reports.words import counted

CITATION = "Kumar et al., arXiv 2010.14498; Lyle et al., arXiv 2204.09560; Dong et al., arXiv 2103.03404"

ALIKE = 3e-3
"""Features that differ between inputs by less than this share of their norm: cosines of .99999."""

FIGURE = "ranks-effective"

MOST_NEEDED = 9
"""Directions that are asked of the last places at most, however many classes there are."""

_MEANING = (
    "The network has become blind there: whatever the input, what comes after sees the same. Gradients through it "
    "carry next to nothing about the data, so that training mostly does not recover by itself."
)
_ADVICE = (
    "Look for what drove it: weight decay stronger than the gradient, dead units, a learning rate that was too high.",
    "Go back to a checkpoint from before, with a lower learning rate or less decay.",
    "Add residual connections or normalisation: both keep inputs apart at any depth.",
)
_AT_START = (
    "It was so at the first measurement: depth does it. Raise the initial weights (He initialisation for ReLU; torch's "
    "default is smaller), or add residual connections or normalisation.",
)


@dataclass(frozen=True)
class _Ranks:
    """What the probe wrote, by quantity and place and then by step, values and reasons why there are none."""

    run: Run
    records: Mapping[tuple[str, str | None], Mapping[int, Record]]
    places: tuple[str, ...]
    steps: tuple[int, ...]

    @classmethod
    def of(cls, run: Run) -> _Ranks:
        records: dict[tuple[str, str | None], dict[int, Record]] = {}
        for record in run.of("ranks"):
            records.setdefault((record.name, record.layer), {})[record.step] = record
        places = tuple(run.layers("ranks", "samples"))
        return cls(
            run, records, places, tuple(sorted({step for place in places for step in records["samples", place]}))
        )

    def at(self, name: str, place: str, step: int) -> Record | None:
        return self.records.get((name, place), {}).get(step)

    def now(self, name: str, place: str) -> Record | None:
        return self.at(name, place, self.steps[-1])

    def most(self, place: str) -> float:
        """No rank can be above this: the units, or the samples where they are fewer."""
        return min(_number(self.run.last("ranks", name, place)) for name in ("units", "samples"))

    @property
    def shown(self) -> tuple[str, ...]:
        """The figure, which needs two checks."""
        return (FIGURE,) if len(self.steps) > 1 else ()


def read(run: Run) -> Chapter:
    """Findings and figures about ranks."""
    if not run.layers("ranks", "samples"):
        reason = reason_missing(run, "ranks")
        if reason is None:
            return Chapter()
        return Chapter((unmeasured("ranks/features", "The rank of features", reason, (), CITATION),))
    ranks = _Ranks.of(run)
    found = _collapse(ranks) or _low(ranks) or _tokens(ranks) or _all_well(ranks)
    return Chapter((found,), tuple(_figures(ranks)))


def _same(record: Record | None) -> bool:
    """Whether features were the same for every input, zero included."""
    if record is None:
        return False
    if record.status == "ok":
        return record.value is not None and record.value < ALIKE
    return "all zero" in (record.note or "")


def _collapse(ranks: _Ranks) -> Finding | None:
    """The last places put out the same for every input."""
    places, steps = ranks.places, ranks.steps
    blind = _ending([_same(ranks.now("spread", place)) for place in places])
    if blind is None:
        return None
    last = ranks.now("spread", places[-1])
    earlier = [step for step in steps if not _same(ranks.at("spread", places[-1], step))]
    at_start = not earlier
    since = "at the first measurement already" if at_start else f"since step {steps[steps.index(earlier[-1]) + 1]}"
    zero = last is not None and last.status != "ok"
    how = "zero" if zero else f"the same up to {_number(last):.2g} of their norm"
    return Finding(
        id="ranks/collapse" + ("_at_start" if at_start else ""),
        # Networks that begin like this have been seen to find out of it within a few steps.
        level="warn" if at_start and len(steps) == 1 else "fail",
        claim=f"Features are {how} for every input from {short(places[blind])} to the last of "
        f"{counted(len(places), 'place')}, {since}.",
        value=None if zero else exact(_number(last), method_of(last)),
        threshold=f"{ALIKE:g} of their norm",
        meaning=_MEANING,
        advice=_AT_START if at_start else _ADVICE,
        evidence=ranks.shown,
        method=method_of(last),
        citation=CITATION,
    )


def _low(ranks: _Ranks) -> Finding | None:
    """The last places spread in fewer directions than the classes differ in, and did not at first."""
    classes, places = ranks.run.last("ranks", "classes"), ranks.places
    if classes is None:
        return None
    needed = min(_number(classes) - 1, MOST_NEEDED)
    first = _ending([_wide(ranks, place, 2 * needed) and _less(ranks, place, needed) for place in places])
    before = ranks.run.series("ranks", "srank", places[-1])
    if first is None or not (before.values[:-1] >= needed).any():
        return None
    last = ranks.now("srank", places[-1])
    return Finding(
        id="ranks/low",
        level="warn",
        claim=f"Features lie in {_number(last):.0f} directions at {short(places[-1])}, fewer than "
        f"{_number(classes):.0f} classes differ in, and it was {before.values.max():.0f} (srank; low from "
        f"{short(places[first])} on).",
        value=exact(_number(last), method_of(last)),
        threshold=f"{needed:.0f} directions" + (", classes less one" if needed < MOST_NEEDED else ""),
        meaning="Rank that is lost is hard to win back: units have died, or all do the same. Networks in this state "
        "learn new targets slowly or not at all, a loss of plasticity.",
        advice=(
            "Compare with the units: dead and dormant ones are the usual reason.",
            "Lower the learning rate, or add normalisation; in continual learning, reset units that do nothing.",
        ),
        evidence=ranks.shown,
        method=method_of(last),
        citation=CITATION,
    )


def _tokens(ranks: _Ranks) -> Finding | None:
    """The tokens of every sequence have become one."""
    blocks = ranks.run.layers("ranks", "token_residual")
    if not blocks or not _same(last := ranks.now("token_residual", blocks[-1])):
        return None
    return Finding(
        id="ranks/tokens",
        level="warn",
        claim=f"All tokens of a sequence are the same up to {_number(last):.2g} of their norm behind the last block, "
        f"{short(blocks[-1])}.",
        value=Estimate(_number(last), (last.error if last else None) or 0.0, "standard error", method_of(last)),
        threshold=f"{ALIKE:g} of their norm",
        meaning="Attention averages, and has averaged everything away: no position can be told from another.",
        advice=("See that residual connections are there and not scaled to nothing: they are what prevents this.",),
        evidence=(),
        method=method_of(last),
        citation=CITATION,
    )


def _all_well(ranks: _Ranks) -> Finding:
    found = {place: record for place in ranks.places if (record := ranks.now("effective_rank", place)) is not None}
    found = {place: record for place, record in found.items() if record.status == "ok"}
    if not found:
        return unmeasured("ranks/features", "The rank of features", "no place has any", (), CITATION)
    shares = {place: _number(found[place]) / ranks.most(place) for place in found}
    least = min(shares, key=lambda place: shares[place])
    ends = [
        f"{_number(found[place]):.3g} of {ranks.most(place):.0f} at {short(place)}" for place in (least, [*found][-1])
    ]
    last = f"the last of {len(found)} places" if len(found) > 1 else "the only place"
    return Finding(
        id="ranks/features",
        level="ok",
        claim=f"Inputs are told apart to the end: effective rank {ends[1]}, {last}"
        + (f"; lowest, {ends[0]}." if ends[0] != ends[1] else "."),
        value=exact(_number(found[least]), method_of(found[least])),
        threshold=f"features that differ by more than {ALIKE:g} of their norm at the last place",
        meaning="In how many directions features spread. It often falls while a classifier learns, and low is no fault "
        "by itself: compare it within a run, at one number of samples.",
        advice=(),
        evidence=ranks.shown,
        method=method_of(found[least]),
        citation=CITATION,
    )


def _ending(flags: Sequence[bool]) -> int | None:
    """Where the flags that hold to the end begin; None where the last does not hold."""
    count = next((index for index, flag in enumerate(reversed(flags)) if not flag), len(flags))
    return len(flags) - count if count else None


def _wide(ranks: _Ranks, place: str, least: float) -> bool:
    found = [ranks.now(name, place) for name in ("units", "samples")]
    return all(record is not None and _number(record) >= least for record in found)


def _less(ranks: _Ranks, place: str, needed: float) -> bool:
    record = ranks.now("srank", place)
    return record is not None and record.status == "ok" and _number(record) < needed


def _number(record: Record | None) -> float:
    return float("nan") if record is None or record.value is None else float(record.value)


def _figures(ranks: _Ranks) -> list[Figure]:
    run, places = ranks.run, ranks.places
    series = [run.series("ranks", "effective_rank", place) for place in places]
    steps = sorted({int(step) for one in series for step in one.steps})
    if len(steps) < 2:
        return []
    shares = numpy.full((len(places), len(steps)), numpy.nan)
    rows = []
    for row, (place, one) in enumerate(zip(places, series, strict=True)):
        shares[row, numpy.searchsorted(steps, one.steps)] = one.values / ranks.most(place)
        if len(one):
            low = int(one.values.argmin())
            ends = float(one.values[0]), float(one.values[low]), int(one.steps[low]), float(one.values[-1])
            rows.append((short(place), int(_number(run.last("ranks", "units", place))), *ends))
    return [
        Figure(
            id=FIGURE,
            title="Effective rank of features",
            caption="By place, first on top: the effective rank as a share of the units there.",
            alt=f"Effective rank as a share of units by place and step, from {numpy.nanmin(shares):.1%} to "
            f"{numpy.nanmax(shares):.1%}.",
            draw=partial(_draw, list(places), steps, shares),
            table=Table(("place", "units", "first", "lowest", "at step", "last"), tuple(rows)),
            size=(7.2, min(9.0, 1.6 + 0.24 * len(places))),
        )
    ]


def _draw(places: list[str], steps: list[int], shares: numpy.ndarray, canvas: Canvas) -> None:
    heatmap(canvas, places, steps, shares, "effective rank / units")
