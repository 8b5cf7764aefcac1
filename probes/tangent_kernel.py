"""The tangent kernel of a few fixed examples along a run: how far it has come from where it began, and towards what.

The kernel of the first measurement is kept, with the parameters that it was taken at. All that is said of the start is
said of that moment; where a run is resumed, it is the step from which it was resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import ReferenceType, ref

import numpy
import torch
from torch import Tensor

import diagnostics
from diagnostics import (
    DiagnosticsError,
    Estimate,
    Objective,
    kernel_layers,
    kernel_modes,
    linearisation,
    ntk,
    residuals,
)
from diagnostics.arguments import whole_number
from diagnostics.estimate import exact
from diagnostics.recorded.examples import lengths, rows
from probes.probe import Cost, Moment, Need, Reading
from probes.readings import reading_of
from probes.updates import last_update

GROWTH = 4
"""Modes of the first kernel are told in groups that end at the first, the fourth, the sixteenth, ..."""

SMALL = 0.01
"""Modes with an eigenvalue below this share of the largest take a hundred times as long to learn."""


@dataclass(frozen=True)
class _Start:
    """What was seen at the first measurement, and at the last."""

    step: int
    source: ReferenceType[Objective]
    some: Objective
    values: Tensor
    kernel: diagnostics.TangentKernel
    latest: tuple[int, diagnostics.TangentKernel]


@dataclass
class TangentKernel:
    """How the tangent kernel changes: its distance from the start, its alignment with the targets by layer, its ranks,
    what is left to learn along its modes, and whether outputs still change as they would to first order.

    A check takes a forward pass and a backward pass for each output on the examples, by layer: some dozens will do.

    Args:
        examples: how many of the objective's are looked at, at even distances.
        top: modes in which the energy of the targets is counted; no more than there are examples.
        every: own schedule; the Monitor's by default.

    Raises:
        DiagnosticsError: a number that is none.

    Source: Fort et al., arXiv 2010.15110; Baratin et al., arXiv 2008.00938; Chizat et al., arXiv 1812.07956.
    """

    examples: int = 64
    top: int = 10
    every: int | Callable[[int], bool] | None = None
    name: ClassVar[str] = "tangent_kernel"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective", "updates"})
    cost: ClassVar[Cost] = "expensive"
    _start: _Start | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        whole_number("examples is out of range", self.examples, "at least 4", 4)
        whole_number("top is out of range", self.top, "a number of modes from 1", 1)

    def settings(self) -> dict[str, Any]:
        """How many examples, and how many modes count as the largest."""
        return {"examples": self.examples, "top": self.top}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """The kernel by itself, then beside the first one, then beside the targets; what cannot be had says why."""
        assert moment.objective is not None
        start = self._start
        if start is None or start.source() is not moment.objective or moment.step <= start.step:
            start = None
        try:
            some = some_examples(moment.objective, self.examples) if start is None else start.some
            kernel = ntk(some, outputs="trace", by_layer=True)
        except DiagnosticsError as reason:
            yield Reading("distance", None, status="skipped", note=str(reason))
            return
        if start is None:
            values = some.space.flatten(some.space.values()).to("cpu", copy=True)
            start = _Start(moment.step, ref(moment.objective), some, values, kernel, (moment.step, kernel))
        yield from _by_itself(kernel)
        yield from _since(start, kernel, moment)
        yield from _beside_targets(some, kernel, self.top)
        yield from _left(start, kernel)
        self._start = _Start(start.step, start.source, some, start.values, start.kernel, (moment.step, kernel))


def some_examples(objective: Objective, count: int) -> Objective:
    """Examples at even distances, so that data in order of their classes hold all of them; or all there are."""
    counts = lengths(objective)
    total = sum(counts)
    chosen = torch.linspace(0, total - 1, min(count, total), dtype=torch.float64).round().long().tolist()
    pieces, terms, origins, first = [], [], [], 0
    for batch, length, (index, offset) in zip(objective.batches, counts, objective.origins, strict=True):
        places = [place - first for place in chosen if first <= place < first + length]
        if places:
            pieces.append(batch if len(places) == length else rows(batch, places))
            terms.append(objective.count_terms(pieces[-1]))
            origins.append((index, offset + places[0]))
        first += length
    if not sum(terms) > 0:
        raise DiagnosticsError("the examples hold no loss terms", attempt="more examples")
    return objective.rebatched(pieces, [one / sum(terms) for one in terms], terms, origins)


def targets_of(objective: Objective) -> Tensor:
    """What the outputs of each example are to become: classes (N,), or values (N, ...).

    Raises:
        DiagnosticsError: that cannot be told, as for tokens.
    """
    found: list[Tensor] = []
    for batch, count in zip(objective.batches, lengths(objective), strict=True):
        targets = batch.get("labels") if isinstance(batch, dict) else batch[1]
        if not (isinstance(targets, Tensor) and _of_examples(targets, count)):
            raise DiagnosticsError(
                "targets of single examples cannot be told",
                given=f"{type(targets).__name__} {tuple(getattr(targets, 'shape', ()))} for {count} examples",
                expected="a class for each example, or values",
            )
        found.append(targets)
    return torch.cat(found)


def _of_examples(targets: Tensor, count: int) -> bool:
    return targets.ndim > 0 and len(targets) == count and (targets.ndim == 1 or targets.is_floating_point())


def _by_itself(kernel: diagnostics.TangentKernel) -> Iterator[Reading]:
    yield Reading("examples", float(kernel.examples), note=f"trace kernel, {kernel.how}")
    values = kernel.eigenvalues
    yield Reading("top_eigenvalue", exact(float(values[0]), kernel.how))
    yield reading_of("trace", kernel.trace)
    yield reading_of("effective_rank", kernel.effective_rank)
    yield reading_of("condition_number", kernel.condition_number)
    total = float(kernel.trace)
    if total > 0:
        note = "share of the trace that is left when the mean over examples is taken out of the gradients"
        yield Reading(
            "spread", exact(1.0 - float(kernel.matrix.mean()) * kernel.examples / total, kernel.how), note=note
        )
    yield Reading("spectrum", float(len(values)), note="eigenvalues", array=values.cpu().numpy())


def _since(start: _Start, kernel: diagnostics.TangentKernel, moment: Moment) -> Iterator[Reading]:
    """How far kernel and parameters have come, and whether that was still first order."""
    some, since = start.some, f"since step {start.step}"
    yield reading_of("distance", start.kernel.distance(kernel), note=since)
    last, latest = start.latest
    if moment.step > last:
        gone = latest.distance(kernel)
        note = f"distance from the kernel of step {last} per step"
        yield reading_of("velocity", _scaled(gone, 1.0 / (moment.step - last)), note=note)
    away = some.space.flatten(some.space.values()) - start.values.to(some.space.device)
    size = float(torch.linalg.vector_norm(start.values, dtype=torch.float64))
    if size > 0:
        moved = float(torch.linalg.vector_norm(away, dtype=torch.float64)) / size
        yield Reading("moved", exact(moved, f"‖θ − θ₀‖/‖θ₀‖ of all parameters {since}"))
    if bool(away.any()):
        yield _first_order("linearisation", some, away, start.values, f"all steps {since}")
    try:
        update = last_update(moment.updates, some)
    except DiagnosticsError as reason:
        yield Reading("step_linearisation", None, status="skipped", note=str(reason))
    else:
        before = some.space.flatten(some.space.values()).double() - update.double()
        yield _first_order("step_linearisation", some, update, before, "the last step")


def _first_order(name: str, some: Objective, update: Tensor, at: Tensor, note: str) -> Reading:
    try:
        return reading_of(name, linearisation(some, update, at=at).error, note=note)
    except DiagnosticsError as reason:
        return Reading(name, None, status="skipped", note=str(reason))


def _beside_targets(some: Objective, kernel: diagnostics.TangentKernel, top: int) -> Iterator[Reading]:
    """Alignment as a whole and by layer, and the energy of the targets in the largest modes."""
    try:
        targets = targets_of(some)
        yield reading_of("alignment", kernel.alignment(targets, centred=True))
    except DiagnosticsError as reason:
        yield Reading("alignment", None, status="skipped", note=str(reason))
        return
    yield reading_of("alignment_uncentred", kernel.alignment(targets))
    yield reading_of("alignment_unbiased", kernel.alignment(targets, centred=True, unbiased=True))
    table = kernel_layers(kernel, targets, centred=True)
    for row in table.rows:
        layer = row.layer or "(the model itself)"
        yield reading_of("alignment", row.alignment, layer)
        yield reading_of("share", row.share, layer)
    count = min(top, kernel.examples)
    note = f"share of the targets in the {count} largest modes"
    yield reading_of("label_energy", kernel_modes(kernel, targets).top(count), note=note)
    classes = _classes(targets)
    order = numpy.arange(kernel.examples) if classes is None else numpy.argsort(classes, kind="stable")
    if classes is not None:
        note = "the class of each example, in the order of the kernel's array"
        yield Reading("classes", float(len(numpy.unique(classes))), note=note, array=classes[order])
    matrix = kernel.matrix.cpu().numpy()[numpy.ix_(order, order)].astype(numpy.float32)
    yield Reading("kernel", float(kernel.examples), note="by class, where there are classes", array=matrix)


def _classes(targets: Tensor) -> numpy.ndarray | None:
    """Of each example; None where targets are other values than one-hot vectors."""
    if targets.is_floating_point():
        rows = targets.reshape(len(targets), -1)
        if rows.shape[1] < 2 or not bool(((rows == 0) | (rows == 1)).all() & (rows.sum(1) == 1).all()):
            return None
        targets = rows.argmax(1)
    classes: numpy.ndarray = targets.cpu().numpy()
    return classes


def _left(start: _Start, kernel: diagnostics.TangentKernel) -> Iterator[Reading]:
    """Where what is left to learn stands: in the small modes of the kernel now, and by modes of the first one."""
    try:
        left = residuals(start.some)
        now = kernel_modes(kernel, left)
        then = kernel_modes(start.kernel, left)
    except DiagnosticsError as reason:
        yield Reading("residual", None, status="skipped", note=str(reason))
        return
    yield Reading("residual", exact(now.norm, "‖N ∂L/∂f‖ over all examples and outputs"))
    note = f"share of the residual in modes whose eigenvalue is below {SMALL:.0%} of the largest"
    yield reading_of("residual_small", now.below(SMALL), note=note)
    squares = (then.energies * then.norm**2).tolist()
    first, end = 0, 1
    while first < len(squares):
        name = f"mode {end}" if end - first == 1 else f"modes {first + 1} to {min(end, len(squares))}"
        size = exact(sum(squares[first:end]) ** 0.5, "norm of the residual along modes of the first kernel")
        yield Reading("residual", size, name)
        first, end = end, GROWTH * end


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(factor * estimate.value, factor * estimate.error, estimate.kind, estimate.how)
