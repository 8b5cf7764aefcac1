"""How far the loss can rise nearby, along a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from diagnostics import DiagnosticsError, ascent_sharpness
from diagnostics.arguments import real_number
from probes.probe import Cost, Moment, Need, Reading
from probes.readings import reading_of


@dataclass
class AscentSharpness:
    """The rise of the loss one step of length ρ up the gradient: the sharpness that SAM lowers, from below.

    Takes a gradient and two losses of the objective.

    Args:
        rho: ρ, the length of the step, in units of the parameters; adaptive: in parts of each weight. Rises compare
            only at the same ρ.
        adaptive: ASAM's form, which rescaling layers against each other does not change.
        every: own schedule; the Monitor's by default.

    Raises:
        DiagnosticsError: a ρ that is not positive.

    Source: Foret et al., arXiv 2010.01412; Kwon et al., arXiv 2102.11600.
    """

    rho: float = 0.05
    adaptive: bool = False
    every: int | Callable[[int], bool] | None = None
    name: ClassVar[str] = "ascent"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "expensive"

    def __post_init__(self) -> None:
        real_number("rho is not positive", self.rho, "a radius such as 0.05", lambda rho: 0 < rho < math.inf)

    def settings(self) -> dict[str, Any]:
        """ρ and the form."""
        return {"rho": self.rho, "adaptive": self.adaptive}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """The rise within ρ, what a plane would have, and the loss it starts from."""
        assert moment.objective is not None
        try:
            measured = ascent_sharpness(moment.objective, self.rho, adaptive=self.adaptive)
        except DiagnosticsError as reason:
            yield Reading("rise", None, status="skipped", note=str(reason))
            return
        yield Reading("rho", float(self.rho))
        yield reading_of("rise", measured.value)
        if measured.value.determined:
            yield reading_of("first_order", measured.first_order)
        yield Reading("loss", measured.loss, note=moment.objective.description)
