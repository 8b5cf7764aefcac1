"""Measuring several checkpoints of one run: the path between them, and with a task the loss along it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from diagnostics import DiagnosticsError, Objective
from probes.checkpoint.allowance import Allowance
from probes.checkpoint.along import Along
from probes.checkpoint.errors import listed
from probes.checkpoint.examine import examine, wanted
from probes.checkpoint.load import load_checkpoint
from probes.checkpoint.order import in_order
from probes.checkpoint.rebuild import named, rebuild
from probes.journal import to_record
from probes.probe import Reading
from probes.run.reader import Run, array_key
from probes.run.records import Record

PROBE = "trajectory"


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
    budget: float | None = None,
    keep: bool = False,
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
        budget: see ``examine``; the path comes first, and the last checkpoint by itself has what is left.
        keep: see ``examine``.
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
    by = named(task, text)
    allowance = Allowance(budget)
    along = Along(order, allowance, progress)

    def build(place: int) -> Objective:
        return rebuild(order.checkpoints[place], task=task, text=text, device=device, seed=seed)[0]

    if only is None or PROBE in only:
        try:
            along.measure(None if by is None else build)
        except KeyboardInterrupt:
            if not keep:
                raise
            along.interrupted()
    run = examine(
        last.path,
        task=None if along.ended else task,
        text=None if along.ended else text,
        trust=trust,
        allow=allow,
        # After an interrupt nothing but the cheap survey, which says what was there.
        only=() if along.ended else others,
        device=device,
        seed=seed,
        budget=allowance,
        keep=keep,
        progress=progress,
    )
    arrays = {(one.probe, array_key(one)): found for one in run.records if (found := run.array(one)) is not None}
    records = [_moved(record, order.steps[-1]) for record in run.records]
    if along.ended:
        reading = Reading("measurement", None, status="skipped", note=f"interrupted {along.ended}")
        records += [to_record(name, order.steps[-1], reading) for name in wanted(by, others)]
    for step, reading in along.readings:
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
        "task": by,
        **({"interrupted": along.ended} if along.ended else {}),
        "notes": [f"{len(order.checkpoints)} checkpoints, {order.how}", *run.header.get("notes", ())],
    }
    return Run(header, records, arrays=arrays)


def _moved(record: Record, step: int) -> Record:
    """A record of the last checkpoint, at the step at which that stands here."""
    return Record(**{**vars(record), "step": step})
