"""Where two runs differ: value against value with their errors, and whether that is better, worse or unclear.

The first run that was given and has something to compare is the one that the others are held against.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy

from diagnostics.estimate import Estimate, format_value
from probes.run.reader import Series
from reports.comparison.contender import Contender
from reports.comparison.estimating import closing, finite, on_line, within
from reports.comparison.quantities import Better, Compared, Quantity
from reports.document import Table

Verdict = Literal["better", "worse", "different", "unclear", "equal"]

MARK: dict[Verdict, str] = {"worse": "✗", "better": "✓", "different": "≠", "unclear": "?", "equal": "="}
"""How a verdict is said without colour, the telling ones first."""

ERRORS = 2.0
"""So many errors of the difference it must exceed: 1 is passed by chance in every third quantity."""

MOST_COLUMNS = 5
"""More runs than this do not fit beside each other on paper."""

ROUNDING = 1e-6
"""Relative; what float32 leaves of two numbers that should be one."""


@dataclass(frozen=True)
class Difference:
    """One quantity in two runs.

    Attributes:
        name: of the quantity.
        reference: the run held against.
        run: the run that the verdict is about.
        before: the value in the reference; None where there is none.
        value: the value in the run; None where there is none.
        verdict: about the run.
        where: the steps at which both were taken, or why there is no value.
    """

    name: str
    reference: Contender
    run: Contender
    before: Estimate | None
    value: Estimate | None
    verdict: Verdict
    where: str

    @property
    def change(self) -> Estimate | None:
        """Run minus reference, with its error."""
        if self.before is None or self.value is None:
            return None
        return _change(self.before, self.value)


def reference_of(runs: Sequence[Contender], quantities: Sequence[Compared]) -> int:
    """Which run the others are held against: the first that has anything to compare."""
    return next((place for place in range(len(runs)) if any(len(one.series[place]) for one in quantities)), 0)


def differences(runs: Sequence[Contender], quantities: Sequence[Compared]) -> tuple[Difference, ...]:
    """Each run against the reference, over the last steps that the two have in common."""
    against = reference_of(runs, quantities)
    return tuple(
        at_the_end(one.quantity, (runs[against], runs[place]), (one.series[against], one.series[place]))
        for one in quantities
        for place in range(len(runs))
        if place != against and len(one.series[against]) and len(one.series[place])
    )


def at_the_end(quantity: Quantity, runs: tuple[Contender, Contender], series: tuple[Series, Series]) -> Difference:
    """Two runs over the last steps that both have."""
    known = (finite(series[0]), finite(series[1]))
    lost = [place for place, one in enumerate(series) if len(one) and not math.isfinite(one.values[-1])]
    if lost:
        return _not_finite(quantity, runs, series, lost)
    steps = closing(known)
    if steps is None:
        return Difference(quantity.name, *runs, None, None, "unclear", "too few checks in common")
    middle = sum(steps) / 2
    before, value = (on_line(within(one, *steps), middle, log=quantity.log) for one in known)
    where = f"steps {math.ceil(steps[0])} to {steps[1]:.0f}"
    return Difference(
        quantity.name, *runs, before, value, judged(before, value, quantity.better, log=quantity.log), where
    )


def judged(before: Estimate, value: Estimate, better: Better | None, *, log: bool = False) -> Verdict:
    """What a difference amounts to: unclear, unless it exceeds twice its error.

    Args:
        before: the value in the reference.
        value: the value in the run that the verdict is about.
        better: the direction in which a run is better off.
        log: held against each other by their ratio, where both are positive.

    Example:
        >>> low, high = Estimate(1.0, 0.1, "spread", "line"), Estimate(2.0, 0.1, "spread", "line")
        >>> judged(low, high, "lower"), judged(low, high, "higher"), judged(low, high, None), judged(low, low, "lower")
        ('worse', 'better', 'different', 'equal')
    """
    if before.value == value.value:
        return "equal"
    change = _change(before, value)
    apart, error = change.value, change.error
    if log and before.value > 0 and value.value > 0:
        # Beside 10³⁰ ± 10³⁰ any other loss is clearly lower.
        apart = math.log(value.value / before.value)
        error = math.hypot(before.error / before.value, value.error / value.value, ROUNDING)
    if abs(apart) <= ERRORS * error:
        return "unclear"
    if better is None:
        return "different"
    return "better" if (apart < 0) == (better == "lower") else "worse"


def _change(before: Estimate, value: Estimate) -> Estimate:
    rounding = ROUNDING * max(abs(before.value), abs(value.value))
    error = math.sqrt(before.error**2 + value.error**2 + rounding**2)
    return Estimate(value.value - before.value, error, "spread", "errors of both, in quadrature")


def _not_finite(
    quantity: Quantity, runs: tuple[Contender, Contender], series: tuple[Series, Series], lost: list[int]
) -> Difference:
    since = {place: _since(series[place]) for place in lost}
    where = "; ".join(f"not a number in {runs[place].name} from step {step} on" for place, step in since.items())
    verdict: Verdict = "unclear"
    # Of a loss that ran away the direction is known without its value.
    if quantity.better == "lower" and len(lost) == 1:
        verdict = "worse" if lost == [1] else "better"
    return Difference(quantity.name, *runs, None, None, verdict, where)


def _since(series: Series) -> int:
    """The first step after which nothing was finite."""
    good = numpy.flatnonzero(numpy.isfinite(series.values))
    return int(series.steps[good[-1] + 1 if len(good) else 0])


def table(found: Sequence[Difference], runs: Sequence[Contender]) -> Table:
    """The differences: a row for each quantity, with a column for each run while they are few; then a row for each run.

    Of two runs the telling ones come first.
    """
    against = found[0].reference.name if found else runs[0].name
    if len(runs) == 2:
        other = found[0].run.name if found else runs[1].name
        rows = [(one.name, *_both(one), _signed(one), _said(one), one.where) for one in sorted(found, key=_telling)]
        return Table(("quantity", against, other, "difference", f"{other} is", "where"), tuple(rows))
    if len(runs) > MOST_COLUMNS:
        long = []
        for one in found:
            before, value = _both(one)
            long.append((one.name, one.run.name, _said(one), value, _signed(one), before, one.where))
        columns = ("quantity", "run", "it is", "in the run", "difference", f"in {against}", "where")
        return Table(columns, tuple(long))
    others = [one.name for one in runs if one.name != against]
    cells = {(one.name, one.run.name): one for one in found}
    wide = []
    for name in dict.fromkeys(one.name for one in found):
        here = [cells.get((name, other)) for other in others]
        before = next((_text(one.before) for one in here if one is not None and one.before is not None), None)
        wide.append((name, before, *(None if one is None else _short(one) for one in here)))
    return Table(("quantity", against, *others), tuple(wide))


def _telling(one: Difference) -> int:
    return list(MARK).index(one.verdict)


def _text(value: Estimate | None) -> str | None:
    return None if value is None else str(value)


def _both(one: Difference) -> tuple[str | None, str | None]:
    return _text(one.before), _text(one.value)


def _said(one: Difference) -> str:
    return f"{MARK[one.verdict]} {one.verdict}"


def _short(one: Difference) -> str:
    """The value, by how much it differs and what that amounts to; why there is none."""
    if one.before is None or one.value is None:
        return f"{MARK[one.verdict]} {one.where}"
    return f"{MARK[one.verdict]} {one.value}{_relative(one.before.value, one.value.value)}"


def _relative(before: float, value: float) -> str:
    """By how much in percent, or from twice as much on by which factor; nothing beside zero."""
    if before == value or before * value <= 0:
        return ""
    ratio = value / before
    return f" (×{ratio:.2g})" if ratio >= 2 else f" ({100 * (ratio - 1):+.2g}%)".replace("-", "−")


def _signed(one: Difference) -> str | None:
    """The difference with its sign, and its error where it has more than that of rounding."""
    if one.change is None or one.before is None or one.value is None:
        return None
    error = math.hypot(one.before.error, one.value.error)
    return ("+" if one.change.value > 0 else "") + format_value(one.change.value, error).replace("-", "−", 1)
