"""What has to be known beside a verdict on stability: where its ratio stands, and where it does not apply."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from diagnostics.estimate import format_value
from probes.run import Run
from reports.stability.deciding import EARLY, Deciding, batch_size, ratios
from reports.stability.regime import EDGE_BAND, FAR_BEYOND, RECENT, Verdict
from reports.stability.stable_rate import MOVED

FALLEN = 0.6
"""A ratio that ends below this share of its peak has fallen."""

MINIBATCH = (
    "If training draws mini-batches, this ratio settles below 1 and does not decide alone: batch sharpness does "
    "(arXiv 2412.20553). BatchSharpness(batch_size=...) measures it; the batch is what one optimizer step sees, all "
    "accumulated micro-batches together."
)
_UNDECIDED_BY_MINIBATCHES = ("edge", "sharpening", "stable")


def around(run: Run, judged: Verdict, decided: Deciding) -> Iterator[str]:
    """Sentences that belong to the verdict."""
    if judged.edge < 1:
        yield (
            f"With momentum small batches were seen to settle at (1−β)/(1+β), a ratio of {judged.edge:.2g}, and so can "
            "be thrown off from below 1 (arXiv 2604.14108)."
        )
    if judged.regime in ("diverged", "blown up"):
        return
    if decided.basis == "batch":
        yield from _of_batches(run, judged, decided)
    if decided.basis == "whole" and judged.regime in _UNDECIDED_BY_MINIBATCHES:
        yield MINIBATCH
    if decided.basis == "realised":
        return
    if _began_unseen(run, decided):
        yield "The first steps were not measured, so a missing warm-up would not show."
    if judged.regime == "stable" and judged.peak >= 0.5 and judged.last < FALLEN * judged.peak:
        yield "With cross-entropy, sharpness falls late in training as outputs saturate: a low ratio then is normal."
    probe = "batch_sharpness" if decided.basis == "batch" else "sharpness"
    thresholds = run.series(probe, "threshold").values
    thresholds = thresholds[numpy.isfinite(thresholds) & (thresholds > 0)]
    if judged.regime == "edge" and _warming_up(thresholds):
        yield (
            "The rate was still rising: during a warm-up the ratio stays near 1 by itself, because curvature gives "
            "way as the rate grows (arXiv 2110.04369)."
        )
    elif len(thresholds) > 1 and thresholds.max() > MOVED * thresholds.min():
        yield "The schedule moves the threshold, so compare ratios along this run and not curvatures."


def _began_unseen(run: Run, decided: Deciding) -> bool:
    """Whether a run was watched from its beginning, but without a ratio there; one checkpoint has no beginning."""
    first = int(decided.ratio.steps[numpy.isfinite(decided.ratio.values)][0])
    return first > EARLY * run.steps >= min(record.step for record in run.records)


def _of_batches(run: Run, judged: Verdict, decided: Deciding) -> Iterator[str]:
    size = batch_size(run)
    if size is not None:
        yield (
            f"Measured for batches of {size:,}, which should be what one step sees: accumulating gradients makes "
            "batches larger and leaves the threshold."
        )
    low, high = judged.level - judged.margin, judged.level + judged.margin
    if judged.regime in ("stable", "sharpening") and high >= EDGE_BAND[0]:
        yield f"The error reaches from {low:.2g} to {high:.2g}, so the edge is not excluded; more batches would tell."
    elif judged.regime == "edge" and low < FALLEN and high > FAR_BEYOND:
        yield f"The error reaches from {low:.2g} to {high:.2g}; more batches would tell more."
    yield from _beside(run, judged)
    yield from _analogue(decided.rule, small_batch_edge(run, decided))


def _beside(run: Run, judged: Verdict) -> Iterator[str]:
    """λmax as context: below 1 it is no room, above 1 it is worth a look."""
    whole = ratios(run, "sharpness")
    measured = numpy.isfinite(whole.values)
    finite = whole.values[measured]
    if not len(finite):
        return
    error = float(whole.errors[measured][-1])
    now = format_value(float(finite[-1]), None if numpy.isnan(error) else error)
    level = float(numpy.median(finite[-RECENT:]))
    if judged.regime == "swinging":
        low, high = (f"{bound:.2g}" for bound in (finite[-RECENT:].min(), finite[-RECENT:].max()))
        yield f"λmax alone stands at {now}, between {low} and {high} of late."
    elif level > EDGE_BAND[1]:
        yield f"λmax alone stands at {now}: its direction overshoots, though few gradients point along it."
    elif level >= EDGE_BAND[0]:
        yield f"λmax alone stands at {now}, at the edge: batches of this size act nearly like the whole data."
    elif level > judged.level:
        yield f"λmax alone stands at {now}: gradients do not point along its direction."
    else:
        room = "" if judged.regime in ("stable", "sharpening") else ": that is no room for a larger rate"
        yield (
            f"λmax alone stands at {now}. Under mini-batches it stays below 1, the more so the smaller the batch, "
            f"because noisy gradients reach the edge first{room}."
        )


def small_batch_edge(run: Run, decided: Deciding) -> float | None:
    """The ratio at which SGD with momentum was seen to settle for small batches; None without momentum."""
    groups = (run.header.get("optimizer") or {}).get("groups") or []
    betas = [group["momentum"] for group in groups if isinstance(group.get("momentum"), int | float)]
    beta = max(betas, default=0.0)
    if decided.basis != "batch" or not decided.rule.startswith("sgd") or not 0 < beta < 1:
        return None
    return float((1 - beta) / (1 + beta))


def _analogue(rule: str, small: float | None) -> Iterator[str]:
    """The theory of batch sharpness is that of plain SGD."""
    if small is not None or (rule.startswith("sgd") and "β" in rule):
        of = "" if small is None else f", a ratio of {small:.2g},"
        yield (
            f"With momentum this is the analogue: batch sharpness was seen to settle at 2(1−β)/η{of} for small batches "
            "and at 2(1+β)/η, a ratio of 1, for large ones (arXiv 2604.14108)."
        )
    elif rule and not rule.startswith("sgd"):
        yield (
            "For an adaptive optimizer this is the analogue of the rule for SGD, with the preconditioner held fixed; "
            "where mini-batches settle is known for SGD only."
        )


def _warming_up(thresholds: numpy.ndarray) -> bool:
    """A threshold that still falls means a rate that still rises."""
    recent = thresholds[-RECENT:]
    return len(recent) > 1 and bool((numpy.diff(recent) <= 0).all()) and recent[0] > MOVED * recent[-1]
