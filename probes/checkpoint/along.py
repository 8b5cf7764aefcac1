"""What is read along a path of checkpoints: the weights at each, the losses, and the line from the first to the last.

Readings are kept as they come, so that a budget that is spent, or an interrupt, leaves those that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from diagnostics import (
    DiagnosticsError,
    LossBarrier,
    Objective,
    loss_barrier,
    match_units,
    spectral_drift,
    weight_changes,
    weight_trajectory,
)
from diagnostics.estimate import exact
from diagnostics.trajectory.path import STATISTICS
from diagnostics.trajectory.plane import path_plane
from probes.checkpoint.allowance import Allowance, OutOfTimeError
from probes.checkpoint.order import Order
from probes.checkpoint.resident import Pages
from probes.probe import Reading
from probes.readings import reading_of

Told = Iterator[tuple[int, Reading]]
"""Steps, and what was read there."""

STAGES = {
    "building the objectives": 1,
    "following the weights": 2,
    "measuring the losses": 2,
    "measuring the barrier": 4,
    "measuring the plane": 8,
}
"""What is done in turn, and about how long each takes beside the others."""


class Along:
    """What was read along a path so far.

    Args:
        order: the checkpoints.
        allowance: the time there is for it.
        progress: told what is being done, before each stage.
    """

    def __init__(self, order: Order, allowance: Allowance, progress: Callable[[str], None]) -> None:
        self.readings: list[tuple[int, Reading]] = []
        self.ended: str | None = None
        """What was being done when it was interrupted; None where it was not."""
        self._order, self._allowance, self._progress = order, allowance, progress
        self._stage = ""

    def measure(self, build: Callable[[int], Objective] | None) -> None:
        """Everything, as far as the time goes.

        Args:
            build: makes the Objective of one checkpoint, by its place; None where there is no task.
        """
        last = self._order.steps[-1]
        if build is None:
            self._write(("following the weights", _weights(self._order, None)))
            return
        self._begin("building the objectives")
        # One for each: a task may build its model as it likes.
        objectives = [build(place) for place in range(len(self._order.checkpoints))]
        trained = {name for name, one in objectives[-1].model.named_parameters() if one.requires_grad}
        self._write(
            ("following the weights", _weights(self._order, trained)),
            ("measuring the losses", _losses(self._order, objectives)),
            ("measuring the barrier", _line(last, objectives[0], objectives[-1])),
            ("measuring the plane", _plane(last, objectives)),
        )

    def interrupted(self) -> None:
        """Put down that it was."""
        self.ended = f"while {self._stage}"
        self._skip(f"interrupted {self.ended}")

    def _begin(self, stage: str) -> None:
        self._stage = stage
        self._progress(stage)

    def _write(self, *stages: tuple[str, Told]) -> None:
        try:
            for stage, told in stages:
                self._begin(stage)
                with self._allowance.spend():
                    for step, reading in told:
                        self.readings.append((step, reading))
        except OutOfTimeError:
            self._skip(f"the budget of {self._allowance.seconds:g} s was spent while {self._stage}")

    def _skip(self, note: str) -> None:
        self.readings.append((self._order.steps[-1], Reading("measurement", None, status="skipped", note=note)))


def _weights(order: Order, trained: set[str] | None) -> Told:
    states = [checkpoint.parameters for checkpoint in order.checkpoints]
    pages = Pages(*(file for checkpoint in order.checkpoints for file in checkpoint.files))
    path = weight_trajectory(states, read=pages.let_go)
    last = order.steps[-1]
    for step, distance in zip(order.steps, path.displacement, strict=True):
        yield step, reading_of("displacement", distance)
    for step, length in zip(order.steps[1:], path.steps, strict=True):
        yield step, reading_of("step_length", length)
    for step, cosine in zip(order.steps[2:], path.cosines, strict=True):
        yield step, reading_of("cosine", cosine)
    yield last, reading_of("back", path.back)
    for name, share in zip(("explained_first", "explained_second"), path.explained, strict=True):
        yield last, reading_of(name, share)
    if path.explained[0].determined:
        for step, (first, second) in zip(order.steps, path.coordinates.tolist(), strict=True):
            yield step, Reading("first_direction", first, note="principal component of the checkpoints")
            yield step, Reading("second_direction", second, note="principal component of the checkpoints")
    for row in path.rows:
        if row.name.endswith(STATISTICS):
            continue
        note = row.note or ("" if row.size else "it was all zero at first")
        if note:
            yield last, Reading("relative_displacement", None, row.name, note=note, status="skipped")
            continue
        for step, displacement in zip(order.steps, row.displacement, strict=True):
            relative = exact(displacement / row.size, "‖W_k − W_0‖/‖W_0‖")
            yield step, reading_of("relative_displacement", relative, row.name)
    yield from _changes(last, states, {row.name for row in path.rows if not row.note}, trained)
    for drift in spectral_drift(states, read=pages.let_go):
        if drift.note:
            yield last, Reading("spectral_drift", None, drift.name, note=drift.note, status="skipped")
            continue
        for step, estimate in zip(order.steps, drift.drift, strict=True):
            yield step, reading_of("spectral_drift", estimate, drift.name)


def _changes(last: int, states: Sequence[Mapping[str, Tensor]], compared: set[str], trained: set[str] | None) -> Told:
    changes = weight_changes(states)
    # A task may give its model other names than the checkpoint has; then nothing is known of what should train.
    known = trained if trained and trained & compared else None
    for row in changes.rows:
        if row.name in compared and row.changed is not None and (known is None or row.name in known):
            note = f"of {changes.intervals} intervals, compared bit by bit"
            yield last, Reading("changed_in", float(row.changed), row.name, note=note)


def _losses(order: Order, objectives: Sequence[Objective]) -> Told:
    if not all(same_data(objectives[0], other) for other in objectives[1:]):
        reason = "the task makes other batches for each checkpoint; with a seed in build(checkpoint) they are the same"
        yield order.steps[-1], Reading("loss", None, note=reason, status="skipped")
        return
    for step, objective in zip(order.steps, objectives, strict=True):
        try:
            yield step, Reading("loss", objective.loss(), note=f"on {objective.description}")
        # The user's model may raise anything; weights can still be compared.
        except Exception as problem:  # noqa: BLE001
            yield step, Reading("loss", None, note=f"{type(problem).__name__}: {problem}", status="failed")


def same_data(one: Objective, other: Objective) -> bool:
    """Whether two objectives are of the same batches, to the bit."""
    leaves = [tree_leaves(objective.batches) for objective in (one, other)]
    return len(leaves[0]) == len(leaves[1]) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or bool(a == b)
        for a, b in zip(*leaves, strict=True)
    )


def _line(last: int, first: Objective, objective: Objective) -> Told:
    try:
        ends = [_parameters(one) for one in (first, objective)]
        yield last, _barrier("barrier", loss_barrier(objective, *ends))
        matching = match_units(objective, *ends)
        if matching.note:
            yield last, Reading("matched_barrier", None, note=f"units not matched: {matching.note}", status="skipped")
            return
        yield last, Reading("matched_units", float(matching.moved), note=f"of {matching.units} hidden units")
        if matching.moved:
            yield last, _barrier("matched_barrier", loss_barrier(objective, ends[0], matching.parameters))
    # As above.
    except Exception as problem:  # noqa: BLE001
        yield last, Reading("barrier", None, note=f"{type(problem).__name__}: {problem}", status="failed")


def _plane(last: int, objectives: Sequence[Objective]) -> Told:
    if len(objectives) < 3:
        return
    try:
        found = path_plane(objectives[-1], [one.space.flatten(one.space.values()) for one in objectives])
    except DiagnosticsError as reason:
        yield last, Reading("plane", None, note=str(reason), status="skipped")
        return
    # As above.
    except Exception as problem:  # noqa: BLE001
        yield last, Reading("plane", None, note=f"{type(problem).__name__}: {problem}", status="failed")
        return
    grid = numpy.full((len(found.alphas) + 1, len(found.betas) + 1), numpy.nan)
    grid[1:, 0], grid[0, 1:], grid[1:, 1:] = found.alphas.numpy(), found.betas.numpy(), found.losses.numpy()
    note = f"share of the path's variance in the plane; {found.how}; the array has α in its column, β in its row"
    yield last, Reading("plane", found.explained, note=note, array=grid)
    shadows = numpy.concatenate([found.coordinates.numpy().T, found.shadows.numpy()[None]])
    note = "the loss of the last one's shadow on the plane; the array is α, β and the loss of each"
    yield last, Reading("plane_path", float(found.shadows[-1]), note=note, array=shadows)


def _parameters(objective: Objective) -> dict[str, Any]:
    return {name: tensor.detach().clone() for name, tensor in objective.model.named_parameters()}


def _barrier(name: str, line: LossBarrier) -> Reading:
    array = numpy.stack([line.alphas.numpy(), line.losses.numpy()])
    reading = reading_of(name, line.barrier)
    return Reading(**{**vars(reading), "array": array})
