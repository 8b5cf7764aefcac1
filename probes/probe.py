"""What a probe is: one scheduled measurement of a run.

A probe says what it needs and what it costs; the Monitor decides when it runs, hands it the moment, and writes down
what it returns. It keeps no state but warm starts, so that a probe which fails once can simply be asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics import Estimate, Objective
from probes.run.records import Status

Need = Literal["objective", "updates"]
Cost = Literal["free", "cheap", "expensive"]


@dataclass(frozen=True)
class TensorUpdate:
    """What one optimizer step did to one tensor.

    Attributes:
        before: a copy from just before the step.
        after: the live tensor, detached: it is read while the probe measures, and not kept.
    """

    before: Tensor
    after: Tensor

    @property
    def norm(self) -> float:
        """The norm before the step."""
        return _norm(self.before)

    @property
    def change(self) -> float:
        """The norm of the step."""
        return _norm(self.delta())

    def delta(self) -> Tensor:
        """The step itself, made anew on every call."""
        with torch.inference_mode(False), torch.no_grad():
            return self.after - self.before


def _norm(tensor: Tensor) -> float:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return float(torch.linalg.vector_norm(real, dtype=torch.float64))


@dataclass(frozen=True)
class Moment:
    """A run at one step, right after the optimizer has moved.

    Attributes:
        step: optimizer steps taken.
        model: the module itself, out of any wrapper.
        optimizer: as the Monitor was given it, in its wrappers; None for a checkpoint without one.
        objective: what to differentiate; present for probes that need it.
        updates: by tensor name, for probes that need updates; empty before the first step.
        no_objective: why ``objective`` is None, where it is.
        random: where the seeds of a whole run begin.
    """

    step: int
    model: nn.Module
    optimizer: Optimizer | None
    objective: Objective | None = None
    updates: Mapping[str, TensorUpdate] = field(default_factory=dict)
    no_objective: str = "no objective was given"
    random: int = 0

    @property
    def seed(self) -> int:
        """Of what a probe draws at random: another at every step, and the same again in the same run."""
        return (self.random + self.step) % 2**32


@dataclass(frozen=True)
class Reading:
    """What a probe returns: one number, or why there is none; and an array, where a number is not enough."""

    name: str
    value: Estimate | float | None
    layer: str | None = None
    note: str | None = None
    status: Status = "ok"
    array: numpy.ndarray | None = None


class Probe(Protocol):
    """One scheduled measurement.

    Attributes:
        name: stands in every record and in ``diag/<name>/<quantity>``.
        needs: what the Monitor must have ready.
        cost: free, cheap (about a forward pass) or expensive (kept within the budget).
        every: its own schedule, or None for the Monitor's.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    cost: ClassVar[Cost]
    every: int | Callable[[int], bool] | None

    def measure(self, moment: Moment) -> Iterable[Reading]:
        """Measure. May raise anything: the Monitor records it."""

    def settings(self) -> dict[str, Any]:
        """What a reader must know to repeat the measurement; JSON values."""
