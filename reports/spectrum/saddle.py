"""Reading negative curvature: a weaker part of every spectrum, and a saddle where the loss stands still."""

from __future__ import annotations

from dataclasses import replace

import numpy

from diagnostics.estimate import Estimate
from probes.run import Record, Run
from reports.chapter import method_of, unmeasured
from reports.finding import Finding
from reports.spectrum.records import CITATION, at_step, missing, number, value_of

STRONG = 0.5
"""Negative curvature as a share of the bulk's positive end, from which a standstill is called a saddle. At the
standstills we planted the two ends were equal; late in healthy runs it was at most 0.03. Fresh networks have as much as
those that stand still, but they move."""
STILL, STILL_STEPS = 0.02, 50
"""The loss stands still when it stays within this share of itself for so many steps."""
PROMISE = 0.01
"""Share of the loss that the best step along the gradient would gain. At standstills it was at most 0.7 of this, in
runs that trained at least 1.4 times it."""


def read(run: Run) -> Finding | None:
    """The finding on negative curvature; None where nobody asked for it."""
    lowest = run.last("spectrum", "smallest")
    highest = at_step(run, "largest", None if lowest is None else lowest.step)
    if lowest is None or highest is None:
        return missing(run, "spectrum/negative", "Negative curvature", ("largest", "smallest"))
    low, step = value_of(lowest), lowest.step
    if all(abs(value_of(end)) <= _error(end) for end in (lowest, highest)):
        reason = f"both ends of the spectrum are within their error of zero at step {step}"
        return unmeasured("spectrum/negative", "Negative curvature", reason, (), CITATION)
    ends = f"eigenvalues run from {number(lowest)} to {number(highest)} at step {step}"
    finding = Finding(
        id="spectrum/negative",
        level="ok",
        claim=f"Negative curvature is the weaker part: {ends}.",
        value=Estimate(low, lowest.error or 0.0, "residual", method_of(lowest)),
        threshold=f"{STRONG:.0%} of the positive end of the bulk, while the loss stands still",
        meaning="Away from a minimum some directions always curve down, in a fresh network as strongly as up. That is "
        "normal and fades as the loss falls. It matters where the loss stands still.",
        advice=(),
        evidence=("spectrum-ends", "spectrum-density"),
        method=method_of(lowest),
        citation=CITATION,
    )
    # Outliers belong to the last layers' part of the Hessian, which is positive at a saddle too.
    count, edge = at_step(run, "outliers", step), at_step(run, "edge", step)
    apart = count is not None and value_of(count) > 0 and edge is not None
    bulk = value_of(edge) if apart and edge is not None else value_of(highest)
    if low - _error(lowest) >= 0:
        return replace(finding, claim=f"No negative curvature was found: {ends}.")
    if low + _error(lowest) >= 0:
        return replace(finding, claim=f"No negative curvature was found beyond its error: {ends}.")
    if low + _error(lowest) > -STRONG * bulk:
        return finding
    moved = _standstill(run, step)
    if moved is None:
        known = "the loss does not stand still there, as far as was measured"
        beside = (
            f"the bulk's upper end of {bulk:.3g}, from which larger eigenvalues stand apart" if apart else "positive"
        )
        return replace(finding, claim=f"Negative curvature is about as strong as {beside}: {ends}; {known}.")
    reach = f"({number(lowest)}) as {'the bulk of it' if apart else 'it'} does up ({bulk:.3g})"
    return replace(
        finding,
        level="warn",
        claim=f"The loss stands still near a saddle: it changed by {moved:.1%} in {STILL_STEPS} steps or more, "
        f"while curvature reaches as far down {reach}, at step {step}.",
        meaning="Many directions curve down as strongly as others curve up, but the gradient is so small that steps "
        "hardly use them. Training leaves such a place by itself, slowly at first: along a curvature of −c the way out "
        "grows by the factor 1 + ηc at each step of plain gradient descent.",
        advice=(
            "At the start of a run, look at the initial weights: all very small, or alike, is the usual way into a "
            "saddle.",
            "Saturated units and missing normalisation make such plateaus long: see the findings on units.",
            "Momentum, an adaptive optimizer, or a larger learning rate (as far as the stability ratio allows) leaves "
            "sooner.",
        ),
    )


def _error(record: Record) -> float:
    """How far off the number may be; one whose error is not known counts as exact."""
    return record.error or 0.0


def _standstill(run: Run, step: int) -> float | None:
    """By what share the loss moved while it stood still before a step; None where it did not, or nobody can tell.

    A loss that could still be brought down by a plain step along the gradient does not stand at a saddle: its learning
    rate is too small.
    """
    losses: dict[int, float] = {}
    for probe in ("sharpness", "spectrum"):
        series = run.series(probe, "loss")
        losses |= dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))
    before = [one for one in losses if one <= step - STILL_STEPS]
    gradient, highest = at_step(run, "gradient_norm", step), at_step(run, "largest", step)
    if not before or step not in losses or gradient is None or highest is None:
        return None
    window = numpy.array([value for one, value in losses.items() if max(before) <= one <= step])
    level = abs(losses[step])
    if not (numpy.isfinite(window).all() and level > 0):
        return None
    moved = float(numpy.ptp(window)) / level
    along = at_step(run, "gradient_curvature", step)
    # Where the gradient itself points down a curved way, a step of the safe length gains at least so much.
    curvature = value_of(along) if along is not None and value_of(along) > 0 else value_of(highest)
    promise = value_of(gradient) ** 2 / (2 * curvature * level) if curvature > 0 else float("inf")
    return moved if moved <= STILL and promise <= PROMISE else None
