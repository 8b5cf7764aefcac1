"""Whether the network can still learn something new, at a few moments of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from diagnostics import DiagnosticsError, plasticity
from diagnostics.arguments import real_number, whole_number
from diagnostics.units.random_targets import Targets
from probes.probe import Cost, Moment, Need, Reading
from probes.readings import reading_of
from probes.schedule import FIRST_AND_LAST


@dataclass
class Plasticity:
    """The share of random targets that a copy of the network fits in k steps, beside that of a fresh network.

    A check costs 2 ``draws`` × ``steps`` gradients of one batch of the objective: some hundred examples are enough.

    Args:
        steps: optimizer steps of each network in each draw.
        lr: of the fresh Adam that both are trained with.
        own_optimizer: train with a copy of the run's optimizer instead, at its present rate.
        moments: start the network itself with the optimizer's present moments; only with ``own_optimizer``.
        draws: of targets and of fresh networks.
        fresh: makes a new network; needed where modules do not initialise themselves by ``reset_parameters``.
        targets: ``(batch, generator) -> batch`` for losses that are not known here.
        unlearn: count in the steps that unlearn what the network is sure of.
        every: own schedule. By default the first state and the last; ``every=at(1000, 10_000)`` for more.

    Raises:
        DiagnosticsError: a number out of range; moments without their optimizer.

    Source: Lyle et al., arXiv 2303.01486.
    """

    steps: int = 100
    lr: float = 3e-3
    own_optimizer: bool = False
    moments: bool = False
    draws: int = 4
    fresh: Callable[[], nn.Module] | None = None
    targets: Targets | None = None
    unlearn: bool = False
    every: int | Callable[[int], bool] | None = FIRST_AND_LAST
    name: ClassVar[str] = "plasticity"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "expensive"

    def __post_init__(self) -> None:
        whole_number("steps is out of range", self.steps, "a whole number from 1", 1)
        whole_number("draws is out of range", self.draws, "at least 2: one draw has no error", 2)
        real_number("lr is not positive", self.lr, "as 0.003", lambda value: 0 < value < float("inf"))
        if self.moments and not self.own_optimizer:
            raise DiagnosticsError("moments go with own_optimizer", given="own_optimizer=False", expected="both")

    def settings(self) -> dict[str, Any]:
        """What was trained, how long and with what."""
        optimizer = {"own_optimizer": True, "moments": self.moments} if self.own_optimizer else {"lr": self.lr}
        return {"steps": self.steps, "draws": self.draws, "unlearn": self.unlearn, **optimizer}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """Shares, their ratio and difference, accuracies, and what it cost."""
        assert moment.objective is not None
        try:
            if self.own_optimizer and moment.optimizer is None:
                raise DiagnosticsError("no optimizer was given", expected="one, for own_optimizer=True")
            measured = plasticity(
                moment.objective,
                steps=self.steps,
                lr=None if self.own_optimizer else self.lr,
                optimizer=moment.optimizer if self.own_optimizer else None,
                moments=self.moments,
                targets=self.targets,
                fresh=self.fresh,
                unlearn=self.unlearn,
                draws=self.draws,
                seed=moment.seed,
            )
        except DiagnosticsError as reason:
            yield Reading("ratio", None, status="skipped", note=str(reason))
            return
        yield Reading("gradients", float(measured.gradients), note="forward and backward passes over one batch")
        for name in ("fitted", "fresh_fitted", "ratio", "lost", "accuracy", "fresh_accuracy"):
            if (estimate := getattr(measured, name)) is not None:
                yield reading_of(name, estimate)
