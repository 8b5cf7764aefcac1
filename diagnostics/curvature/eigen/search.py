"""When a search for extreme eigenvalues may stop, and what it does until then.

*Residuals.* Every wanted Ritz pair must have a residual of at most ``tol``·|θ|. Rules on the change of θ stop 1 to 5 %
early, and fixed step counts can be off by half.

*One value (per end).* The run goes on until an eigenvalue further out can no longer have stayed hidden (``hidden``
says how that is known), or, where a spectrum without a gap makes that long, for twice the steps that the residual
needed; if a value has risen meanwhile, the wait begins anew.

*Several values.* A run may have passed over one of them, above all over the last, and holds one copy of each at most.
So it waits until an eigenvalue just beyond the last can no longer have hidden, or for half as many steps again. Then
what was found is locked, and a run from a random vector in its complement looks for copies and for whatever the first
start lacked. All that it brings up is collected and settled together, and another run follows until one brings nothing:
either nothing further out can have hidden from it, or it has taken the d = 5 + 1.5 ln P steps that a random start
needs to show a lone eigenvalue (Kuczyński & Woźniakowski 1992). The latter is for an edge of the bulk, where the next
eigenvalue is always near and proof would take hundreds of products. Where the basis is so small that the run restarts
every j steps, the steps are worth less: d² / j of them are asked for, as a polynomial of degree j gains only (j/d)² of
what one of degree d does where the gap is 1/d².

A search that runs out of products says which of these it still owed.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy
import torch
from torch import Tensor

from diagnostics.curvature.eigen.hidden import needed
from diagnostics.curvature.eigen.lanczos import Lanczos
from diagnostics.curvature.eigen.wanted import Wanted

RUNNERS_UP, RUNNERS_UP_WEIGHT = 4, 0.1
"""How many Ritz vectors behind the wanted ones go into ``restart``, and how much of each: an eigenvalue that overtakes
another was mostly among them."""

KNOWN = 0.1
"""A runner-up is told of when its residual is at most this share of it."""

WAIT = 2.0
"""A single value whose proof is slow is accepted after so many times the steps at which it met its tolerance. With 1.5,
a quarter of a product is saved, and five of 9300 random starts end wrong instead of one (see ``hidden``)."""

COLLECT = 1.5
"""Where several values are wanted, or a later run has brought up something new: so many times the steps that met the
tolerance. What else the run holds comes along. Stopped at the tolerance itself, 4 of 300 searches for 20 values passed
over the last of them; like this, none of 600 did."""

LEAST_STEPS = 16
"""But never fewer than so many steps, though 5 + 1.5 ln P be less: below P = 1500 a product costs next to nothing."""

WARM_STEPS = 3
"""A warm start is followed for at least so many steps. After one, all there is to judge by is one number of its noise,
which is small by chance as often as not."""

Ending = Literal["settled", "nothing new", "out of products"]


def steps_between_looks(device: torch.device, rows: int) -> int:
    """A look costs the wait for a device and the eigenvalues of a matrix as large as the run is long."""
    return max(1, rows // 48) if device.type == "cpu" else max(4, rows // 16)


class Search:
    """A search for wanted eigenpairs on one operator.

    Args:
        lanczos: with an empty basis.
        wanted: which, and how many.
        tol: relative residual.
        budget: of products, at least k.

    Attributes:
        values: (k,), in the order of the result.
        restart: (P,), the eigenvectors with some of the runners-up.
        behind: (j,) values of the runners-up that came out well enough to be told, and (j,) their residuals.
        proved: whether the search ended by its own rules, not for want of products.
    """

    def __init__(self, lanczos: Lanczos, wanted: Wanted, tol: float, budget: int) -> None:
        self.lanczos = lanczos
        self.wanted = wanted
        self.tol = tol
        self.budget = budget
        self.values = numpy.zeros(0)
        self.restart = torch.empty(0)
        self.behind = numpy.zeros(0), numpy.zeros(0)
        self.proved = False
        self._met: tuple[int, numpy.ndarray, numpy.ndarray] | None = None
        self._restarted = False

    def slack(self, values: numpy.ndarray) -> numpy.ndarray:
        """The tolerance of each value, or the error of the products where that is more."""
        slack: numpy.ndarray = numpy.maximum(self.tol * numpy.abs(values), self.lanczos.floor)
        return slack

    def run(self, start: Tensor, warm: bool) -> None:
        """Find the values and leave the vectors in the basis of ``lanczos``."""
        lanczos = self.lanczos
        lanczos.begin(start)
        ending = self._pursue(warm)
        self._settle()
        while ending == "settled" and not self.wanted.at_most_one_per_end and lanczos.rows < lanczos.size:
            if lanczos.matvecs >= self.budget:
                return
            lanczos.begin(lanczos.random())
            ending = self._pursue(warm=False)
            if ending == "nothing new":
                lanczos.drop()
            else:
                self._settle()
        self.proved = ending != "out of products"

    def _pursue(self, warm: bool) -> Ending:
        """One run: until what it brings up is settled, or it has shown that there is nothing to bring up."""
        lanczos, k = self.lanczos, self.wanted.k
        begun, self._met, self._restarted = lanczos.matvecs, None, False
        while True:
            self._advance()
            steps = lanczos.matvecs - begun
            values, coefficients = lanczos.ritz(lanczos.locked)
            fresh = self._fresh(values)
            if lanczos.locked + len(values) >= k:
                residuals = numpy.abs(lanczos.beta * coefficients[-1, fresh])
                if self._may_stop(steps, values[fresh], residuals, warm):
                    return "settled" if len(fresh) else "nothing new"
            if lanczos.matvecs >= self.budget:
                return "out of products"
            if lanczos.beta == 0.0:
                lanczos.renew()
            elif lanczos.full:
                self._restarted = True
                lanczos.restart(coefficients[:, self.wanted.more(self._kept(len(fresh))).among(values)])

    def _may_stop(self, steps: int, values: numpy.ndarray, residuals: numpy.ndarray, warm: bool) -> bool:
        lanczos, size = self.lanczos, self.lanczos.size
        first = lanczos.locked == 0
        if len(values) == 0:
            return lanczos.beta == 0.0 or steps >= self._enough() or self._nothing_hidden(self.values, warm)
        if not (residuals <= self.slack(values)).all():
            return False
        if lanczos.beta == 0.0:
            return True
        if self._met is None or self._moved(values):
            self._met = steps, values, residuals + lanczos.floor
        if first and steps >= (WARM_STEPS if warm else 0) and self._nothing_hidden(values, warm):
            return True
        met = self._met[0]
        if not (first and self.wanted.at_most_one_per_end):
            return steps >= max(COLLECT * met, met + 3)
        at_least = 3 + math.ceil(0.5 * math.log(size)) if warm else 0
        return steps >= max(WAIT * met, met + 3, at_least)

    def _enough(self) -> int:
        """Steps in which a random start shows a lone eigenvalue, restarts included."""
        unbroken = max(LEAST_STEPS, 5 + math.ceil(1.5 * math.log(self.lanczos.size)))
        cycle = self.lanczos.limit - self.lanczos.locked - self._kept(0)
        return max(unbroken, math.ceil(unbroken**2 / cycle)) if self._restarted else unbroken

    def _moved(self, values: numpy.ndarray) -> bool:
        """Whether others, or more, are in the lead than when the tolerance was first met."""
        assert self._met is not None
        _, former, error = self._met
        return len(values) != len(former) or bool((numpy.abs(values - former) > error).any())

    def _nothing_hidden(self, values: numpy.ndarray, warm: bool) -> bool:
        edges = [edge for edge in self.wanted.bounds(values, self.slack) if math.isfinite(edge)]
        return min(self.lanczos.hidden.seen(edge) for edge in edges) >= needed(self.lanczos.size, warm)

    def _fresh(self, values: numpy.ndarray) -> numpy.ndarray:
        """Which Ritz values of the run are wanted beside those locked, as far as its rows can hold them."""
        if self.lanczos.locked == 0:
            return self.wanted.among(values)
        low, high = self.wanted.bounds(self.values, self.slack)
        outside = numpy.flatnonzero((values < low) | (values > high))
        everything = numpy.concatenate([self.values, values[outside]])
        order = numpy.argsort(everything, kind="stable")
        best = order[self.wanted.among(everything[order])]
        fresh: numpy.ndarray = outside[best[best >= len(self.values)] - len(self.values)]
        return fresh[: max(1, self.lanczos.limit - self.lanczos.locked - 1)]

    def _kept(self, fresh: int) -> int:
        """How many Ritz vectors survive a restart: the wanted ones and half of the room they leave."""
        room = self.lanczos.limit - self.lanczos.locked
        wanted = max(1, self.wanted.k if self.lanczos.locked == 0 else fresh)
        return max(1, min(room - 2, wanted + max(1, (room - wanted) // 2)))

    def _advance(self) -> None:
        """Some steps, and a look at them; a look at each where products are short or wasted steps likely."""
        lanczos = self.lanczos
        if self.budget < 2 * self.wanted.k + 16 or lanczos.broken:
            steps = 1
        else:
            steps = steps_between_looks(lanczos.operator.device, lanczos.rows - lanczos.locked)
        for _ in range(steps):
            lanczos.step()
            if lanczos.must_look or lanczos.matvecs >= self.budget:
                break
        lanczos.read()

    def _settle(self) -> None:
        """Keep the best k of all there is."""
        values, coefficients = self.lanczos.ritz()
        residuals = self.lanczos.residuals_of(coefficients)
        leading = self.wanted.more(self.wanted.k + RUNNERS_UP).among(values)
        best = self.wanted.among(values)
        weights = RUNNERS_UP_WEIGHT * coefficients[:, leading].sum(axis=1)
        weights += (1.0 - RUNNERS_UP_WEIGHT) * coefficients[:, best].sum(axis=1)
        self.restart = self.lanczos.combine(weights)
        self.values = values[best]
        behind = [place for place in leading if place not in best and residuals[place] <= KNOWN * abs(values[place])]
        self.behind = values[behind], residuals[behind]
        self.lanczos.settle(coefficients[:, best])
