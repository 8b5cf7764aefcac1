"""The numbers in the claim on stability: where the ratio stands, where it was, and from how many checks that is known.

A ratio is always called one, "over the edge", for batch sharpness by itself is a curvature.
"""

from __future__ import annotations

import numpy

from diagnostics.estimate import format_value
from probes.run import Run
from probes.run.reader import Series
from reports.stability.deciding import Basis, Deciding, at_rest
from reports.stability.regime import FAR_BEYOND, Verdict
from reports.words import counted

NAMES: dict[Basis, str] = {
    "batch": "batch sharpness over the edge",
    "whole": "stability ratio",
    "realised": "ratio of a trial step",
}


def numbers(run: Run, judged: Verdict, decided: Deciding, loss: Series) -> str:
    """The part of a claim that holds its numbers."""
    last = decided.last
    now = "" if last.value is None else format_value(last.value, last.error)
    name = NAMES[decided.basis]
    if judged.regime in ("diverged", "blown up"):
        return f"{_lost(run, loss)}; the {name} was {_highest(judged)}{_few(run, judged)}"
    if judged.regime == "stalled":
        return (
            f"{'batch sharpness' if decided.basis == 'batch' else 'curvature'} stood at {judged.peak:.3g} times the "
            f"edge at step {judged.peak_step}, and at {now} of it at step {last.step}; "
            f"the loss went from {loss.values[0]:.4g} to {loss.values[-1]:.4g}{_resting(run, decided)}"
        )
    if judged.regime == "swinging":
        after = f"after {judged.peak:.3g} at step {judged.peak_step}{_beyond(judged)}"
        return f"{name} {now} at step {last.step}, {after}"
    text = f"{name} {now} at step {last.step}"
    if judged.checks > 1:
        text += f", {'up' if judged.last > judged.first else 'down'} from {judged.first:.2g}"
        if judged.regime == "catapult":
            text += f", after {judged.peak:.3g} at step {judged.peak_step}{_beyond(judged)}"
        elif judged.regime == "stable" and judged.peak > max(judged.first, 2 * judged.last):
            text += f", highest {judged.peak:.2g} at step {judged.peak_step}"
        elif (
            judged.regime == "edge" and judged.checks > 2 and judged.reached not in (None, int(decided.ratio.steps[0]))
        ):
            text += f", near {'1' if decided.basis == 'realised' else 'the edge'} since step {judged.reached}"
    text += _few(run, judged)
    together = run.last("sharpness", "directions")
    if decided.basis == "whole" and together and together.value and together.step == last.step:
        text += f", in {counted(round(together.value), 'direction')}"
    return text + _resting(run, decided)


def _lost(run: Run, loss: Series) -> str:
    gone = first_not_finite(run, loss)
    end = f"{loss.values[-1]:.4g} by step {int(loss.steps[-1])}" if gone is None else f"not a number by step {gone}"
    return f"the loss went from {loss.values[0]:.4g} to {end}"


def _highest(judged: Verdict) -> str:
    peak = f"{judged.peak:.3g}"
    text = f"highest, {peak}, at step" if judged.checks > 2 else f"{peak} at step"
    text += f" {judged.peak_step}"
    if judged.edge < 1:
        text += f", {judged.peak / judged.edge:.2g} times the edge of small batches ({judged.edge:.2g})"
    return text


def _beyond(judged: Verdict) -> str:
    """At how many checks steps were too long."""
    return f", and above {FAR_BEYOND:g} at {judged.beyond} of {judged.checks} checks" if judged.beyond > 1 else ""


def _few(run: Run, judged: Verdict) -> str:
    """Two checks, or one in a longer run, have not seen what was between."""
    alone = judged.checks == 1 and len({record.step for record in run.records}) > 1
    return f" (from {counted(judged.checks, 'check')})" if judged.checks == 2 or alone else ""


def _resting(run: Run, decided: Deciding) -> str:
    """The learning rate at the end of its schedule."""
    after = [step for step in at_rest(run, decided.last.probe) if step > decided.last.step]
    return f"; the learning rate is 0 since step {min(after)}" if after else ""


def first_not_finite(run: Run, loss: Series) -> int | None:
    """The first step at which a loss, monitored or of training, is known to be no number; None if it ends as one."""
    if not len(loss) or numpy.isfinite(loss.values[-1]):
        return None
    training = run.series("loop", "loss")
    steps = [int(step) for one in (loss, training) for step in one.steps[~numpy.isfinite(one.values)]]
    return min(steps)
