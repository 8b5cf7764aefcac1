"""Which eigenvalues are asked for, and where any that were missed would have to lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy

Which = Literal["LA", "SA", "LM", "BE"]
CHOICES = get_args(Which)


@dataclass(frozen=True)
class Wanted:
    """The k most extreme of a set of values, in ARPACK's words.

    Attributes:
        which: ``"LA"`` the largest, descending; ``"SA"`` the smallest, ascending; ``"LM"`` the largest in magnitude,
            by descending magnitude; ``"BE"`` both ends, ascending, with the odd one from the high end.
        k: how many.
    """

    which: Which
    k: int

    @property
    def from_low_end(self) -> int:
        """How many are taken at the low end, whatever the values; for ``"LM"`` nobody knows."""
        return {"LA": 0, "SA": self.k, "LM": 0, "BE": self.k // 2}[self.which]

    @property
    def at_most_one_per_end(self) -> bool:
        """Whether one Krylov space can hold all that is asked for, copies of repeated eigenvalues included."""
        return self.k <= (2 if self.which == "BE" else 1)

    def among(self, ascending: numpy.ndarray) -> numpy.ndarray:
        """Where in ascending values (n,) the wanted ones are: (min(k, n),), in the order of the result."""
        count = len(ascending)
        if self.which == "LM":
            return numpy.argsort(-numpy.abs(ascending), kind="stable")[: self.k]
        if count <= self.k:
            indices = numpy.arange(count)
        else:
            low = self.from_low_end
            indices = numpy.concatenate([numpy.arange(low), numpy.arange(count - self.k + low, count)])
        return indices[::-1] if self.which == "LA" else indices

    def more(self, k: int) -> Wanted:
        """The same for k values; the end that nothing was wanted from stays out of it."""
        return Wanted("LA", k) if self.which == "BE" and self.k == 1 else replace(self, k=k)

    def bounds(self, values: numpy.ndarray, slack: Callable[[numpy.ndarray], numpy.ndarray]) -> tuple[float, float]:
        """The interval in which every other eigenvalue lies if none was missed.

        Args:
            values: (k,), found, in the order of the result.
            slack: how far beyond a value another one would still count as the same.
        """
        if self.which == "LM":
            edge = float(abs(values[-1]) + slack(values[-1]))
            return -edge, edge
        low, ascending = self.from_low_end, numpy.sort(values)
        return (
            float(ascending[low - 1] - slack(ascending[low - 1])) if low > 0 else -math.inf,
            float(ascending[low] + slack(ascending[low])) if low < self.k else math.inf,
        )
