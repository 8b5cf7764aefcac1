"""Measuring several checkpoints of one run: the path between them, and with a task the loss along it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
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
from probes.checkpoint.errors import listed
from probes.checkpoint.examine import examine
from probes.checkpoint.load import load_checkpoint
from probes.checkpoint.order import Order, in_order
from probes.checkpoint.rebuild import rebuild
from probes.checkpoint.resident import Pages
from probes.journal import to_record
from probes.probe import Reading
from probes.readings import reading_of
from probes.run.reader import Run, array_key
from probes.run.records import Record

PROBE = "trajectory"

Told = Iterator[tuple[int, Reading]]
"""Steps, and what was read there."""


def follow(
    paths: Sequence[Path],
    *,
    task: str | None = None,
    text: Path | None = None,
    trust: bool = False,
    allow: Sequence[str] = (),
    only: Collection[str] | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
) -> Run:
    """Open several checkpoints of one run and measure the path between them, and the last of them as by itself.

    Args:
        paths: two or more files or folders, in any order.
        task: see ``build_task``; with one, the loss of each checkpoint, and along the line from the first to the last.
        text: see ``language_model``; for folders of Hugging Face, instead of a task.
        trust: see ``load_checkpoint``.
        allow: see ``load_checkpoint``.
        only: probes wanted, by name, this one being ``"trajectory"``; None for all.
        device: see ``build_task``.
        seed: see ``examine``; the task draws the same for every checkpoint.
        progress: told what is being done, before each stage.

    Raises:
        DiagnosticsError: fewer than two checkpoints, one that cannot be used, or two that are not of one model.
    """
    if len({path.resolve() for path in paths}) < 2:
        raise DiagnosticsError(
            "one checkpoint is no trajectory", given=f"{len(paths)} paths", expected="two or more different checkpoints"
        )
    progress("opening the files")
    order = in_order([load_checkpoint(path, trust=trust, allow=allow) for path in paths])
    last = order.checkpoints[-1]
    others = None if only is None else [name for name in only if name != PROBE]
    run = examine(
        last.path,
        task=task,
        text=text,
        trust=trust,
        allow=allow,
        only=others,
        device=device,
        seed=seed,
        progress=progress,
    )
    arrays = {(one.probe, array_key(one)): found for one in run.records if (found := run.array(one)) is not None}
    records = [_moved(record, order.steps[-1]) for record in run.records]
    if only is None or PROBE in only:
        told: list[tuple[int, Reading]] = []
        trained: set[str] | None = None
        if task is not None or text is not None:
            progress("the loss along the path")
            # One for each: a task may build its model as it likes.
            objectives = [
                rebuild(checkpoint, task=task, text=text, device=device, seed=seed)[0]
                for checkpoint in order.checkpoints
            ]
            trained = {name for name, one in objectives[-1].model.named_parameters() if one.requires_grad}
            told += _losses(order, objectives)
            told += _line(order.steps[-1], objectives[0], objectives[-1])
        progress("following the weights")
        told += _weights(order, trained)
        for step, reading in told:
            records.append(to_record(PROBE, step, reading))
            if reading.array is not None:
                arrays[PROBE, array_key(records[-1])] = reading.array
    folders = {checkpoint.path.parent for checkpoint in order.checkpoints}
    together = len(folders) == 1
    where = f" in {folders.pop()}" if together else ""
    files = listed(tuple(one.path.name if together else str(one.path) for one in order.checkpoints))
    total = sum(checkpoint.size for checkpoint in order.checkpoints)
    header = {
        **run.header,
        "file": f"{len(order.checkpoints)} checkpoints{where}, {total:,} bytes: {files}",
        "step": last.step,
        "axis": order.axis,
        "last": str(last.path),
        "notes": [f"{len(order.checkpoints)} checkpoints, {order.how}", *run.header.get("notes", ())],
    }
    return Run(header, records, arrays=arrays)


def _moved(record: Record, step: int) -> Record:
    """A record of the last checkpoint, at the step at which that stands here."""
    return Record(**{**vars(record), "step": step})


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


def _parameters(objective: Objective) -> dict[str, Any]:
    return {name: tensor.detach().clone() for name, tensor in objective.model.named_parameters()}


def _barrier(name: str, line: LossBarrier) -> Reading:
    array = numpy.stack([line.alphas.numpy(), line.losses.numpy()])
    reading = reading_of(name, line.barrier)
    return Reading(**{**vars(reading), "array": array})
