"""Reading effective learning rates: how far steps move each tensor, and what norm growth has done to the schedule."""

from __future__ import annotations

from functools import partial

import numpy
from matplotlib.figure import Figure as Canvas

from diagnostics.estimate import exact
from probes.run import Run
from probes.run.reader import Series
from reports import palette
from reports.chapter import Chapter, method_of, reason_missing, step_table, unmeasured
from reports.charts import Edge, Line, lines, short, stacked
from reports.document import Figure
from reports.finding import Finding
from reports.stability import measured_without_batch_statistics
from reports.words import counted

UPDATE_CITATION = "Stanford CS231n notes, 'Ratio of weights:updates'; Kosson et al., arXiv 2305.17212"
NORM_CITATION = "van Laarhoven, arXiv 1706.05350; Lyle et al., arXiv 2407.01800"

LARGE_UPDATE = 0.1
SMALL_UPDATE = 1e-6
ENDED = 0.1
NO_ADVICE: tuple[str, ...] = ()
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
        findings = [unmeasured("learning_rate/rates", "The effective learning rate", reason, (), NORM_CITATION)]
    return Chapter(tuple(findings), tuple(_figures(run)))


def _matrices(run: Run) -> list[str]:
    """Tensors with at least two axes: biases and gains start near zero, where a relative update says nothing."""
    shapes = run.header.get("model", {}).get("shapes", {})
    names = run.layers("learning_rate", "relative_update")
    return [name for name in names if len(shapes.get(name, (0, 0))) >= 2] or names


def _updates(run: Run) -> list[Finding]:
    step = _last_step_at_rate(run)
    sizes: dict[str, float] = {}
    for name in _matrices(run):
        series = run.series("learning_rate", "relative_update", name)
        at_step = series.values[series.steps == step]
        if len(at_step) and at_step[0] > 0:
            sizes[name] = float(at_step[0])
    if not sizes:
        return []
    largest = max(sizes, key=lambda name: sizes[name])
    middle = float(numpy.median(list(sizes.values())))
    record = run.last("learning_rate", "relative_update", largest)
    claim = f"Step {step} moved weight matrices by {middle:.2g} of their norm (median of {len(sizes)})"
    meaning, advice = "Steps are of a usual size for the weights they change.", NO_ADVICE
    if sizes[largest] > LARGE_UPDATE:
        claim += f", and {short(largest)} by {sizes[largest]:.2g}"
        meaning = (
            "A step that replaces a tenth of a matrix undoes what was learnt before. It is common in the first steps "
            "and "
            "harmful after."
        )
        advice = ("Lower the learning rate, for this group at least.", "Lengthen the warm-up.")
    elif middle < SMALL_UPDATE:
        meaning = "At this size a weight would need a million steps to change by its own length: training stands still."
        advice = (
            "See first that gradients arrive: dead units and detached layers stop updates too.",
            "Then raise the learning rate.",
        )
    return [
        Finding(
            id="learning_rate/update_size",
            level="warn" if advice else "ok",
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


def _last_step_at_rate(run: Run) -> int:
    """The last measured step at which the schedule had not yet run out: small steps at its end are meant to be."""
    steps = {
        int(step) for name in _matrices(run) for step in run.series("learning_rate", "relative_update", name).steps
    }
    rates = [run.series("learning_rate", "lr", name) for name in run.layers("learning_rate", "lr")]
    highest = {int(step): 0.0 for one in rates for step in one.steps}
    for one in rates:
        for step, value in zip(one.steps.tolist(), one.values.tolist(), strict=True):
            highest[step] = max(highest[step], value)
    peak = max(highest.values(), default=0.0)
    in_force = {step for step in steps if highest.get(step, peak) >= ENDED * peak}
    return max(in_force or steps, default=0)


def _frozen(run: Run) -> list[Finding]:
    left_out = set((run.header.get("model") or {}).get("not_in_optimizer", ()))
    names = run.layers("learning_rate", "relative_update")
    series = {name: run.series("learning_rate", "relative_update", name) for name in names}
    still = [name for name, one in series.items() if len(one) > 1 and not one.values.any() and name not in left_out]
    findings = []
    if left_out:
        findings.append(
            _not_training(
                "not_in_optimizer",
                sorted(left_out),
                "require gradients, but the optimizer does not hold them",
                "Gradients are computed for them and never used: they stay as they were initialised.",
                (
                    "Pass them to the optimizer: SGD(model.parameters(), ...) after the last layer was added.",
                    "If they are meant to be frozen, set requires_grad=False: it saves time and memory.",
                ),
                "parameters of the model against those of the optimizer",
            )
        )
    if still:
        checks = max(len(series[name]) for name in still)
        findings.append(
            _not_training(
                "not_moving",
                still,
                f"did not move in any of {checks} measured steps, though the optimizer holds them",
                "No gradient reaches them, or their group's learning rate is zero.",
                (
                    "Check that the layer is used in forward, and not cut off by detach() or no_grad().",
                    "Check the learning rate of their parameter group.",
                    "If they are meant to be frozen, set requires_grad=False: it saves memory too.",
                ),
                "tensors before and after the step, compared bit by bit",
            )
        )
    return findings


def _not_training(id: str, names: list[str], claim: str, meaning: str, advice: tuple[str, ...], method: str) -> Finding:
    shown = ", ".join(short(name) for name in names[:4])
    if len(names) > 4:
        shown += f" and {len(names) - 4} more"
    return Finding(
        id=f"learning_rate/{id}",
        level="warn",
        claim=f"{counted(len(names), 'trainable tensor')} {claim}: {shown}.",
        value=exact(len(names), method),
        threshold="every trainable tensor moves",
        meaning=meaning,
        advice=advice,
        evidence=(),
        method=method,
        citation="",
    )


def _implicit_decay(run: Run) -> list[Finding]:
    measured = run.layers("learning_rate", "lr")
    if not measured:
        return []
    if measured_without_batch_statistics(run):
        reason = "with batch normalisation in evaluation mode the weights before it are not scale-invariant"
        remedy = 'Objective(..., mode="train") measures the function that trains.'
        return [
            unmeasured("learning_rate/effective", "The rate lost to growing norms", reason, (remedy,), NORM_CITATION)
        ]
    layers = [name for name in run.layers("learning_rate", "effective") if _mostly_invariant(run, name)]
    shares = {name: share for name in layers if (share := _share_of_schedule(run, name)) is not None}
    lowest = min(shares, key=lambda name: shares[name], default="")
    claim, meaning, advice = _reading_of_invariance(layers, len(measured), lowest, shares.get(lowest))
    last = run.last("learning_rate", "effective", lowest or (layers or [""])[0])
    method = method_of(last) or "cos(w, ∇L), then the gradient at 2w"
    share = shares.get(lowest)
    return [
        Finding(
            id="learning_rate/effective",
            level="warn" if advice else "ok",
            claim=claim,
            value=exact(len(layers) if share is None else share, method),
            threshold=f"below {DECAYED:.0%} of the schedule is reported" if shares else "",
            meaning=meaning,
            advice=advice,
            evidence=("effective-rate",) if shares else (),
            method=method,
            citation=NORM_CITATION,
        )
    ]


def _reading_of_invariance(
    layers: list[str], measured: int, lowest: str, share: float | None
) -> tuple[str, str, tuple[str, ...]]:
    """Claim, meaning and advice."""
    if not layers:
        return (
            f"No tensor is scale-invariant, so the schedule in the config is the one in force ({measured} checked).",
            "Where a normalisation layer follows a weight, growing norms lower the effective rate unasked. That was "
            "not "
            "seen in this model.",
            (),
        )
    meaning = (
        "A normalisation layer follows these weights, so only their direction counts and a growing norm lowers the "
        "rate "
        "like a schedule nobody wrote. Late in training that looks like loss of plasticity."
    )
    found = f"{len(layers)} of {counted(measured, 'tensor')} {'is' if len(layers) == 1 else 'are'} scale-invariant"
    if share is None:
        return f"{found}; one measurement shows no trend.", meaning, ()
    if share >= 0.995:
        return f"{found}; none has lost rate to a growing norm.", meaning, ()
    claim = f"{found}; growing norms have left {short(lowest)} {share:.0%} of its scheduled rate."
    advice = (
        "Add weight decay on these tensors: it balances the growth.",
        "Or project them back to their initial norm now and then (Normalize-and-Project).",
    )
    return claim, meaning, advice if share < DECAYED else ()


def _mostly_invariant(run: Run, name: str) -> bool:
    """Whether a tensor passed the test at most measurements: once may be chance."""
    found = len(run.series("learning_rate", "effective", name))
    return 2 * found > len(run.series("learning_rate", "lr", name))


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
    for id, quantity, ylabel, names, title, caption, edge in (
        (
            "update-size",
            "relative_update",
            "relative update",
            _matrices(run),
            "Size of updates",
            "Norm of the realised step over the norm of the tensor. Around 10⁻³ (dashed) is customary.",
            Edge(1e-3, "customary"),
        ),
        (
            "effective-rate",
            "effective",
            "effective learning rate",
            run.layers("learning_rate", "effective"),
            "Effective learning rate of scale-invariant tensors",
            "η/‖w‖² for SGD, η/‖w‖ for adaptive optimizers: the rate at which the direction of w can change.",
            None,
        ),
    ):
        series = {name: one for name in names if len(one := run.series("learning_rate", quantity, name)) > 1}
        if series:
            figures.append(_figure(id, title, caption, series, ylabel, edge))
    return figures


def _figure(id: str, title: str, caption: str, series: dict[str, Series], ylabel: str, edge: Edge | None) -> Figure:
    """A few curves that span the layers from first to last, when there are too many to tell apart."""
    names = list(series)
    if len(names) > MOST_CURVES:
        places = numpy.unique(numpy.linspace(0, len(names) - 1, MOST_CURVES).round().astype(int))
        caption += f" {len(places)} of {len(names)} tensors, spread over the depth."
        names = [names[place] for place in places]
    curves = [
        Line(short(name), series[name], color=palette.SERIES[index % len(palette.SERIES)])
        for index, name in enumerate(names)
    ]
    return Figure(
        id=id,
        title=title,
        caption=caption,
        alt=f"{title} over steps for {counted(len(names), 'tensor')}, log scale.",
        draw=partial(_draw, curves, ylabel, edge),
        table=step_table(names, [series[name] for name in names]),
    )


def _draw(curves: list[Line], ylabel: str, edge: Edge | None, canvas: Canvas) -> None:
    (axes,) = stacked(canvas, (1,))
    lines(axes, curves, ylabel, edge=edge, log=True)
