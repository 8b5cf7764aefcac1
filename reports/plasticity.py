"""Reading plasticity: whether the network can still learn, and what has gone with it where it cannot.

The verdict rests on targets that were put to copies of the network, never on counts of units. What other probes saw in
the same run is named as the likely cause: it went along with the loss, which is no proof.
"""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate, format_value
from probes.run import Record, Run
from reports import palette
from reports.chapter import Chapter, method_of, reason_missing, step_table, unmeasured
from reports.charts import Line, lines, short, stacked
from reports.document import Figure
from reports.finding import Finding, Level

ID = "plasticity/lost"
PROBE = "plasticity"
CITATION = "Lyle et al., arXiv 2303.01486; Dohare et al., arXiv 2306.13812; Lyle et al., arXiv 2402.18762"

NOTABLE, SEVERE = 0.8, 0.5
"""A network that fits less than this share of what a fresh one fits, by all of the interval."""

ENOUGH = 0.2
"""Where a fresh network fits less of the targets, both have hardly begun, and the ratio says little."""

DEAD, GROWN, FALLEN = 0.25, 2.0, 0.5
"""A share of a layer, a factor of its norm, and what is left of its rank: so much is named as a likely cause."""


def read(run: Run) -> Chapter:
    """Finding and figure about plasticity."""
    asked = run.of(PROBE)
    if not asked:
        return Chapter()
    last, silent = run.last(PROBE, "ratio"), _silent_since(run)
    if last is None or last.value is None or silent is not None:
        reason = str(silent.note).rstrip(".") if silent is not None else reason_missing(run, PROBE)
        # A network that cannot be made anew is no matter of steps; how it can is part of the reason.
        advice = () if reason is not None and "fresh=" in reason else _MORE
        return Chapter((unmeasured(ID, "Plasticity", reason or "no ratio was recorded", advice, CITATION),))
    return Chapter((_verdict(run, last),), tuple(_figure(run)))


def _silent_since(run: Run) -> Record | None:
    """A later check that gave no ratio: what was known before may hold no longer."""
    last = run.last(PROBE, "ratio")
    later = [
        record
        for record in run.of(PROBE)
        if record.status != "ok"
        and record.name in ("ratio", "measurement")
        and not str(record.note).startswith("waits")
        and (last is None or record.step > last.step)
    ]
    return later[-1] if later else None


def _verdict(run: Run, last: Record) -> Finding:
    ratio = Estimate(last.value or 0.0, last.error or 0.0, "standard error", method_of(last))
    own, fresh = _text(run, "fitted", last.step), _text(run, "fresh_fitted", last.step)
    what = f"{own} of random targets where a fresh network fits {fresh}: a ratio of {ratio} at step {last.step}"
    known = run.last(PROBE, "fresh_fitted")
    if known is None or known.value is None or known.value < ENOUGH:
        reason = f"a fresh network fits {fresh} of random targets itself, too little to compare with"
        return unmeasured(ID, "Plasticity", reason, _MORE, CITATION)
    level: Level = "ok"
    if ratio.interval()[1] < NOTABLE:
        level = "fail" if ratio.interval()[1] < SEVERE else "warn"
    lost = level != "ok"
    return Finding(
        id=ID,
        level=level,
        claim=f"The network has lost plasticity: it fits {what}{_before(run)}."
        if lost
        else f"The network can still learn: it fits {what}.",
        value=ratio,
        threshold=f"ratio below {NOTABLE:g}, error allowed for; below {SEVERE:g} is a failure",
        meaning=" ".join((_LOST, *_causes(run))) if lost else _KEPT,
        advice=(*_at_start(run, last), *_ADVICE) if lost else (),
        evidence=("plasticity",) if len(run.series(PROBE, "fitted")) > 1 else (),
        method=method_of(last),
        citation=CITATION,
    )


_LOST = (
    "New targets are fitted worse from these weights than from fresh ones, so whatever changes in data or task from "
    "here on is learned worse too, or not at all."
)
_KEPT = (
    "From these weights new targets are fitted about as well as from fresh ones, whatever the count of dormant units."
)
_ADVICE = (
    "Put LayerNorm before the non-linearities: it keeps pre-activations in range, and with them the slopes.",
    "Hold the weights: weight decay, or a pull towards their initial values (L2 Init).",
    "Lower the learning rate, with Adam above all just after the targets have changed.",
    "When data or task change: shrink and perturb (weights × .5 and a little fresh noise), or reset dead units or the "
    "last layers, together with their optimizer state.",
)
_MORE = ("Plasticity(steps=..., lr=...): a fresh network must fit a good part of the targets in so many steps.",)


def _text(run: Run, name: str, step: int) -> str:
    record = run.last(PROBE, name)
    if record is None or record.value is None or record.step != step:
        return "an unknown share"
    return format_value(record.value, record.error)


def _before(run: Run) -> str:
    """What it was at the first check."""
    series = run.series(PROBE, "ratio")
    if len(series) < 2:
        return ""
    return f" (it was {format_value(float(series.values[0]), float(series.errors[0]))} at step {series.steps[0]})"


def _at_start(run: Run, last: Record) -> tuple[str, ...]:
    """Lost from the first check on: a new network cannot have lost anything."""
    series = run.series(PROBE, "ratio")
    first = Estimate(float(series.values[0]), float(series.errors[0]), "standard error", "")
    if int(series.steps[0]) > 0 or first.interval()[1] >= NOTABLE:
        return ()
    return (
        "It was so before the first step. If the weights were new then, the model is initialised in another way than "
        "module by module: Plasticity(fresh=make_model); or the initialisation itself is at fault.",
    )


def _causes(run: Run) -> list[str]:
    """What other probes saw go along with it, and what was not looked at."""
    looked = {"dead units": _dead(run), "the rank of features": _fallen_rank(run), "the size of weights": _grown(run)}
    seen = [text for text in looked.values() if text]
    unseen = [name for name, text in looked.items() if text is None]
    said = [f"Likely cause: {'; '.join(seen)}."] if seen else []
    if not seen and len(unseen) < len(looked):
        ruled = " and ".join(name for name, text in looked.items() if text is not None)
        said.append(f"It does not come from what was looked at: {ruled}.")
    if unseen:
        said.append(f"Not measured in this run: {', '.join(unseen)}.")
    return said


def _dead(run: Run) -> str | None:
    """The layer with most dead units; empty where there are few, None where nobody counted."""
    shares = {}
    for layer in run.layers("units", "dead"):
        dead, units = run.last("units", "dead", layer), run.last("units", "units", layer)
        if dead is not None and units is not None and units.value:
            shares[layer] = ((dead.value or 0.0) / units.value, f"{dead.value:.0f} of {units.value:.0f}")
    if not shares:
        return None
    worst = max(shares, key=lambda layer: shares[layer][0])
    share, text = shares[worst]
    return f"{text} units at layer {short(worst)} are dead" if share >= DEAD else ""


def _fallen_rank(run: Run) -> str | None:
    """The layer whose effective rank has fallen most."""
    series = {layer: run.series("ranks", "effective_rank", layer) for layer in run.layers("ranks", "effective_rank")}
    left = {
        layer: one.values[-1] / one.values[0] for layer, one in series.items() if len(one) > 1 and one.values[0] > 0
    }
    if not left:
        return None
    worst = min(left, key=lambda layer: left[layer])
    ends = series[worst].values
    text = f"features at layer {short(worst)} have come down to an effective rank of {ends[-1]:.3g}, from {ends[0]:.3g}"
    return text if left[worst] < FALLEN else ""


def _grown(run: Run) -> str | None:
    """The matrix whose norm has grown most."""
    shapes = (run.header.get("model") or {}).get("shapes", {})
    names = [name for name in run.layers("learning_rate", "weight_norm") if len(shapes.get(name, (0, 0))) >= 2]
    series = {name: run.series("learning_rate", "weight_norm", name) for name in names}
    grown = {name: one.values[-1] / one.values[0] for name, one in series.items() if len(one) > 1 and one.values[0] > 0}
    if not grown:
        return None
    most = max(grown, key=lambda name: grown[name])
    return f"the norm of {short(most)} has grown {grown[most]:.2g}-fold" if grown[most] >= GROWN else ""


def _figure(run: Run) -> list[Figure]:
    own, fresh = run.series(PROBE, "fitted"), run.series(PROBE, "fresh_fitted")
    if len(own) < 2:
        return []
    curves = [Line("this network", own, band=True)]
    if len(fresh) > 1:
        curves.append(Line("a fresh one", fresh, color=palette.SERIES[1]))
    return [
        Figure(
            id="plasticity",
            title="Share of random targets that is fitted",
            caption="By copies of the network at each check, and by fresh networks with the same targets and steps. "
            "The gap between the curves is the plasticity that training has taken away.",
            alt=f"Share fitted over steps {own.steps[0]} to {own.steps[-1]}, from {own.values[0]:.3g} to "
            f"{own.values[-1]:.3g}.",
            draw=partial(_draw, curves),
            table=step_table(tuple(curve.label for curve in curves), [curve.series for curve in curves]),
        )
    ]


def _draw(curves: list[Line], canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    lines(axes, curves, "share fitted")
