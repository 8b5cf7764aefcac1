"""One pass over all batches: what is common to everything that is asked of the gradients of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from diagnostics.arguments import require_objective
from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.recorded.alone import LOOP, VMAP, Alone, See, each_alone
from diagnostics.recorded.contributions import Contribution
from diagnostics.recorded.examples import known_sum, lengths
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
        self._ways: dict[str, set[str]] = {}
        self._reasons: dict[str, str] = {}
        self._refusals: dict[str, str] = {}

    def through(
        self,
        recorded: Callable[[str, int, slice, list[Contribution], bool], None],
        alone: Callable[[list[int], Mapping[str, Tensor]], None],
    ) -> None:
        """Hand what is known of each batch to ``recorded``, and the rest, (n, P) by name, to ``alone``.

        To be called inside ``quiet``, as all that follows.
        """
        sizes = dict(zip(self.objective.space.names, self.objective.space.sizes, strict=True))

        def measure(sheet: Sheet, name: str) -> None:
            found = sheet.contributions(name, sizes[name])
            if found:
                assert sheet.plan is not None
                recorded(name, sizes[name], self.slice(sheet.index), found, self.mean and name in sheet.plan.built)

        for sheet in sheets(self.objective, self.mean, see=measure):
            at = self.slice(sheet.index)
            for name in sizes:
                if name not in sheet.seen:
                    measure(sheet, name)

            def see(places: Sequence[int], parts: Mapping[str, Tensor], first: int = at.start) -> None:
                alone([first + place for place in places], parts)

            self.finish(sheet, see)

    def finish(self, sheet: Sheet, see: See, objective: Objective | None = None) -> None:
        """Run the examples of a batch by themselves for the parameters that need it, and keep the batch's gradient.

        Args:
            sheet: of the batch.
            see: takes places in the batch, and gradients.
            objective: another loss on the same batches that they are run with.
        """
        if sheet.watched is not None:
            self.average(sheet.watched.leaf_gradients)
        if sheet.failed:
            summed = known_sum(self.objective) if sheet.plan is None else sheet.plan.summed
            result = each_alone(objective or self.objective, sheet.index, list(sheet.failed), sheet.scale, summed, see)
            self._note(sheet, result)
            if self.mean:
                known = () if sheet.watched is None else sheet.watched.leaf_gradients
                self.average({name: part for name, part in result.total.items() if name not in known})

    def _note(self, sheet: Sheet, result: Alone) -> None:
        for name, reason in sheet.failed.items():
            self._ways.setdefault(name, set()).update(result.ways)
            # That a batch was small says less than what was found out on another.
            if sheet.plan is not None or name not in self._reasons:
                self._reasons[name] = reason
            self._refusals[name] = result.refusal or self._refusals.get(name, "")
            way = " and ".join(sorted(self._ways[name], reverse=True))
            refusal = f" (no vmap: {self._refusals[name]})" if self._refusals[name] else ""
            self.routes[name] = f"{way}{', ' if way == VMAP else ': '}{self._reasons[name]}{refusal}"

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

    def require_finite(self, numbers: Tensor) -> None:
        """Refuse gradients that are not finite.

        Raises:
            DiagnosticsError: some are not.
        """
        if not bool(torch.isfinite(numbers).all()):
            place = int((~torch.isfinite(numbers)).nonzero()[0])
            raise DiagnosticsError(
                f"the gradient of example {place} is not finite, or too long for its precision to hold its square",
                expected="finite parameters, data and gradients",
            )

    @property
    def how(self) -> str:
        """The method in one line."""
        return (
            f"one recorded pass for each batch; {self.examples} examples, {self.objective.description}{self.exceptions}"
        )

    @property
    def exceptions(self) -> str:
        """How many parameters were measured another way; nothing if none was."""
        text = ""
        for way, words in ((VMAP, "by vmap"), (LOOP, LOOP)):
            count = sum(way in ways for ways in self._ways.values())
            text += f"; {count} of {len(self.routes)} parameters {words}" if count else ""
        return text
