"""One recorded forward and backward of each batch, and what it says of the gradients of its examples.

The gradients of two examples of each kind of batch are taken alone as well. A parameter for which the recorded ones
say something else, or for which an operation is not known, is measured example by example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from weakref import WeakKeyDictionary

import torch

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.recorded.contractions import squared_norms
from diagnostics.recorded.contributions import Contribution
from diagnostics.recorded.examples import agreement, lengths, require_uncoupled, rows
from diagnostics.recorded.operations import UnknownOperationError
from diagnostics.recorded.plan import Plan, likeness, make_plan
from diagnostics.recorded.watched import Watched, watch

_PLANS: WeakKeyDictionary[Objective, dict[tuple[object, ...], Plan]] = WeakKeyDictionary()
"""Plans that were made and checked, for those who ask of the same Objective again."""

FEW = 3
"""No plan is made for so few examples, for it would cost as much as a loop; one from another batch is used."""


@dataclass
class Sheet:
    """What is known of one batch.

    Attributes:
        index: which batch.
        count: its examples.
        scale: N w_b.
        plan: how the model uses its parameters; None where every example is to be run alone.
        watched: the recorded run; None likewise.
        rounding: ε of the parameters.
        tolerance: how far gradients that ought to be equal may be apart.
        checked: the examples whose gradients are known from elsewhere, and their shares of the batch.
        seen: parameters that were handed on during the backward pass.
        failed: parameters that are to be measured example by example, and why.
    """

    index: int
    count: int
    scale: float
    plan: Plan | None
    watched: Watched | None
    rounding: float = 0.0
    tolerance: float = 0.0
    checked: tuple[tuple[int, float], ...] = ()
    seen: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    def contributions(self, name: str, size: int) -> list[Contribution] | None:
        """What a parameter's uses add to the gradients; None, with the reason in ``failed``, if that is not known."""
        found: list[Contribution] = []
        try:
            reason = "few examples"
            if self.watched is not None and self.plan is not None:
                found = self.watched.contributions(name, self.plan.places, self.count)
                reason = self._doubt(name, size, found, self.plan, self.watched)
        except UnknownOperationError:
            reason = "an operation that is not known"
        if reason:
            self.failed[name] = reason
            return None
        return found

    def _doubt(self, name: str, size: int, found: list[Contribution], plan: Plan, watched: Watched) -> str:
        """Why contributions are not to be trusted; nothing if they are."""
        whole = watched.leaf_gradients.get(name)
        if not found and whole is not None and bool(whole.count_nonzero()):
            return "no use of it was seen"
        if self.checked:
            agrees = all(
                self._agrees(name, size, found, place, share, squares)
                for (place, share), squares in zip(self.checked, plan.squares, strict=True)
            )
            plan.verdicts[name] = "" if agrees else "the recorded gradient is another than that of an example alone"
        return plan.verdicts.get(name, "not compared with an example alone")

    def _agrees(
        self, name: str, size: int, found: list[Contribution], place: int, share: float, squares: Mapping[str, float]
    ) -> bool:
        scale = (self.scale * share) ** 2
        exact, all_of_it = scale * squares[name], scale * sum(squares.values())
        part = [one.part(slice(place, place + 1)) for one in found]
        measured = float(squared_norms(part, size)) if part else 0.0
        # What is zero but for rounding (the bias of attention keys) need not agree.
        slack = (100 * self.rounding) ** 2 * all_of_it
        return abs(measured - exact) <= 2 * self.tolerance * exact + slack


def share_plans(objective: Objective, pieces: Objective) -> None:
    """Let batches in pieces go by the plans of the whole ones."""
    _PLANS[pieces] = _PLANS.setdefault(objective, {})


def sheets(
    objective: Objective,
    mean: bool,
    first: int = 0,
    see: Callable[[Sheet, str], None] | None = None,
    graph: bool = False,
) -> Iterator[Sheet]:
    """Each batch that counts, recorded. To be called inside ``quiet``.

    Args:
        objective: the loss.
        mean: whether the gradients of the batches themselves are wanted, but for those that are built by example.
        first: the first of the batches.
        see: takes parameters during the backward pass, when what is recorded of them is complete and before it is let
            go of; those that it is not called with are found in the sheet afterwards.
        graph: whether the outputs are kept with their graph, to be differentiated once more. The loss is then
            differentiated only where a plan is new, and is compared with examples alone.

    Raises:
        DiagnosticsError: examples are coupled, the loss is not made of theirs, or a loss is not finite.
    """
    require_uncoupled(objective)
    counts = lengths(objective)
    total = sum(counts)
    rounding = torch.finfo(objective.space.dtype).eps
    plans = _PLANS.setdefault(objective, {})
    for index, (count, weight) in enumerate(zip(counts, objective.weights, strict=True)):
        if not weight or index < first:
            continue
        scale = total * weight
        kind = likeness(objective.batches[index])
        for fresh in (False, True):
            checked: tuple[tuple[int, float], ...] = ()
            if count > FEW and (fresh or kind not in plans):
                probes = _probes(objective, index, count)
                if len(probes) == 2:
                    plan = make_plan(objective, index, (probes[0][0], probes[1][0]))
                    plans[kind] = plan
                    share = {place: 1.0 if plan.summed else terms / objective.terms[index] for place, terms in probes}
                    checked = tuple(share.items())
            if kind not in plans:
                yield Sheet(index, count, scale, None, None)
                break
            plan = plans[kind]
            sheet = Sheet(index, count, scale, plan, None, rounding, agreement(objective), checked)

            def handed_on(watched: Watched, name: str, sheet: Sheet = sheet, plan: Plan = plan) -> None:
                if see is not None and (sheet.checked or watched.sequence == plan.sequence):
                    sheet.watched = watched
                    sheet.seen.add(name)
                    see(sheet, name)

            unwanted = plan.built if mean else plan.seen
            seen = None if see is None else handed_on
            watched = watch(
                objective, index, plan.derived, scale, unwanted, seen, plan.writes, graph, not graph or bool(checked)
            )
            require_finite(watched, index)
            # A model that went another way than when the plan was made gets a new one.
            if checked or watched.sequence == plan.sequence:
                sheet.watched = watched
                yield sheet
                # The next pass is not to find this one still in memory.
                del watched, sheet
                break
        else:
            yield Sheet(index, count, scale, None, None)


def _probes(objective: Objective, index: int, count: int) -> list[tuple[int, float]]:
    """The first two examples that have loss terms, and how many."""
    batch = objective.batches[index]
    terms = ((place, objective.count_terms(rows(batch, [place]))) for place in range(count))
    return list(islice((found for found in terms if found[1]), 2))


def require_finite(watched: Watched, index: int) -> None:
    """Refuse a loss that is not a number.

    Raises:
        DiagnosticsError: it is not finite.
    """
    if not math.isfinite(watched.loss):
        raise DiagnosticsError(
            f"the loss of batch {index} is not finite",
            given=f"{watched.loss:g}",
            expected="finite parameters and data",
        )
