"""The few examples whose losses a step changes most, along a run: whether they oppose each other, and alternate.

A Monitor measures right after a step. Looked at are the next two, which a copy of the optimizer takes with the
objective's gradient. With full batches these are the steps that training will take. With mini-batches the steps of
training would say which examples were in them: that an example falls and another rises by turns is no oscillation then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
from torch import Tensor

from diagnostics import DiagnosticsError, Objective, opposing_signals
from diagnostics.arguments import real_number
from diagnostics.stability.trial_step import trial_steps
from probes.gradient_curvature import NO_STEP
from probes.probe import Cost, Moment, Need, Reading
from probes.readings import reading_of
from probes.sharpness import stands_still

PLANNED = "in the next step, which a copy of the optimizer takes with the objective's gradient"


@dataclass
class OpposingSignals:
    """How much of the change of the losses a few examples carry, whether these oppose each other, and which they are.

    A check takes four passes of losses over the objective's examples, two gradients, and those of the two groups.
    Some hundreds of the training examples are wanted: what is rare must be among them.

    Args:
        share: of the examples in each of the two groups, at least one.
        every: own schedule; the Monitor's by default.

    Raises:
        DiagnosticsError: a share that is none.

    Source: Rosenfeld & Risteski, arXiv 2311.04163.
    """

    share: float = 0.01
    every: int | Callable[[int], bool] | None = None
    name: ClassVar[str] = "opposing"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "expensive"

    def __post_init__(self) -> None:
        real_number("share is not one of the examples", self.share, "above 0, at most 0.5", lambda x: 0 < x <= 0.5)

    def settings(self) -> dict[str, Any]:
        """The share."""
        return {"share": self.share}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """The share that the two groups carry, what becomes of it, and who is in them."""
        objective = moment.objective
        assert objective is not None
        try:
            update, following = _next_steps(moment, objective)
            found = opposing_signals(objective, update, following=following, share=self.share)
        except DiagnosticsError as problem:
            yield Reading("carried", None, status="skipped", note=str(problem))
            return
        yield reading_of("loss_change", found.loss_change, note=PLANNED)
        yield reading_of("carried", found.carried, note=PLANNED)
        if found.carried.determined:
            yield Reading("gaussian", found.gaussian, note="what as many examples carry if changes are Gaussian")
            yield reading_of("net", found.net)
            yield reading_of("cosine", found.cosine)
            order = "counted from 0, in the order of the objective's batches"
            for name, group in (("rising", found.rising), ("falling", found.falling)):
                yield Reading(
                    name, float(len(group)), note=f"the array holds which examples, {order}", array=_array(group)
                )
            note = f"examples; the array holds what the step makes of the loss of each, {order}"
            yield Reading("changes", float(len(found.changes)), note=note, array=_array(found.changes))
        assert found.alternation is not None
        assert found.growth is not None
        yield reading_of("alternation", found.alternation)
        yield reading_of("growth", found.growth)


def _next_steps(moment: Moment, objective: Objective) -> list[Tensor]:
    if moment.optimizer is None:
        raise DiagnosticsError("no optimizer was given, and so no step that it would take")
    if stands_still(moment.optimizer, objective):
        raise DiagnosticsError(NO_STEP)
    return trial_steps(objective, moment.optimizer, 2)


def _array(tensor: Tensor) -> numpy.ndarray:
    array: numpy.ndarray = tensor.cpu().numpy()
    return array
