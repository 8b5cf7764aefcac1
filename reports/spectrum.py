"""Reading Hessian spectra: saddles, the shape of the bulk, which layer is curved, and where the gradient lies."""

from __future__ import annotations

from dataclasses import replace

import numpy

from diagnostics.estimate import Estimate, format_value
from probes.run import Record, Run
from reports.chapter import Chapter, method_of, reason_missing, unmeasured
from reports.charts import short
from reports.finding import Finding
from reports.spectrum_figures import figures
from reports.stability import measured_without_batch_statistics
from reports.words import counted

CITATION = "Sagun et al., arXiv 1706.04454; Ghorbani et al., arXiv 1901.10159"
OUTLIERS = "Sagun et al., arXiv 1706.04454; Papyan, arXiv 1811.07062"
SUBSPACE = "Gur-Ari et al., arXiv 1812.04754; Song et al., arXiv 2405.16002"

STRONG = 0.5
"""Negative curvature as a share of the bulk's positive end, from which a standstill is called a saddle. At the
standstills we planted the two ends were equal; late in healthy runs it was at most 0.03. Fresh networks have as much as
those that stand still, but they move."""
STILL, STILL_STEPS = 0.02, 50
"""The loss stands still when it stays within this share of itself for so many steps."""
PROMISE = 0.01
"""Share of the loss that the best step along the gradient would gain. At standstills it was at most 0.7 of this, in
runs that trained at least 1.4 times it."""
UNRESOLVED = 0.2
"""A share of directions with a larger error than this is not known."""
ALONE_SHARE, ALONE_TOP = 0.9, 20.0
"""One layer is alone with its curvature at this share of the trace and so many times the next largest eigenvalue."""


def read(run: Run) -> Chapter:
    """Findings and figures about the spectrum of the Hessian."""
    records = [record for record in run.records if record.probe == "spectrum"]
    if not records:
        return Chapter()
    drawn = figures(run)
    shown = {figure.id for figure in drawn}
    if not any(run.last("spectrum", name) for name in ("density", "smallest", "largest", "gradient_share")):
        reason = reason_missing(run, "spectrum") or "no number came of it"
        return Chapter((unmeasured("spectrum/bulk", "The Hessian's spectrum", reason, (), CITATION),), tuple(drawn))
    findings = [part for part in (_bulk(run), _negative(run), _layers(run), _directions(run)) if part is not None]
    if measured_without_batch_statistics(run):
        findings = [_of_another_function()]
    kept = (replace(one, evidence=tuple(name for name in one.evidence if name in shown)) for one in findings)
    return Chapter(tuple(kept), tuple(drawn))


def _missing(run: Run, id: str, what: str, names: tuple[str, ...]) -> Finding | None:
    """Why a part gave nothing; None where nobody asked for it."""
    found = [record for record in run.records if record.probe == "spectrum" and record.name in names]
    if not found:
        return None
    reason = str(found[-1].note or "no number came of it").rstrip(".")
    return unmeasured(id, what, reason, (), CITATION)


# --- negative curvature ---


def _negative(run: Run) -> Finding | None:
    lowest = run.last("spectrum", "smallest")
    highest = _at(run, "largest", None if lowest is None else lowest.step)
    if lowest is None or highest is None:
        return _missing(run, "spectrum/negative", "Negative curvature", ("largest", "smallest"))
    low, step = _value(lowest), lowest.step
    ends = f"eigenvalues run from {_number(lowest)} to {_number(highest)} at step {step}"
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
    number, edge = _at(run, "outliers", step), _at(run, "edge", step)
    apart = number is not None and _value(number) > 0 and edge is not None
    bulk = _value(edge) if apart and edge is not None else _value(highest)
    if low - (lowest.error or 0.0) >= 0:
        return replace(finding, claim=f"No negative curvature was found: {ends}.")
    if low + (lowest.error or 0.0) > -STRONG * bulk:
        return finding
    moved = _standstill(run, step)
    if moved is None:
        known = "the loss does not stand still there, as far as was measured"
        return replace(finding, claim=f"Negative curvature is about as strong as positive: {ends}; {known}.")
    reach = f"({_number(lowest)}) as {'the bulk of it' if apart else 'it'} does up ({bulk:.3g})"
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
    gradient, highest = _at(run, "gradient_norm", step), _at(run, "largest", step)
    if not before or step not in losses or gradient is None or highest is None:
        return None
    window = numpy.array([value for one, value in losses.items() if max(before) <= one <= step])
    level = abs(losses[step])
    if not (numpy.isfinite(window).all() and level > 0):
        return None
    moved = float(numpy.ptp(window)) / level
    along = _at(run, "gradient_curvature", step)
    # Where the gradient itself points down a curved way, a step of the safe length gains at least so much.
    curvature = _value(along) if along is not None and _value(along) > 0 else _value(highest)
    promise = _value(gradient) ** 2 / (2 * curvature * level) if curvature > 0 else float("inf")
    return moved if moved <= STILL and promise <= PROMISE else None


# --- the bulk and what stands apart from it ---


def _bulk(run: Run) -> Finding | None:
    flat, total = run.last("spectrum", "flat_mass"), run.last("spectrum", "density")
    if flat is None or total is None:
        reason = reason_missing(run, "spectrum")
        return (
            None if reason is None else unmeasured("spectrum/bulk", "The shape of the spectrum", reason, (), CITATION)
        )
    share, error = _value(flat), flat.error or 0.0
    of = f"of {int(_value(total)):,} directions"
    if error > UNRESOLVED:
        claim = f"How many directions are flat is not resolved: {_percent(flat)} {of}"
    elif share >= 0.5:
        claim = f"Most directions are flat: {_percent(flat)} {of}"
    else:
        claim = f"Curvature is spread over many directions: {_percent(flat)} {of} are flat"
    return Finding(
        id="spectrum/bulk",
        level="ok",
        claim=f"{claim}, at step {flat.step}{_down(run, flat.step)}{_apart(run, flat.step)}.",
        value=Estimate(share, error, "standard error", method_of(flat)),
        threshold="",
        meaning="A direction is flat while its curvature is below 1 % of the largest, up or down. Many flat ones and "
        "a few sharp ones are the usual shape once a network has learnt something. In classifiers often about as many "
        "eigenvalues as classes stand apart, and they are what a learning rate has to respect. One is said to stand "
        "apart only where the gap below it cannot be chance.",
        advice=("More Lanczos steps resolve it: Spectrum(steps=64).",) if error > UNRESOLVED else (),
        evidence=("spectrum-density",),
        method=method_of(flat),
        citation=OUTLIERS,
    )


def _down(run: Run, step: int) -> str:
    down = _at(run, "downward_mass", step)
    return "" if down is None or (down.error or 0.0) > UNRESOLVED else f"; {_percent(down)} curve down"


def _apart(run: Run, step: int) -> str:
    number, edge, outputs = (_at(run, name, step) for name in ("outliers", "edge", "outputs"))
    if number is None:
        return ""
    count = int(_value(number))
    if not count:
        return "; no eigenvalue stands apart from the rest"
    text = f"; {counted(count, 'eigenvalue')} {'stands' if count == 1 else 'stand'} apart"
    if edge is not None:
        text += f" from the rest, which ends at {_value(edge):.3g}"
    return text + (
        f" (the model has {int(_value(outputs))} outputs)" if outputs and 1 < _value(outputs) <= 1000 else ""
    )


# --- layers ---


def _layers(run: Run) -> Finding | None:
    names = run.layers("spectrum", "top")
    tops = {name: one for name in names if (one := run.last("spectrum", "top", name)) is not None}
    step = max((one.step for one in tops.values()), default=0)
    tops = {name: one for name, one in tops.items() if one.step == step}
    if len(tops) < 2:
        return None if tops else _missing(run, "spectrum/layers", "Curvature by layer", ("layers",))
    first, second = sorted(tops, key=lambda name: -_value(tops[name]))[:2]
    share = _at(run, "share", step, first)
    times = _value(tops[first]) / _value(tops[second]) if _value(tops[second]) > 0 else float("inf")
    held = f", with {_percent(share)} of the trace" if share is not None else ""
    finding = Finding(
        id="spectrum/layers",
        level="ok",
        claim=f"Curvature is shared among {len(tops)} layers: the sharpest by itself is layer {short(first)} "
        f"({_number(tops[first])}{held}), at step {step}.",
        value=Estimate(_value(tops[first]), tops[first].error or 0.0, "residual", method_of(tops[first])),
        threshold=f"{ALONE_TOP:g} times the next largest eigenvalue, with {ALONE_SHARE:.0%} of the trace",
        meaning="Each layer's own block of the Hessian. The largest eigenvalue of the whole is at least that of any "
        "block. The layer with the largest is where a learning rate common to all first becomes too large.",
        advice=(),
        evidence=("spectrum-layers",),
        method=method_of(tops[first]),
        citation=CITATION,
    )
    alone = share is not None and _value(share) - 2 * (share.error or 0.0) >= ALONE_SHARE
    if not alone or times < ALONE_TOP:
        return finding
    return replace(
        finding,
        level="warn",
        claim=f"One layer holds nearly all the curvature: layer {short(first)} ({_number(tops[first])}{held}) is "
        f"{times:.3g} times as sharp as the next, {short(second)}, at step {step}.",
        meaning="With one learning rate for all layers, this one sets how large it can be, and the others could take "
        "larger steps. Adaptive optimizers even out a part of this by themselves.",
        advice=(
            "Look at what comes into this layer: inputs that are not scaled to about unit size are the usual cause.",
            "Look at the layers around it: with very small weights or saturated units they have no curvature to share.",
            "Try a smaller learning rate for this layer in a parameter group of its own, or normalisation before it.",
        ),
    )


# --- the sharpest directions ---


def _directions(run: Run) -> Finding | None:
    share = run.last("spectrum", "gradient_share")
    kept, overlap = run.last("spectrum", "kept_curvature"), run.last("spectrum", "overlap")
    main = share or overlap
    if main is None:
        return _missing(run, "spectrum/directions", "The gradient's place", ("largest", "gradient_share"))
    step = main.step
    parts = [f"hold {_percent(share)} of the gradient"] if share is not None else []
    if kept is not None and overlap is not None and kept.step == overlap.step == step:
        since = f"{_percent(kept)} of their curvature (overlap of the two spaces {_number(overlap)})"
        parts.append(f"those of the check before still carry {since}")
    return Finding(
        id="spectrum/directions",
        level="ok",
        claim=f"The {_directions_meant(main)} {'; '.join(parts) or 'were followed'}, at step {step}.",
        value=Estimate(_value(main), main.error or 0.0, "residual", method_of(main)),
        threshold="",
        meaning="Of the gradient's square, that is. A large share mostly means that steps go to and fro across the "
        "valley, held short by the sharpest curvature; the way along it is made by the rest. An overlap of 1 means "
        "that the sharpest directions stayed the same between two checks, 0 that they are all new. Where many "
        "curvatures are about equal, as at the edge of stability, directions change places easily, and the curvature "
        "carried tells more than the overlap.",
        advice=(),
        evidence=("spectrum-directions",),
        method=method_of(main),
        citation=SUBSPACE,
    )


def _directions_meant(record: Record) -> str:
    """What k was, in the probe's own words."""
    how = method_of(record)
    number = how.partition("k = ")[2].partition(" ")[0]
    return f"{number} sharpest directions" if number.isdigit() else "sharpest directions"


def _of_another_function() -> Finding:
    reason = "the model trains with batch normalisation and was measured in evaluation mode, as another function"
    advice = ('Objective(..., mode="train") measures the function that trains.',)
    told = unmeasured("spectrum/bulk", "The spectrum of what trains", reason, advice, CITATION)
    return replace(told, evidence=("spectrum-density", "spectrum-ends", "spectrum-layers", "spectrum-directions"))


def _at(run: Run, name: str, step: int | None, layer: str | None = None) -> Record | None:
    """The finite number of a quantity at one step."""
    found = [record for record in run.records if (record.probe, record.name) == ("spectrum", name)]
    found = [one for one in found if one.layer == layer and one.step == step and one.status == "ok"]
    return next((one for one in reversed(found) if one.value is not None and numpy.isfinite(one.value)), None)


def _value(record: Record) -> float:
    return float("nan") if record.value is None else record.value


def _number(record: Record) -> str:
    """Value and error; a search that was given up is said to be one."""
    text = format_value(_value(record), record.error)
    return f"{text} (not converged)" if "NOT CONVERGED" in (record.note or "") else text


def _percent(record: Record) -> str:
    """A share with its error, in per cent."""
    return _share(_value(record), record.error or 0.0)


def _share(value: float, error: float = 0.0) -> str:
    # A tenth of a per cent is as close as anyone reads a share.
    return "less than 0.1 %" if abs(value) + error < 1e-3 else f"{format_value(100 * value, max(100 * error, 0.1))} %"
