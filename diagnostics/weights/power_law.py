"""The tail of a sample as a power law: its exponent, where it begins, and whether it is one at all.

From x_min on, the exponent of p(x) ∝ x^(−α) that makes n values most likely is α = 1 + n / Σ ln(x/x_min), with standard
error (α − 1)/√n. Every value is tried as x_min, and the one is taken whose tail is closest to its own fit:
D = max |S(x) − P(x)| is smallest, S being the share of the tail strictly below x, as in the authors' program.

Any sample has such a fit. Whether it means something is a question of its own: samples are drawn from the fitted tail,
with what lies below x_min drawn from the data, and fitted in the same way; p is the share of them whose D is at least
as large. A p below 0.1 rules the power law out. A larger one does not confirm it: x_min moves up until a short enough
piece fits, and that of an exponential does.

The error does not know that x_min was chosen by the fit: of 600 Pareto samples, 90 % had the truth within 1.96 of it.
All this takes values for independent draws. Eigenvalues of one matrix are not: they keep their distance, so a
spectrum is closer to a smooth curve than a sample is, p comes out too large, and the standard error is a guide only.

Source: Clauset, Shalizi and Newman, arXiv 0706.1062.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from diagnostics.arguments import whole_number
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact, listing

SHORT = 50
"""A tail of fewer values than this hardly tells one heavy-tailed distribution from another."""

RULED_OUT = 0.1
"""A p-value below this rules a power law out, as its authors use it."""

FACTOR = 2.0
"""A tail that does not even double looks straight on logarithmic axes whatever it is."""


@dataclass(frozen=True, repr=False)
class PowerLaw:
    """A power law fitted to the upper tail of a sample.

    Attributes:
        exponent: α of p(x) ∝ x^(−α), with its standard error; ``nan`` where there is too little to fit.
        x_min: where the tail begins.
        tail: how many values it has.
        distance: D, the largest gap between the observed and the fitted share.
        p_value: share of samples drawn from the fit whose D is at least as large; None without draws.
        warning: why the exponent should not be relied on; empty where nothing speaks against it.
    """

    exponent: Estimate
    x_min: Estimate
    tail: int
    distance: Estimate
    p_value: Estimate | None
    warning: str

    def __str__(self) -> str:
        return "\n".join([listing(self), *([f"but {self.warning}"] if self.warning else [])])

    __repr__ = __str__


def power_law(values: Tensor | numpy.ndarray | Sequence[float], *, draws: int = 0, seed: int = 0) -> PowerLaw:
    """Fit a power law to the upper tail of positive values, its start found by trying all of them.

    Args:
        values: (n,), not negative; zeros are left out, as no power law reaches them.
        draws: samples for the p-value, which is then known to about ½/√draws; 0 leaves it out.
        seed: of the draws.

    Raises:
        DiagnosticsError: values of another shape, negative or not finite; or draws that are no count.

    Example:
        >>> values = (1 - numpy.random.default_rng(0).random(1000)) ** (-1 / 1.5)
        >>> fit = power_law(values, draws=100)
        >>> print(fit.exponent, fit.p_value, fit.warning or "no warning")
        2.55 ± 0.07 0.70 ± 0.05 no warning
    """
    draws = whole_number("draws is out of range", draws, "a whole number from 0", 0)
    given = _as_array(values)
    positive = numpy.sort(given[given > 0])
    zeros = len(given) - len(positive)
    # Logarithms throughout: draws from a slow tail exceed every float.
    logs = numpy.log(positive)
    found = _fit(logs)
    if found is None:
        reason = f"fewer than three distinct positive values among {len(given):,}"
        nothing = Estimate(math.nan, math.nan, "exact", reason)
        return PowerLaw(nothing, nothing, 0, nothing, None, f"there are {reason}")
    tail = len(positive) - found.start
    how = f"maximum likelihood over {tail:,} of {len(positive):,} values" + (
        f", {zeros:,} zeros aside" if zeros else ""
    )
    p_value = _p_value(logs, found, draws, seed) if draws else None
    return PowerLaw(
        exponent=Estimate(1.0 + found.rate, found.rate / math.sqrt(tail), "standard error", how),
        x_min=exact(float(positive[found.start]), "smallest D over every value"),
        tail=tail,
        distance=exact(found.distance, "largest gap between the observed and the fitted share"),
        p_value=p_value,
        warning=_warning(tail, float(logs[-1] - logs[found.start]), p_value),
    )


def _as_array(values: Tensor | numpy.ndarray | Sequence[float]) -> numpy.ndarray:
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu().to(torch.promote_types(values.dtype, torch.float64)).numpy()
        found = numpy.asarray(values).astype(float, casting="same_kind")
    except (TypeError, ValueError, RuntimeError) as problem:
        raise DiagnosticsError("values are no real numbers", given=str(problem), expected="numbers, (n,)") from problem
    bad = int((~(found >= 0)).sum() + numpy.isposinf(found).sum())
    if found.ndim != 1 or bad:
        raise DiagnosticsError(
            "values cannot be fitted",
            given=f"shape {found.shape}" + (f", {bad:,} of them negative or not finite" if bad else ""),
            expected="(n,), none negative, all finite",
        )
    return found


class _Fit(NamedTuple):
    """How many values lie below the tail, α − 1, and D."""

    start: int
    rate: float
    distance: float


def _fit(logs: numpy.ndarray) -> _Fit | None:
    """The best tail of ordered logarithms; None where two values or fewer would be met by any exponent."""
    from diagnostics.weights.tail_scan import best_start

    size = len(logs)
    first = numpy.flatnonzero(numpy.diff(logs, prepend=-math.inf) > 0)
    if len(first) < 3:
        return None
    # Against the largest, so that sums over the tail are of small numbers.
    logs = logs - logs[-1]
    sums = numpy.ascontiguousarray(numpy.cumsum(logs[::-1])[::-1][first])
    owner = numpy.searchsorted(first, numpy.arange(size + 1))
    place, distance = best_start(logs[first], first, owner, sums, size)
    start = int(first[place])
    tail = size - start
    return _Fit(start, float(tail / (sums[place] - tail * logs[start])), float(distance))


def _p_value(logs: numpy.ndarray, fit: _Fit, draws: int, seed: int) -> Estimate:
    random = numpy.random.default_rng(seed)
    size = len(logs)
    body, begin = logs[: fit.start], logs[fit.start]
    larger = 0
    for _ in range(draws):
        in_tail = random.binomial(size, (size - fit.start) / size)
        tail = begin + random.standard_exponential(in_tail) / fit.rate
        below = body[random.integers(fit.start, size=size - in_tail)] if fit.start else body
        drawn = _fit(numpy.sort(numpy.concatenate([below, tail])))
        larger += drawn is not None and drawn.distance >= fit.distance
    # Half a success more and one draw more keep the error from vanishing at either end.
    share = (larger + 0.5) / (draws + 1.0)
    error = math.sqrt(share * (1.0 - share) / draws)
    return Estimate(larger / draws, error, "standard error", f"{draws:,} samples drawn from the fit, seed {seed}")


def _warning(tail: int, reach: float, p_value: Estimate | None) -> str:
    reasons = []
    if p_value is not None and p_value.value < RULED_OUT:
        reasons.append(f"a power law is ruled out (p = {p_value.value:.2g}, below {RULED_OUT})")
    if tail < SHORT:
        reasons.append(f"the tail has {tail} values only, fewer than {SHORT}")
    if reach < math.log(FACTOR):
        reasons.append(f"the tail spans a factor of {math.exp(reach):.2g} only, less than {FACTOR:g}")
    return "; ".join(reasons)
