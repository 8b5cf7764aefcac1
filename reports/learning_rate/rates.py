"""The learning rate in force at each step, as far as a run knows it."""

from __future__ import annotations

import math

import numpy

from probes.run import Run
from probes.run.reader import Series

ENDED = 0.1
"""Below this share of its highest rate a schedule has run out."""


def rates_in_force(run: Run) -> Series:
    """The highest learning rate of any tensor at each step; that of the header where none was measured."""
    highest: dict[int, float] = {}
    for name in run.layers("learning_rate", "lr"):
        one = run.series("learning_rate", "lr", name)
        for step, value in zip(one.steps.tolist(), one.values.tolist(), strict=True):
            if math.isfinite(value):
                highest[step] = max(highest.get(step, 0.0), value)
    if not highest and (stated := _stated(run)) is not None:
        # Without a measurement there is no telling whether a schedule moved it.
        highest = dict.fromkeys({record.step for record in run.records}, stated)
    steps = sorted(highest)
    return Series(
        steps=numpy.array(steps, dtype=numpy.int64),
        values=numpy.array([highest[step] for step in steps], dtype=numpy.float64),
        errors=numpy.full(len(steps), float("nan")),
    )


def last_at_rate(run: Run, steps: set[int]) -> int:
    """The last of these steps at which the schedule had not yet run out: small steps at its end are meant to be."""
    rates = rates_in_force(run)
    known = dict(zip(rates.steps.tolist(), rates.values.tolist(), strict=True))
    peak = max(known.values(), default=0.0)
    in_force = {step for step in steps if known.get(step, peak) >= ENDED * peak}
    return max(in_force or steps, default=0)


def _stated(run: Run) -> float | None:
    groups = (run.header.get("optimizer") or {}).get("groups") or []
    rates = [group["lr"] for group in groups if isinstance(group.get("lr"), int | float)]
    return max(rates, default=None)
