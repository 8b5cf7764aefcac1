"""The value of a quantity at a step, with an error that knows how much the quantity goes up and down.

A single check says nothing about the fluctuation of a run: another seed, or ten steps more, would have given another
number. So a straight line is put through the checks around the step. The value is the line's; the error is what a
further check would have been off by, s·√(1 + h) with s the standard deviation of the checks about their line and h
the leverage of the step. It is not divided by √n, since checks of one run are no independent draws, and where
neighbouring checks are alike, with correlation r, it is larger by √((1 + r)/(1 − r)): runs that wander slowly part by
chance. r is corrected for what a short stretch and its line take away from it. The errors of the measurements
themselves come on top. Quantities that are shown on a logarithmic axis get their line there, through their logarithms:
an exponential is a straight line, and a loss that runs away has an error in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy

from diagnostics.estimate import Estimate
from probes.run.reader import Series

ENOUGH = 6
"""Fewer checks say too little about their own fluctuation."""

SHARE = 0.5
"""Part of the common steps, at their end, that is looked at: a shorter one cannot see how slowly a quantity wanders."""

MOST_ALIKE = 0.95
"""Correlation of neighbouring checks up to which their number says anything."""


def finite(series: Series) -> Series:
    """The checks that gave a number."""
    kept = numpy.isfinite(series.values)
    return Series(series.steps[kept], series.values[kept], series.errors[kept])


def closing(series: Sequence[Series]) -> tuple[float, float] | None:
    """The last steps that all have in common, or None where one has too few checks in them."""
    if any(len(one) < ENOUGH for one in series):
        return None
    first, last = max(int(one.steps[0]) for one in series), min(int(one.steps[-1]) for one in series)
    start = last - SHARE * (last - first)
    return (start, float(last)) if all(len(within(one, start, last)) >= ENOUGH for one in series) else None


def within(series: Series, first: float, last: float) -> Series:
    """The checks from one step to another."""
    kept = (series.steps >= first) & (series.steps <= last)
    return Series(series.steps[kept], series.values[kept], series.errors[kept])


def nearest(series: Series, step: float) -> Series:
    """The few checks around a step."""
    places = numpy.sort(numpy.argsort(numpy.abs(series.steps - step), kind="stable")[:ENOUGH])
    return Series(series.steps[places], series.values[places], series.errors[places])


def on_line(checks: Series, step: float, *, log: bool = False) -> Estimate:
    """The value at a step by a straight line through at least three checks, with its error.

    Args:
        checks: finite values at different steps.
        step: where the line is read.
        log: the line is one of logarithms, where all values are positive.

    Example:
        >>> steps = numpy.arange(6)
        >>> print(on_line(Series(steps, 2.0 * steps, numpy.full(6, numpy.nan)), 2.5))
        5
    """
    how = f"line through {len(checks)} checks, steps {checks.steps[0]} to {checks.steps[-1]}"
    known = checks.errors[numpy.isfinite(checks.errors)]
    measured = math.sqrt(float((known**2).mean())) if len(known) else 0.0
    if log and checks.values.min() > 0:
        value, error = _line(checks.steps.astype(float), numpy.log(checks.values), step)
        value = math.exp(value)
        error *= value
    else:
        value, error = _line(checks.steps.astype(float), checks.values, step)
    return Estimate(value, math.hypot(error, measured), "spread", how)


def _line(steps: numpy.ndarray, values: numpy.ndarray, step: float) -> tuple[float, float]:
    middle, height = float(steps.mean()), float(values.mean())
    spread = float(((steps - middle) ** 2).sum())
    slope = float(((steps - middle) * (values - height)).sum()) / spread
    off = values - height - slope * (steps - middle)
    # What rounding leaves of a straight line is no fluctuation.
    off[numpy.abs(off) < 1e-12 * numpy.abs(values).max()] = 0.0
    variance = float((off**2).sum()) / (len(steps) - 2)
    leverage = 1 / len(steps) + (step - middle) ** 2 / spread
    alike = _alike(off)
    return height + slope * (step - middle), math.sqrt(variance * (1 + leverage) * (1 + alike) / (1 - alike))


def _alike(off: numpy.ndarray) -> float:
    """Correlation of neighbours about their line, at least 0; short series show less of it than there is (Kendall)."""
    power = float((off**2).sum())
    if power == 0.0:
        return 0.0
    seen = float((off[1:] * off[:-1]).sum()) / power
    return min(max(seen + (1 + 4 * seen) / len(off), 0.0), MOST_ALIKE)
