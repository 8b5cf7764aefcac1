"""Reading effective learning rates: how far steps move each tensor, and what norm growth has done to the schedule."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import Estimate, exact
from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import Chapter, method_of, reason_missing, step_table, unmeasured
from reports.charts import Edge, Line, lines, short, stacked
from reports.document import Figure
from reports.finding import Finding

UPDATE_CITATION = "Stanford CS231n notes, 'Ratio of weights:updates'; Kosson et al., arXiv 2305.17212"
NORM_CITATION = "van Laarhoven, arXiv 1706.05350; Lyle et al., arXiv 2407.01800"

LARGE_UPDATE = 0.1
SMALL_UPDATE = 1e-6
DECAYED = 0.5
EPSILON_SHARE = 0.5
MOST_CURVES = 6


def read(run: Run) -> Chapter:
    """Findings and figures about learning rates."""
    findings = [*_updates(run), *_frozen(run), *_implicit_decay(run), *_epsilon(run)]
    if not findings:
        reason = reason_missing(run, "learning_rate")
        if reason is None:
            return Chapter()
        advice = ("An Objective and one of SGD, Adam, AdamW or RMSprop are what it needs.",)
        findings = [unmeasured("learning_rate/rates", "The effective learning rate", reason, advice, NORM_CITATION)]
    return Chapter(tuple(findings), tuple(_figures(run)))


def _matrices(run: Run) -> list[str]:
    """Tensors with at least two axes: biases and gains start near zero, where a relative update says nothing."""
    shapes = run.header.get("model", {}).get("shapes", {})
    names = run.layers("learning_rate", "relative_update")
    return [name for name in names if len(shapes.get(name, (0, 0))) >= 2] or names


def _updates(run: Run) -> list[Finding]:
    last = {name: run.last("learning_rate", "relative_update", name) for name in _matrices(run)}
    sizes = {name: record.value for name, record in last.items() if record is not None and record.value is not None}
    moving = {name: size for name, size in sizes.items() if size > 0}
    if not moving:
        return []
    record = next(record for record in last.values() if record is not None and record.value)
    largest = max(moving, key=lambda name: moving[name])
    middle = float(numpy.median(list(moving.values())))
    claim = f"Step {record.step} moved weight matrices by {middle:.2g} of their norm (median of {len(moving)})"
    level, meaning = "ok", "Steps are of a usual size for the weights they change."
    advice: tuple[str, ...] = ()
    if moving[largest] > LARGE_UPDATE:
        level = "warn"
        claim += f", and {short(largest)} by {moving[largest]:.2g}"
        meaning = (
            "A step that replaces a tenth of a matrix undoes what was learnt before. It is common in the first "
            "steps and harmful after."
        )
        advice = ("Lower the learning rate, for this group at least.", "Lengthen the warm-up.")
    elif middle < SMALL_UPDATE:
        level = "warn"
        meaning = "At this size a weight would need a million steps to change by its own length: training stands still."
        advice = (
            "See first that gradients arrive: dead units and detached layers stop updates too.",
            "Check that the schedule has not ended early; then raise the learning rate.",
        )
    return [
        Finding(
            id="learning_rate/update_size",
            level="warn" if level == "warn" else "ok",
            claim=claim + ".",
            value=exact(middle, method_of(record)),
            threshold=f"about 10⁻³ is customary; above {LARGE_UPDATE:g} or below 10⁻⁶ is reported",
            meaning=meaning,
            advice=advice,
            evidence=("update-size",) if len(run.series("learning_rate", "relative_update", largest)) > 1 else (),
            method=method_of(record),
            citation=UPDATE_CITATION,
        )
    ]


def _frozen(run: Run) -> list[Finding]:
    series = {
        name: run.series("learning_rate", "relative_update", name)
        for name in run.layers("learning_rate", "relative_update")
    }
    still = [name for name, one in series.items() if len(one) > 1 and not one.values.any()]
    if not still:
        return []
    checks = max(len(series[name]) for name in still)
    names = ", ".join(short(name) for name in still[:4]) + (", ..." if len(still) > 4 else "")
    return [
        Finding(
            id="learning_rate/not_moving",
            level="warn",
            claim=f"{len(still)} of {len(series)} trainable tensors did not move in any of {checks} measured steps: "
            f"{names}.",
            value=exact(len(still), f"exact comparison before and after {checks} steps"),
            threshold="every trainable tensor moves",
            meaning="These tensors require gradients, yet no step changes them: they get no gradient, or the "
            "optimizer does not hold them, "
            "or their learning rate is zero.",
            advice=(
                "Check that the layer is used in forward, and not cut off by detach() or no_grad().",
                "Check that the optimizer was given these parameters.",
                "If they are meant to be frozen, set requires_grad=False: it saves memory too.",
            ),
            evidence=(),
            method="tensors before and after the step, compared bit by bit",
            citation="",
        )
    ]


def _implicit_decay(run: Run) -> list[Finding]:
    layers = run.layers("learning_rate", "effective")
    measured = run.layers("learning_rate", "lr")
    if not measured:
        return []
    if not layers:
        last = run.last("learning_rate", "lr", measured[0])
        return [
            Finding(
                id="learning_rate/effective",
                level="ok",
                claim=f"No tensor is scale-invariant, so the schedule in the config is the one in force "
                f"(checked on {len(measured)} tensors).",
                value=exact(0, "count of scale-invariant tensors"),
                threshold="",
                meaning="Where a normalisation layer follows a weight, growing norms lower the effective rate unasked. "
                "That is not the case in this model.",
                advice=(),
                evidence=(),
                method=f"cos(w, gradient), then the loss at 2w and w/2; step {last.step if last else run.steps}",
                citation=NORM_CITATION,
            )
        ]
    shares = {name: share for name in layers if (share := _share_of_schedule(run, name)) is not None}
    last = run.last("learning_rate", "effective", layers[0])
    if not shares:
        return [
            Finding(
                id="learning_rate/effective",
                level="ok",
                claim=f"{len(layers)} of {len(measured)} tensors are scale-invariant; the effective rate of "
                f"{short(layers[0])} is "
                f"{last.value if last else float('nan'):.3g}.",
                value=exact(len(layers), "count of scale-invariant tensors"),
                threshold="",
                meaning="For these tensors only the direction counts, so their rate is set by their norm. One "
                "measurement shows no trend.",
                advice=(),
                evidence=(),
                method=method_of(last),
                citation=NORM_CITATION,
            )
        ]
    lowest = min(shares, key=lambda name: shares[name])
    decayed = shares[lowest] < DECAYED
    return [
        Finding(
            id="learning_rate/effective",
            level="warn" if decayed else "ok",
            claim=f"{len(layers)} of {len(measured)} tensors are scale-invariant, and growing norms have left "
            f"{short(lowest)} "
            f"{shares[lowest]:.0%} of its scheduled rate"
            if shares[lowest] < 1
            else f"{len(layers)} of {len(measured)} tensors are scale-invariant, and none has lost rate to a growing "
            "norm",
            value=Estimate(shares[lowest], 1e-3 * shares[lowest], "bound", method_of(last)),
            threshold=f"below {DECAYED:.0%} of the schedule is reported",
            meaning="A normalisation layer follows these weights, so only their direction counts and a growing norm "
            "lowers the rate like a "
            "schedule nobody wrote. Late in training that looks like loss of plasticity.",
            advice=(
                "Add weight decay on these tensors: it balances the growth.",
                "Or project them back to their initial norm now and then (Normalize-and-Project).",
            )
            if decayed
            else (),
            evidence=("effective-rate",),
            method=method_of(last),
            citation=NORM_CITATION,
        )
    ]


def _share_of_schedule(run: Run, name: str) -> float | None:
    """How much of its effective rate a tensor has kept, the schedule's own changes divided out."""
    effective, nominal = run.series("learning_rate", "effective", name), run.series("learning_rate", "lr", name)
    both = numpy.intersect1d(effective.steps, nominal.steps)
    if len(both) < 2:
        return None
    with numpy.errstate(all="ignore"):
        kept = effective.values[numpy.isin(effective.steps, both)] / nominal.values[numpy.isin(nominal.steps, both)]
    kept = kept[numpy.isfinite(kept)]
    return float(kept[-1] / kept[0]) if len(kept) > 1 else None


def _epsilon(run: Run) -> list[Finding]:
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
            "often come before trouble "
            "at scale.",
            advice=("Lower ε (1e-8 to 1e-15).", "Check that these tensors get the gradient you expect."),
            evidence=(),
            method="√v̂ with bias correction, from the optimizer's state",
            citation="Wortsman et al., arXiv 2309.14322",
        )
    ]


def _figures(run: Run) -> list[Figure]:
    figures = []
    matrices = [name for name in _matrices(run) if len(run.series("learning_rate", "relative_update", name)) > 1]
    if matrices:
        chosen = _spread(matrices, [run.series("learning_rate", "relative_update", name) for name in matrices])
        figures.append(
            _figure(
                "update-size",
                "Size of updates",
                "Norm of the realised step over the norm of the tensor. Around 10⁻³ (dashed) is customary.",
                chosen,
                "relative update",
                Edge(1e-3, "customary"),
            )
        )
    invariant = [
        name
        for name in run.layers("learning_rate", "effective")
        if len(run.series("learning_rate", "effective", name)) > 1
    ]
    if invariant:
        chosen = _spread(invariant, [run.series("learning_rate", "effective", name) for name in invariant])
        figures.append(
            _figure(
                "effective-rate",
                "Effective learning rate of scale-invariant tensors",
                "η/‖w‖² for SGD, η/‖w‖ for adaptive optimizers: the rate at which the direction of w can change.",
                chosen,
                "effective learning rate",
                None,
            )
        )
    return figures


def _spread(names: list[str], series: list[Series]) -> list[tuple[str, Series]]:
    """A few curves that span the layers from first to last, when there are too many to tell apart."""
    if len(names) <= MOST_CURVES:
        return list(zip(names, series, strict=True))
    places = numpy.unique(numpy.linspace(0, len(names) - 1, MOST_CURVES).round().astype(int))
    return [(names[place], series[place]) for place in places]


def _figure(
    id: str, title: str, caption: str, chosen: list[tuple[str, Series]], ylabel: str, edge: Edge | None
) -> Figure:
    curves = [
        Line(short(name), one, color=palette.SERIES[index % len(palette.SERIES)])
        for index, (name, one) in enumerate(chosen)
    ]
    return Figure(
        id=id,
        title=title,
        caption=caption,
        alt=f"{title} over steps for {len(chosen)} tensors, log scale.",
        draw=partial(_draw, curves, ylabel, edge),
        table=step_table(tuple(name for name, _ in chosen), [one for _, one in chosen]),
    )


def _draw(curves: list[Line], ylabel: str, edge: Edge | None, canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    lines(axes, curves, ylabel, edge=edge, log=True)
