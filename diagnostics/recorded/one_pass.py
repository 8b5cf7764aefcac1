"""One pass over all batches: what is common to everything that is asked of the gradients of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from diagnostics.arguments import require_objective
from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.recorded.alone import each_alone
from diagnostics.recorded.contractions import gram_of
from diagnostics.recorded.contributions import Contribution
from diagnostics.recorded.examples import lengths
from diagnostics.recorded.sheets import Sheet, sheets

RECORDED = "recorded"


class OnePass:
    """One pass over all batches: what is common to everything that is asked of them."""

    def __init__(self, objective: Objective, mean: bool = False) -> None:
        require_objective(objective)
        self.objective, self.mean = objective, mean
        self.device = objective.space.device
        self.counts = lengths(objective)
        self.examples = sum(self.counts)
        self.routes: dict[str, str] = dict.fromkeys(objective.space.names, RECORDED)
        self.total: dict[str, Tensor] = {}

    def through(
        self,
        recorded: Callable[[str, int, slice, list[Contribution], bool], None],
        alone: Callable[[int, Mapping[str, Tensor]], None],
    ) -> None:
        """Hand what is known of each batch to ``recorded``, and the rest to ``alone`` example by example.

        To be called inside ``quiet``, as all that follows.
        """
        sizes = dict(zip(self.objective.space.names, self.objective.space.sizes, strict=True))

        def measure(sheet: Sheet, name: str) -> None:
            found = sheet.contributions(name, sizes[name])
            if found:
                assert sheet.plan is not None
                recorded(name, sizes[name], self.slice(sheet.index), found, self.mean and name in sheet.plan.built)

        for sheet in sheets(self.objective, self.mean, measure):
            at = self.slice(sheet.index)
            for name in sizes:
                if name not in sheet.seen:
                    measure(sheet, name)
            self.note(sheet)

            def see(place: int, parts: Mapping[str, Tensor], first: int = at.start) -> None:
                alone(first + place, parts)

            self.alone(sheet, see)

    def alone(self, sheet: Sheet, see: Callable[[int, dict[str, Tensor]], None]) -> None:
        """Run the examples of a batch one by one for the parameters that need it."""
        if sheet.failed:

            def seen(place: int, parts: dict[str, Tensor]) -> None:
                see(place, parts)
                missing = () if sheet.watched is None else sheet.watched.leaf_gradients
                if self.mean:
                    self.average({name: part for name, part in parts.items() if name not in missing})

            summed = None if sheet.plan is None else sheet.plan.summed
            each_alone(self.objective, sheet.index, list(sheet.failed), sheet.scale, summed, seen)

    def note(self, sheet: Sheet) -> None:
        """Keep the gradient of a batch, and how its parameters were measured."""
        if sheet.watched is not None:
            self.average(sheet.watched.leaf_gradients)
        for name, reason in sheet.failed.items():
            self.routes[name] = f"example by example: {reason}"

    def average(self, parts: Mapping[str, Tensor | None]) -> None:
        """Add to the sum of all gradients."""
        for name, part in parts.items():
            if part is not None:
                whole = (part.to_dense() if part.is_sparse else part).flatten()
                # One batch alone is its own sum, and is not copied.
                self.total[name] = self.total[name].double().add_(whole) if name in self.total else whole

    def slice(self, index: int) -> slice:
        """The places of a batch's examples among all."""
        first = sum(self.counts[:index])
        return slice(first, first + self.counts[index])

    def add(self, matrix: Tensor, found: Mapping[int, list[Contribution]], size: int) -> None:
        """Add the inner products of one parameter's gradients."""
        reached = {index: some for index, some in found.items() if some}
        if reached:
            places = torch.cat([torch.arange(self.examples)[self.slice(index)] for index in reached]).to(matrix.device)
            matrix[places[:, None], places[None, :]] += gram_of(list(reached.values()), size)

    def require_finite(self, numbers: Tensor) -> None:
        """Refuse gradients that are not finite.

        Raises:
            DiagnosticsError: some are not.
        """
        if not bool(torch.isfinite(numbers).all()):
            place = int((~torch.isfinite(numbers)).nonzero()[0])
            raise DiagnosticsError(
                f"the gradient of example {place} is not finite", expected="finite parameters, data and gradients"
            )

    @property
    def how(self) -> str:
        """The method in one line."""
        slow = [name for name, route in self.routes.items() if route != RECORDED]
        text = f"one recorded pass for each batch; {self.examples} examples, {self.objective.description}"
        return text if not slow else f"{text}; {len(slow)} of {len(self.routes)} parameters example by example"
