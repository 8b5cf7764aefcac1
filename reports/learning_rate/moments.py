"""Reading second moments: gradients that outgrow them, and those that are lost below ε.

Adam and its kind divide a gradient by √v, an average over many steps. When gradients grow faster than v can follow, the
step is too long: RMS of g²/v, about 1 in calm training, rises above 2.3, mostly a few steps before the loss spikes
(arXiv 2304.13013). At the other end, where √v̂ is below ε, nothing is divided at all.
"""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import exact
from probes.run import Run
from probes.run.reader import Series
from reports.chapter import method_of, step_table
from reports.charts import Edge, Line, lines, short, stacked
from reports.document import Figure
from reports.finding import Finding
from reports.learning_rate.tensor_curves import MOST_CURVES, curves, matrices, measured, named
from reports.stability.regime import SPIKE
from reports.stability.verdict import loss_of
from reports.words import counted

SPIKES_CITATION = "Wortsman et al., arXiv 2304.13013"
EPSILON_CITATION = "Wortsman et al., arXiv 2309.14322"

ALARM = 2.3
LATE = 0.75
OFTEN = 2
"""Checks of one tensor above the alarm late in a run: one alone is a rare batch, not a state."""
EPSILON_SHARE = 0.5


def outgrown(run: Run) -> list[Finding]:
    """A warning where gradients outgrow second moments late in the run, or before the loss spikes."""
    series = measured(run, "gradient_over_moment", matrices(run, "gradient_over_moment"))
    spikes = spike_steps(loss_of(run))
    late = {name: high for name, one in series.items() if len(high := _late(one, run.steps)) >= OFTEN}
    before = {name: found for name, one in series.items() if (found := _before(one, spikes)) is not None}
    if not late and not before:
        return []
    peaks = {name: float(series[name].values.max()) for name in {**before, **late}}
    worst = max(before or late, key=lambda name: peaks[name])
    record = run.last("learning_rate", "gradient_over_moment", worst)
    which = named(sorted(peaks, key=lambda name: -peaks[name]))
    if before:
        step, spike = before[worst]
        when = f"at step {step}, and the loss spiked by step {spike}"
    else:
        when = f"in {len(late[worst])} of the last checks, {late[worst].max():.2g} at most"
    return [
        Finding(
            id="learning_rate/outgrown_moments",
            level="warn",
            claim=f"Gradients outgrew their second moments ({which}): RMS of g²/v was above {ALARM} {when}.",
            value=exact(peaks[worst], method_of(record)),
            threshold=f"about 1 is calm, {ALARM} the customary alarm: {OFTEN} checks above it in the last quarter, or "
            "one before a spike in the loss",
            meaning="The second moment is out of date: it averages over times when gradients were smaller, so the step "
            "is too long just when gradients are largest. Such rises come a few steps before spikes in the loss.",
            advice=(
                "Lower β2 (0.999 to 0.99 or 0.95): the average then follows faster.",
                "Clip updates by this ratio, as StableAdamW does.",
                "Lengthen the warm-up if it happened early.",
            ),
            evidence=("outgrown-moments",) if len(series[worst]) > 1 else (),
            method=method_of(record),
            citation=SPIKES_CITATION,
        )
    ]


def spike_steps(loss: Series) -> list[tuple[int, int]]:
    """Spikes of the loss: the check at which it stands well above its lowest, or is no number, and the one before."""
    spikes = []
    best = float("inf")
    for place, value in enumerate(loss.values.tolist()):
        high = not numpy.isfinite(value) or value > SPIKE * best
        if high and place and best > 0:
            spikes.append((int(loss.steps[place - 1]), int(loss.steps[place])))
        elif numpy.isfinite(value):
            best = min(best, value)
    return spikes


def _late(one: Series, steps: int) -> numpy.ndarray:
    """Values above the alarm in the last quarter of the run."""
    return one.values[(one.steps >= LATE * steps) & (one.values > ALARM)]


def _before(one: Series, spikes: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The first step at which it stood above the alarm within the check before a spike, or at it; and the spike's."""
    for start, end in spikes:
        places = numpy.flatnonzero((one.steps >= start) & (one.steps <= end) & (one.values > ALARM))
        if len(places):
            return int(one.steps[places[0]]), end
    return None


def moment_figure(run: Run) -> list[Figure]:
    """RMS of g²/v over steps; drawn only where it ever came near the alarm."""
    series = measured(run, "gradient_over_moment", matrices(run, "gradient_over_moment"))
    series = {name: one for name, one in series.items() if len(one) > 1}
    if not any((one.values > ALARM).any() for one in series.values()):
        return []
    highest = sorted(series, key=lambda name: -float(series[name].values.max()))
    shown = [name for name in series if name in highest[:MOST_CURVES]]
    few = f" The {len(shown)} highest of {len(series)} tensors." if len(shown) < len(series) else ""
    return [
        Figure(
            id="outgrown-moments",
            title="Gradients over their second moments",
            caption=f"RMS of g²/v: about 1 in calm training; above {ALARM} (dashed) the step is longer than the second "
            "moment meant it to be." + few,
            alt=f"RMS of g²/v over steps for {counted(len(shown), 'tensor')}, log scale.",
            draw=partial(_draw, curves({name: series[name] for name in shown})),
            table=step_table(shown, [series[name] for name in shown]),
        )
    ]


def _draw(drawn: list[Line], canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    lines(axes, drawn, "RMS of g²/v", edge=Edge(ALARM, "customary alarm"), log=True)


def below_epsilon(run: Run) -> list[Finding]:
    """A warning where most second moments of a tensor are below ε."""
    last = {
        name: run.last("learning_rate", "epsilon_share", name) for name in run.layers("learning_rate", "epsilon_share")
    }
    shares = {name: record.value for name, record in last.items() if record is not None and record.value is not None}
    affected = [name for name, share in shares.items() if share > EPSILON_SHARE]
    if not affected:
        return []
    worst = max(affected, key=lambda name: shares[name])
    return [
        Finding(
            id="learning_rate/epsilon",
            level="warn",
            claim=f"In {len(affected)} of {len(shares)} tensors most second moments are below ε ({shares[worst]:.0%} "
            f"in {short(worst)}).",
            value=exact(shares[worst], "count over coordinates"),
            threshold=f"more than {EPSILON_SHARE:.0%} of a tensor's coordinates with √v̂ < ε",
            meaning="There the optimizer no longer adapts: it acts as plain SGD with rate η/ε. Gradients this small "
            "often come before trouble at scale.",
            advice=("Lower ε (1e-8 to 1e-15).", "Check that these tensors get the gradient you expect."),
            evidence=(),
            method="√v̂ with bias correction, from the optimizer's state",
            citation=EPSILON_CITATION,
        )
    ]
