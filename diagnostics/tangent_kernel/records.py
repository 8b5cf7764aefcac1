"""What one forward pass of each batch, differentiated for every output, says of the gradients of the outputs.

No more is held at once than ``HELD_BYTES``: batches are cut, and outputs taken some at a time, each group of both again
for every group before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.forms import Batch
from diagnostics.loss_terms import leading_dimension
from diagnostics.objective import Objective
from diagnostics.recorded.contributions import Direct
from diagnostics.recorded.examples import lengths, require_uncoupled, rows
from diagnostics.recorded.one_pass import OnePass
from diagnostics.recorded.outputs import Weights, at_random, of_outputs
from diagnostics.recorded.sheets import FEW, Sheet, share_plans, sheets
from diagnostics.recorded.stacked import Stack
from diagnostics.recorded.stacked_products import Cell
from diagnostics.recorded.watched import pulled_back

HELD_BYTES = 2**30
"""Of what was recorded, in the two groups that are held at once. The pass of the largest batch comes on top, and what
is made of one parameter."""

_PLANNED: WeakKeyDictionary[Objective, Objective] = WeakKeyDictionary()
"""The outputs of an Objective, by which plans are found again."""


class Records:
    """The gradients of some combinations of outputs, for all examples of an Objective. Works inside ``quiet``.

    Args:
        objective: with outputs that can be seen.
        cotangents: the combinations.

    Attributes:
        run: routes, and examples by batch.
    """

    def __init__(self, objective: Objective, cotangents: Sequence[Weights]) -> None:
        self.cotangents = cotangents
        if objective not in _PLANNED:
            _PLANNED[objective] = of_outputs(objective, at_random)
        whole = _PLANNED[objective]
        counts = lengths(whole)
        few = _beginnings(whole, [counts.index(max(counts))], FEW + 1)
        share_plans(whole, few)
        self.run = OnePass(few)
        self._common, self._each = self._weighed(few)
        most = int(HELD_BYTES / 2 / max(1.0, self._common + self._each))
        pieces = _cut(whole, max(1, most))
        share_plans(whole, pieces)
        self.run = OnePass(pieces)

    def at_once(self) -> int:
        """How many outputs of the largest batch can be held."""
        fitting = int((HELD_BYTES / 2 / max(self.run.counts) - self._common) / max(1.0, self._each))
        return max(1, min(len(self.cotangents), fitting))

    def spans(self, outputs: int) -> list[range]:
        """Batches in groups of which so many outputs can be held."""
        counts = self.run.counts
        each = self._common + outputs * self._each
        spans, first = [], 0
        for end in range(1, len(counts) + 1):
            if end == len(counts) or sum(counts[first : end + 1]) * each > HELD_BYTES / 2:
                spans.append(range(first, end))
                first = end
        return spans

    def held(self, batches: range, outputs: slice) -> dict[str, list[Cell]]:
        """What the passes of some batches record of some outputs, for each parameter."""
        space = self.run.objective.space
        found: dict[str, list[Cell]] = {name: [] for name in space.names}
        for sheet in sheets(self.run.objective, False, batches.start, graph=True):
            if sheet.index >= batches.stop:
                break
            stacks = self._stacks(sheet, self.cotangents[outputs])
            sheet.watched = None
            for name in space.names:
                at = self.run.slice(sheet.index)
                found[name].append(Cell(at, outputs, stacks.pop(name).done()))
        return found

    def _weighed(self, few: Objective) -> tuple[float, float]:
        """Bytes for an example, and for each of its outputs."""
        (sheet,) = sheets(few, False, graph=True)
        stacks = self._stacks(sheet, [self.cotangents[0], at_random]).values()
        held = [(stack.common_bytes(), stack.bytes()) for stack in stacks]
        common, each = (sum(column) / sheet.count for column in zip(*held, strict=True))
        return common, each

    def _stacks(self, sheet: Sheet, cotangents: Sequence[Weights]) -> dict[str, Stack]:
        space = self.run.objective.space
        sizes = dict(zip(space.names, space.sizes, strict=True))
        stacks = {name: Stack(size, sheet.count) for name, size in sizes.items()}
        if sheet.watched is None:
            # Says of each why not.
            for name, size in sizes.items():
                sheet.contributions(name, size)
        else:
            self._record(sheet, cotangents, stacks)
        if sheet.failed:
            for cotangent in cotangents:
                for name, gradients in self._alone(sheet, cotangent).items():
                    stacks[name].add([Direct(gradients)])
        return stacks

    def _record(self, sheet: Sheet, cotangents: Sequence[Weights], stacks: Mapping[str, Stack]) -> None:
        objective, watched, plan = self.run.objective, sheet.watched, sheet.plan
        assert watched is not None
        assert watched.outputs is not None
        assert plan is not None
        outputs = watched.outputs
        sizes = dict(zip(objective.space.names, objective.space.sizes, strict=True))
        if not outputs.requires_grad:
            objective.unreached(sheet.index)
        if sheet.checked:
            for name, size in sizes.items():
                sheet.contributions(name, size)
            sheet.checked = ()
        wanted = (weights(outputs.shape[1]).to(outputs).expand_as(outputs) for weights in cotangents)
        for place, again in enumerate(pulled_back(objective, watched, wanted)):
            if place == 0:
                sheet.watched = again
                for name, size in sizes.items():
                    if name not in sheet.failed:
                        sheet.contributions(name, size)
                sheet.watched = watched
            for name in sizes:
                if name not in sheet.failed:
                    stacks[name].add(again.contributions(name, plan.places, sheet.count))

    def _alone(self, sheet: Sheet, cotangent: Weights) -> dict[str, Tensor]:
        """(n, P) for each parameter of which the record is not enough."""
        found = {
            name: torch.zeros(sheet.count, p.numel(), dtype=p.dtype, device=p.device)
            for name, p in self.run.objective.space.items()
            if name in sheet.failed
        }

        def see(places: Sequence[int], parts: Mapping[str, Tensor]) -> None:
            for name, part in parts.items():
                found[name][list(places)] = part

        self.run.finish(sheet, see, of_outputs(self.run.objective, cotangent))
        return found


def count_outputs(objective: Objective) -> int:
    """C, the number of outputs of an example, seen by running the first of each batch. To be called inside ``quiet``.

    Raises:
        DiagnosticsError: batch normalisation couples the examples; they differ in how many outputs they have; outputs
            that cannot be seen.
    """
    require_uncoupled(objective)
    single = _beginnings(of_outputs(objective, at_random), range(len(objective.batches)), 1)
    with torch.no_grad():
        values = single.space.values()
        counts = [single.batch_outputs(index, values).outputs.shape[1] for index in range(len(single.batches))]
    other = next((place for place, count in enumerate(counts) if count != counts[0]), None)
    if other is not None:
        raise DiagnosticsError(
            "examples differ in the number of their outputs",
            given=f"{counts[0]:,} in batch 0 and {counts[other]:,} in batch {other}",
            expected="the same number for every example",
            attempt="sequences padded or cut to one length, or a module around the model that pools its outputs",
        )
    return counts[0]


def _beginnings(objective: Objective, batches: Sequence[int], examples: int) -> Objective:
    """The first examples of some batches."""
    counts = lengths(objective)
    pieces = [rows(objective.batches[index], range(min(examples, counts[index]))) for index in batches]
    return _with_batches(objective, pieces)


def _cut(objective: Objective, most: int) -> Objective:
    """All batches, in pieces of at most so many examples."""
    pieces = []
    for batch, count in zip(objective.batches, lengths(objective), strict=True):
        parts = [range(at, min(count, at + most)) for at in range(0, count, most)]
        pieces += [batch] if len(parts) == 1 else [rows(batch, part) for part in parts]
    return _with_batches(objective, pieces)


def _with_batches(objective: Objective, batches: Sequence[Batch]) -> Objective:
    """Every example counts as one."""
    counts = [leading_dimension(batch) for batch in batches]
    shares = [1.0 / sum(counts)] * len(counts)
    return objective.rebatched(batches, shares, counts, [(index, 0) for index in range(len(counts))])
