"""Reading Hessian spectra: saddles, the shape of the bulk, which layer is curved, and where the gradient lies."""

from __future__ import annotations

from dataclasses import replace

from diagnostics.estimate import Estimate
from probes.run import Record, Run
from reports.chapter import Chapter, method_of, reason_missing, unmeasured
from reports.charts import short
from reports.finding import Finding
from reports.spectrum import saddle
from reports.spectrum.figures import figures
from reports.spectrum.records import CITATION, at_step, missing, number, percent, resolved, value_of
from reports.stability.verdict import measured_without_batch_statistics
from reports.words import counted

OUTLIERS = "Sagun et al., arXiv 1706.04454; Papyan, arXiv 1811.07062"
SUBSPACE = "Gur-Ari et al., arXiv 1812.04754; Song et al., arXiv 2405.16002"

ALONE_SHARE, ALONE_TOP = 0.9, 20.0
"""One layer is alone with its curvature at this share of the trace and so many times the next largest eigenvalue."""


def read(run: Run) -> Chapter:
    """Findings and figures about the spectrum of the Hessian."""
    records = run.of("spectrum")
    if not records:
        return Chapter()
    drawn = figures(run)
    shown = {figure.id for figure in drawn}
    if not any(run.last("spectrum", name) for name in ("density", "smallest", "largest", "gradient_share")):
        reason = reason_missing(run, "spectrum") or "no number came of it"
        return Chapter((unmeasured("spectrum/bulk", "The Hessian's spectrum", reason, (), CITATION),), tuple(drawn))
    findings = [part for part in (_bulk(run), saddle.read(run), _layers(run), _directions(run)) if part is not None]
    if measured_without_batch_statistics(run):
        findings = [_of_another_function()]
    kept = (replace(one, evidence=tuple(name for name in one.evidence if name in shown)) for one in findings)
    return Chapter(tuple(kept), tuple(drawn))


# --- the bulk and what stands apart from it ---


def _bulk(run: Run) -> Finding | None:
    flat, total = run.last("spectrum", "flat_mass"), run.last("spectrum", "density")
    if flat is None or total is None:
        reason = reason_missing(run, "spectrum")
        return (
            None if reason is None else unmeasured("spectrum/bulk", "The shape of the spectrum", reason, (), CITATION)
        )
    share, error = value_of(flat), flat.error or 0.0
    of = f"of {int(value_of(total)):,} directions"
    if not resolved(flat):
        claim = f"How many {of} are flat is undetermined"
    elif share >= 0.5:
        claim = f"Most directions are flat: {percent(flat)} {of}"
    else:
        claim = f"Curvature is spread over many directions: {percent(flat)} {of} are flat"
    return Finding(
        id="spectrum/bulk",
        level="ok",
        claim=f"{claim}, at step {flat.step}{_down(run, flat.step)}{_apart(run, flat.step)}.",
        value=Estimate(share, error, "standard error", method_of(flat)) if resolved(flat) else None,
        threshold="",
        meaning="A direction is flat while its curvature is below 1 % of the largest, up or down. Many flat ones and "
        "a few sharp ones are the usual shape once a network has learnt something. In classifiers often about as many "
        "eigenvalues as classes stand apart, and they are what a learning rate has to respect. One is said to stand "
        "apart only where the gap below it cannot be chance.",
        advice=("More Lanczos steps resolve it: Spectrum(steps=64).",) if not resolved(flat) else (),
        evidence=("spectrum-density",),
        method=method_of(flat),
        citation=OUTLIERS,
    )


def _down(run: Run, step: int) -> str:
    down = at_step(run, "downward_mass", step)
    return f"; {percent(down)} curve down" if down is not None and resolved(down) else ""


def _apart(run: Run, step: int) -> str:
    found, edge, outputs = (at_step(run, name, step) for name in ("outliers", "edge", "outputs"))
    if found is None:
        return ""
    count = int(value_of(found))
    if not count:
        return "; no eigenvalue stands apart from the rest"
    text = f"; {counted(count, 'eigenvalue')} {'stands' if count == 1 else 'stand'} apart"
    if edge is not None:
        text += f" from the rest, which ends at {value_of(edge):.3g}"
    return text + (
        f" (the model has {int(value_of(outputs))} outputs)" if outputs and 1 < value_of(outputs) <= 1000 else ""
    )


# --- layers ---


def _layers(run: Run) -> Finding | None:
    names = run.layers("spectrum", "top")
    tops = {name: one for name in names if (one := run.last("spectrum", "top", name)) is not None}
    step = max((one.step for one in tops.values()), default=0)
    tops = {name: one for name, one in tops.items() if one.step == step}
    if len(tops) < 2:
        return None if tops else missing(run, "spectrum/layers", "Curvature by layer", ("layers",))
    first, second = sorted(tops, key=lambda name: -value_of(tops[name]))[:2]
    if value_of(tops[first]) <= (tops[first].error or 0.0):
        reason = f"no layer's largest eigenvalue is above its error at step {step}"
        return unmeasured("spectrum/layers", "Curvature by layer", reason, (), CITATION)
    share = at_step(run, "share", step, first)
    next_one = value_of(tops[second])
    none_else = next_one <= (tops[second].error or 0.0)
    times = float("inf") if none_else else value_of(tops[first]) / next_one
    held = f", with {percent(share)} of the trace" if share is not None else ""
    finding = Finding(
        id="spectrum/layers",
        level="ok",
        claim=f"Curvature is shared among {len(tops)} layers: the sharpest by itself is layer {short(first)} "
        f"({number(tops[first])}{held}), at step {step}.",
        value=Estimate(value_of(tops[first]), tops[first].error or 0.0, "residual", method_of(tops[first])),
        threshold=f"{ALONE_TOP:g} times the next largest eigenvalue, with {ALONE_SHARE:.0%} of the trace",
        meaning="Each layer's own block of the Hessian. The largest eigenvalue of the whole is at least that of any "
        "block. The layer with the largest is where a learning rate common to all first becomes too large.",
        advice=(),
        evidence=("spectrum-layers",),
        method=method_of(tops[first]),
        citation=CITATION,
    )
    alone = share is not None and resolved(share) and value_of(share) - 2 * (share.error or 0.0) >= ALONE_SHARE
    if not alone or times < ALONE_TOP:
        return finding
    beside = (
        "has some, and no other layer any above its error"
        if none_else
        else f"is {times:.3g} times as sharp as the next, {short(second)}"
    )
    return replace(
        finding,
        level="warn",
        claim=f"One layer holds nearly all the curvature: layer {short(first)} ({number(tops[first])}{held}) {beside}, "
        f"at step {step}.",
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
        return missing(run, "spectrum/directions", "The gradient's place", ("largest", "gradient_share"))
    step = main.step
    followed = kept is not None and overlap is not None and kept.step == overlap.step == step
    known = next((one for one in (share, overlap) if one is not None and one.step == step and resolved(one)), None)
    if known is None and not (followed and resolved(kept)):
        reason = f"they cannot be told from the directions that come next, at step {step}"
        return unmeasured("spectrum/directions", "What lies in the sharpest directions", reason, (), CITATION)
    parts = [f"hold {percent(share)} of the gradient"] if share is not None else []
    if kept is not None and overlap is not None and followed:
        same = number(overlap) if resolved(overlap) else "undetermined"
        since = f"{percent(kept)} of their curvature (overlap of the two spaces {same})"
        parts.append(f"those of the check before still carry {since}")
    return Finding(
        id="spectrum/directions",
        level="ok",
        claim=f"The {_directions_meant(main)} {'; '.join(parts) or 'were followed'}, at step {step}.",
        value=None if known is None else Estimate(value_of(known), known.error or 0.0, "residual", method_of(known)),
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
    k = how.partition("k = ")[2].partition(" ")[0]
    return f"{k} sharpest directions" if k.isdigit() else "sharpest directions"


def _of_another_function() -> Finding:
    reason = "the model trains with batch normalisation and was measured in evaluation mode, as another function"
    advice = ('Objective(..., mode="train") measures the function that trains.',)
    told = unmeasured("spectrum/bulk", "The spectrum of what trains", reason, advice, CITATION)
    return replace(told, evidence=("spectrum-density", "spectrum-ends", "spectrum-layers", "spectrum-directions"))
