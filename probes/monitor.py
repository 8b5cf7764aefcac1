"""The Monitor: attaches probes to a training run and writes the Run.

Harmless by construction. It hangs on two optimizer hooks and on nothing else; what it measures runs in ``quiet``, on
copies; whatever goes wrong on our side is recorded or logged, never passed on to the loop. Steps are counted by the
optimizer, so a step that AMP skips does not count.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics import DiagnosticsError, Objective
from diagnostics.parameters import unwrap
from diagnostics.stability.rules import unwrap_optimizer
from probes.arguments import check_probes, check_run, check_single, check_sinks
from probes.budget import Budget
from probes.header import imprints, not_held, run_header
from probes.journal import FAILURES_ALLOWED, Journal, Sink, checked
from probes.learning_rate import EffectiveLearningRate
from probes.probe import Moment, Probe, Reading
from probes.run.writer import RunWriter
from probes.schedule import as_schedule
from probes.sharpness import Sharpness
from probes.units import Units
from probes.updates import UpdateMeter

_log = logging.getLogger("probes")

EARLY = 10
"""Steps after which a first measurement with gaps is repeated. Before the first step an adaptive optimizer has no
second moments, and while they are young its edge moves fast: the next check of a usual schedule comes too late."""


class Monitor:
    """Attach probes to a training loop for the length of a ``with`` block.

    Args:
        model: the model that trains, wrapped or not.
        optimizer: the optimizer that trains it, in its wrapper where it has one (accelerate, SAM, Lookahead); the
            steps of the torch optimizer inside are the clock.
        objective: the fixed data and loss that curvature, rates and units are measured on; probes that need it are
            skipped without one.
        out: folder for the Run; must not hold a run yet, unless ``resume`` is given.
        probes: which, at most one of each name; by default ``Sharpness()``, ``EffectiveLearningRate()`` and
            ``Units()``.
        every: a number of steps, or a schedule, for probes without their own. The first state and the last are always
            measured; where the first had to leave something out, ``EARLY`` steps later once more.
        budget: expensive probes may take this share of training wall time, and are spaced out to keep to it once the
            first ``probes.budget.GRACE`` seconds are spent: one measures while all together keep to the share, or
            while it alone keeps to an equal part of it; None for no limit.
        sinks: callables ``log(scalars, step)``, as ``wandb.log`` and ``mlflow.log_metrics`` are; names are
            ``diag/<probe>/<quantity>[/<layer>]``.
        resume: the step from which training restarts, to continue the run in ``out``; later records are dropped.

    Raises:
        DiagnosticsError: bad arguments, a folder that cannot be written, nothing to resume, or a second ``with`` on
            the same Monitor, before training starts. Nothing is raised inside the block.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> x, y = torch.randn(8, 2), torch.randn(8, 1)
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with Monitor(model, optimizer, Objective(model, nn.MSELoss(), (x, y)), out=folder, every=5) as monitor:
        ...     for _ in range(10):
        ...         optimizer.zero_grad()
        ...         nn.functional.mse_loss(model(x), y).backward()
        ...         _ = optimizer.step()
        >>> from probes import Run
        >>> Run.open(folder).series("sharpness", "ratio").steps.tolist()
        [0, 5, 10]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: Objective | None = None,
        *,
        out: str | Path,
        probes: Sequence[Probe] | None = None,
        every: int | Callable[[int], bool] = 100,
        budget: float | None = 0.05,
        sinks: Iterable[Sink] = (),
        resume: int | None = None,
    ) -> None:
        check_single(optimizer)
        self.model = unwrap(model)
        self.optimizer = unwrap_optimizer(optimizer)
        # Steps are counted on the optimizer inside; what SAM or Lookahead do to the edge, only they know.
        self._as_given = optimizer
        check_run(self.model, self.optimizer, objective, budget, resume)
        self.objective = objective
        default: list[Probe] = [Sharpness(), EffectiveLearningRate(), Units()]
        self.probes = default if probes is None else check_probes(probes)
        to_tell = check_sinks(sinks)
        self.step = resume or 0
        self.folder = Path(out)
        schedules = [as_schedule(every if probe.every is None else probe.every) for probe in self.probes]
        self._scheduled = list(zip(self.probes, schedules, strict=True))
        self._failures: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._off: set[str] = set()
        self._waiting: set[str] = set()
        self._due: list[Probe] = []
        self._measured_at: dict[str, int] = {}
        self._early_at = self.step + EARLY
        self._early: set[str] = set()
        self._updates = UpdateMeter(self.model)
        self._not_held: dict[str, str] = {}
        self._budget = self._new_budget(budget)
        self._handles: list[Any] = []
        self._entered = False
        # Every rank holds the same weights after a step, so one rank can speak for all.
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._journal: Journal | None = None
        if not distributed or torch.distributed.get_rank() == 0:
            settings = {"every": as_schedule(every).text, "budget": budget}
            header = run_header(self.model, optimizer, objective, self._scheduled, settings)
            self._journal = Journal(RunWriter(self.folder, header, resume), to_tell)

    def __enter__(self) -> Monitor:
        if self._entered:
            raise DiagnosticsError(
                "this Monitor has been entered before",
                expected="one with block for each Monitor",
                attempt="a new Monitor, with resume=STEP to continue the run",
            )
        self._entered = True
        if self._journal is not None:
            self._budget = self._new_budget(self._budget.share)
            # A compiled optimizer.step would trace the hooks, and the measurements in them.
            self._handles = [
                self.optimizer.register_step_pre_hook(torch.compiler.disable(self._before_step)),
                self.optimizer.register_step_post_hook(torch.compiler.disable(self._after_step)),
            ]
            try:
                self._guarded(self._measure_first)
            except BaseException:
                # Nobody calls __exit__ when a first measurement is interrupted.
                self.__exit__(*sys.exc_info())
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._updates.forget()
        if self._journal is not None:
            # Also when the last measurement is interrupted: first the account, then the file is closed.
            with ExitStack() as last:
                last.callback(self._close)
                last.callback(self._guarded, partial(self._account, error))
                last.callback(self._guarded, self._account_of_not_held)
                if kind is None:
                    self._guarded(self._measure_now)

    def log(self, **scalars: float) -> None:
        """Record the loop's own numbers, such as its loss, at the present step.

        Args:
            scalars: anything ``float()`` takes.
        """
        self._guarded(
            lambda: self._write("loop", [_scalar(name, value) for name, value in scalars.items()], to_sinks=False)
        )

    def _before_step(self, *_: Any) -> None:
        self._guarded(self._prepare)

    def _after_step(self, *_: Any) -> None:
        due, self._due = self._due, []
        if _skipped_by_scaler(self.optimizer):
            self._updates.forget()
            return
        self.step += 1
        self._guarded(partial(self._measure_due, due))

    def _prepare(self) -> None:
        self._due = self._due_at(self.step + 1)
        if any("updates" in probe.needs and self._budget.affords(probe) for probe in self._due):
            with self._budget.spend("updates"):
                self._updates.before_step()

    def _measure_due(self, due: Iterable[Probe]) -> None:
        try:
            for probe in due:
                if self._budget.affords(probe):
                    self._measure(probe)
                elif probe.name not in self._waiting:
                    # One line for the whole wait: a schedule that is due at every step must not fill the disk.
                    self._waiting.add(probe.name)
                    note = f"waits: more would exceed the budget of {self._budget.share:.0%} of training time"
                    self._write(probe.name, [Reading("measurement", None, status="skipped", note=note)])
        finally:
            self._updates.forget()

    def _new_budget(self, share: float | None) -> Budget:
        return Budget(share, sum(probe.cost == "expensive" for probe in self.probes))

    def _measure_first(self) -> None:
        """The first state; what is left out of it is taken up again soon."""
        self._guarded(self._look_at_not_held)
        for probe, _ in self._scheduled:
            if self._measure(probe) and probe.name not in self._off:
                self._early.add(probe.name)

    def _look_at_not_held(self) -> None:
        self._not_held = imprints(self.model, not_held(self.model, self.optimizer))

    def _measure_now(self) -> None:
        """The present state, whatever the schedules and the budget say."""
        for probe, _ in self._scheduled:
            if probe.name not in self._off and self._measured_at.get(probe.name) != self.step:
                self._measure(probe)

    def _due_at(self, step: int) -> list[Probe]:
        """The probes that are to measure at a step; each schedule is asked once for each."""
        due = []
        for probe, schedule in self._scheduled:
            if probe.name in self._off:
                continue
            try:
                if schedule(step) or (step == self._early_at and probe.name in self._early):
                    due.append(probe)
            # A schedule may be the user's own function.
            except Exception as problem:  # noqa: BLE001
                self._write(probe.name, [self._failed(probe, problem, "its schedule: ")])
        return due

    def _measure(self, probe: Probe) -> bool:
        """Measure and write; says whether something was skipped."""
        self._early.discard(probe.name)
        self._measured_at[probe.name] = self.step
        self._waiting.discard(probe.name)
        readings: list[Reading] = []
        with self._budget.spend(probe.name):
            _wait_for(self.model)
            without = self._no_objective()
            if without is not None and "objective" in probe.needs:
                readings.append(Reading("measurement", None, status="skipped", note=without))
                if self.objective is None:
                    self._off.add(probe.name)
            else:
                try:
                    updates = self._updates.after_step() if "updates" in probe.needs else {}
                    moment = Moment(self.step, self.model, self._as_given, self.objective, updates)
                    if without is not None:
                        # One that still holds the weights of before must not be measured on by anyone.
                        moment = replace(moment, objective=None, no_objective=without)
                    readings.extend(map(checked, probe.measure(moment)))
                    self._failures[probe.name] = 0
                # A probe may run into anything the user's model can raise; none of it may reach the loop.
                except Exception as problem:  # noqa: BLE001
                    readings.append(self._failed(probe, problem))
            self._write(probe.name, readings)
        return any(reading.status == "skipped" for reading in readings)

    def _no_objective(self) -> str | None:
        """Why probes that need the objective cannot measure; None when they can."""
        if self.objective is None:
            return "no objective was given"
        now = dict(self.model.named_parameters())
        space = self.objective.space
        if any(now.get(name) is not tensor for name, tensor in space.items()):
            return "parameters of the model were replaced after the objective was built, which still holds the old ones"
        if any(tensor.numel() != size for tensor, size in zip(space.tensors, space.sizes, strict=True)):
            return "parameters of the model have another size than when the objective was built"
        return None

    def _failed(self, probe: Probe, problem: Exception, where: str = "") -> Reading:
        self._failures[probe.name] += 1
        # Half a surrogate, as file names may hold, would trip whatever prints the warning.
        reason = f"{where}{type(problem).__name__}: {problem}".encode("utf-8", "replace").decode("utf-8")
        if probe.name not in self._warned:
            self._warned.add(probe.name)
            _log.warning("probe %r failed at step %d and training goes on: %s", probe.name, self.step, reason)
        if self._failures[probe.name] >= FAILURES_ALLOWED:
            self._off.add(probe.name)
            reason += f" (switched off after {FAILURES_ALLOWED} failures in a row)"
        return Reading("measurement", None, status="failed", note=reason)

    def _write(self, probe: str, readings: Iterable[Reading], to_sinks: bool = True) -> None:
        if self._journal is not None:
            self._journal.write(probe, self.step, readings, to_sinks=to_sinks)

    def _account(self, error: BaseException | None) -> None:
        """What the measurements cost and how the block ended, for the report."""
        training = Reading("training_seconds", self._budget.training)
        spent = [Reading("seconds", seconds, layer=probe) for probe, seconds in self._budget.spent.items()]
        ended = Reading("ended", self.step, note="completed" if error is None else _in_one_line(error))
        self._write("monitor", [training, *spent, ended], to_sinks=False)

    def _account_of_not_held(self) -> None:
        """Whether tensors that the optimizer does not hold moved all the same: steps of another one are not seen."""
        now = imprints(self.model, self._not_held)
        note = "whether it moved in this run, by its sum and norm, though the optimizer does not hold it"
        moved = [Reading("moved", float(now[name] != self._not_held[name]), name, note) for name in now]
        self._write("monitor", moved, to_sinks=False)

    def _close(self) -> None:
        if self._journal is not None:
            self._guarded(self._journal.close)
            self._journal = None

    def _guarded(self, action: Callable[[], None]) -> None:
        """Whatever goes wrong on our side stays on our side."""
        try:
            action()
        # The promise to the loop: nothing of ours is raised inside it.
        except Exception as problem:  # noqa: BLE001
            if "monitor" not in self._warned:
                self._warned.add("monitor")
                _log.warning("the monitor failed at step %d and training goes on: %r", self.step, problem)


def _in_one_line(error: BaseException) -> str:
    try:
        lines = str(error).strip().splitlines()
    # An exception of the user's own may not even print.
    except Exception:  # noqa: BLE001
        lines = []
    return ": ".join([type(error).__name__, *lines[:1]])[:200]


def _wait_for(model: nn.Module) -> None:
    """Let queued kernels finish, so that their time is not booked to a probe."""
    tensor = next(model.parameters(), None)
    if tensor is not None and tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def _skipped_by_scaler(optimizer: Optimizer) -> bool:
    """Whether GradScaler found infinities: fused optimizers are called nevertheless, and leave the weights alone."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found)


def _scalar(name: str, value: Any) -> Reading:
    """One of the loop's own numbers; another that is none must not take the good ones with it."""
    try:
        return Reading(name, float(value.detach() if isinstance(value, Tensor) else value))
    # Anything may be passed.
    except Exception as problem:  # noqa: BLE001
        return Reading(name, None, status="failed", note=f"not a number: {type(problem).__name__}: {problem}")
