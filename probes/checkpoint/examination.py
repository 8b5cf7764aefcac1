"""What was found in a checkpoint so far: records, arrays and a header, also where measuring was cut short."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy
from torch import Tensor
from torch.optim import Optimizer

from diagnostics import Objective
from probes.checkpoint.allowance import Allowance, OutOfTimeError
from probes.checkpoint.contents import Checkpoint
from probes.checkpoint.matrices import spectrum_readings
from probes.checkpoint.resident import Pages
from probes.checkpoint.saved_state import adam_readings, gain_readings
from probes.checkpoint.state import state_tensors
from probes.checkpoint.weights import survey
from probes.header import describe_groups, describe_objective, describe_optimizer, device_name, versions
from probes.journal import to_record
from probes.probe import Moment, Probe, Reading
from probes.run.reader import SCHEMA_VERSION, Run, array_key
from probes.run.records import Record

PARTS = {"spectrum": {"density": "smallest eigenvalue", "smallest": "sharpest directions", "largest": "layers"}}
"""Of probes that take long: a reading, and what is measured after it."""

Progress = Callable[[str], None]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class Examination:
    """What was found in a checkpoint so far."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        task: str | None,
        allowance: Allowance,
        progress: Progress,
        part: Callable[[float], None],
    ) -> None:
        self.step = checkpoint.step or 0
        self._checkpoint, self._header, self._allowance = checkpoint, _header(checkpoint, task), allowance
        self._progress, self._part = progress, part
        self._pages = Pages(*checkpoint.files)
        self._records: list[Record] = []
        self._arrays: dict[tuple[str, str], numpy.ndarray] = {}
        self._done: set[str] = set()
        self._stage = "opening the file"

    def tensors(self) -> None:
        """Whether values are finite, and how large: what is cheap is done whatever the budget."""
        self._begin("surveying tensors")
        self._records += [*_weights(self._checkpoint, self._pages, self.step)]
        self._records += [*_optimizer_state(self._checkpoint, self._pages, self.step)]

    def matrices(self, seed: int) -> None:
        """Weights by themselves."""
        self._begin("decomposing matrices")
        self._write("weights", _by_themselves(self._checkpoint, self._pages, self._part, seed))

    def described(self, objective: Objective, optimizer: Optimizer | None, notes: Iterable[str] = ()) -> None:
        """Put down what a task has built."""
        self._header["device"] = device_name(objective.space.device)
        self._header["objective"] = describe_objective(objective)
        self._header["model"]["class"] = type(objective.model).__name__
        self._header["notes"] += notes
        if optimizer is not None:
            self._header["optimizer"] = describe_optimizer(optimizer)

    def measured(self, probe: Probe, moment: Moment) -> None:
        """One probe, as far as it comes."""
        self._begin(f"measuring {probe.name.replace('_', ' ')}")
        self._write(probe.name, _measure(probe, moment))

    def without_task(self, names: Iterable[str]) -> None:
        """What was asked for by name and cannot be had from bytes."""
        for name in names:
            self._skip(name, "it needs the model and loss: --task FILE.py")

    def interrupted(self, wanted: Iterable[str]) -> None:
        """Put down what an interrupt kept from being measured."""
        self._header["interrupted"] = f"while {self._stage}"
        for name in wanted:
            if name not in self._done:
                self._skip(name, f"interrupted while {self._stage}")

    def run(self) -> Run:
        """Everything as a Run."""
        if self._allowance.seconds is not None:
            self._header["budget"] = {"seconds": self._allowance.seconds, "spent": round(self._allowance.spent, 1)}
        return Run(self._header, self._records, arrays=self._arrays)

    def _begin(self, stage: str) -> None:
        self._stage = stage
        self._progress(stage)

    def _write(self, probe: str, readings: Iterable[Reading]) -> None:
        begun = False
        try:
            with self._allowance.spend():
                for reading in readings:
                    begun = True
                    if reading.name in PARTS.get(probe, {}):
                        self._begin(f"measuring {PARTS[probe][reading.name]}")
                    self._records.append(to_record(probe, self.step, reading))
                    if reading.array is not None:
                        self._arrays[probe, array_key(self._records[-1])] = reading.array
        except OutOfTimeError:
            reached = "what it had measured stands" if begun else "it was not reached"
            self._skip(probe, f"the budget of {self._allowance.seconds:g} s was spent: {reached}")
        self._done.add(probe)

    def _skip(self, probe: str, note: str) -> None:
        reading = Reading("measurement", None, status="skipped", note=note)
        self._records.append(to_record(probe, self.step, reading))


def _measure(probe: Probe, moment: Moment) -> Iterator[Reading]:
    try:
        yield from probe.measure(moment)
    # The user's model may raise anything; the other probes can still speak, and this one as far as it came.
    except Exception as problem:  # noqa: BLE001
        reason = f"{type(problem).__name__}: {problem}"
        yield Reading("measurement", None, status="failed", note=reason)


def _weights(checkpoint: Checkpoint, pages: Pages, step: int) -> Iterable[Record]:
    for row in survey(checkpoint.parameters, pages.let_go):
        note = row.note or None
        for name in ("elements", "norm", "rms", "max_abs", "zeros", "non_finite"):
            value = getattr(row, name)
            reading = Reading(name, value, row.name, note=note, status="skipped" if value is None else "ok")
            yield to_record("weights", step, reading)


def _by_themselves(checkpoint: Checkpoint, pages: Pages, part: Callable[[float], None], seed: int) -> Iterator[Reading]:
    yield from spectrum_readings(checkpoint.parameters, pages.let_go, part, seed)
    yield from gain_readings(checkpoint.parameters)
    if checkpoint.optimizer is not None:
        yield from adam_readings(checkpoint.optimizer, pages.let_go)


def _optimizer_state(checkpoint: Checkpoint, pages: Pages, step: int) -> Iterable[Record]:
    """How many values of the optimizer's state are not finite: they outlive weights that have been repaired."""
    if checkpoint.optimizer is None:
        return
    # One tensor at a time, so that a state larger than memory can be surveyed too.
    rows = [row for name, tensor in state_tensors(checkpoint.optimizer) for row in survey({name: tensor}, pages.let_go)]
    read = [row for row in rows if row.non_finite is not None]
    total = sum(row.non_finite or 0 for row in read)
    notes = [f"{len(read)} tensors of the optimizer's state"]
    if total:
        worst = max(read, key=lambda row: row.non_finite or 0)
        notes.append(f"worst: {worst.name}, {worst.non_finite:,} of {worst.elements:,} values")
    if len(read) < len(rows):
        notes.append(f"{len(rows) - len(read)} more could not be read as numbers")
    yield to_record("weights", step, Reading("optimizer_non_finite", total, note="; ".join(notes)))


def _header(checkpoint: Checkpoint, task: str | None) -> dict[str, Any]:
    parameters: Mapping[str, Tensor] = checkpoint.parameters
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "file": f"{checkpoint.path} ({checkpoint.size:,} bytes, {checkpoint.format.value})",
        "versions": versions(),
        "task": task,
        "step": checkpoint.step,
        "model": {
            "class": None,
            "parameters": sum(tensor.numel() for name, tensor in parameters.items() if not name.endswith(_BUFFERS)),
            "shapes": {name: list(tensor.shape) for name, tensor in parameters.items()},
        },
        "optimizer": None
        if checkpoint.optimizer is None
        else {"class": None, "groups": describe_groups(checkpoint.optimizer["param_groups"])},
        "notes": list(checkpoint.notes),
    }
