"""A number with its error and the way it was taken.

Nothing in this toolkit hands a bare float to a reader: a value without its error invites decisions that the
measurement cannot carry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ErrorKind = Literal["exact", "residual", "standard error", "spread", "bound"]


@dataclass(frozen=True)
class Estimate:
    """A measured value, its error, the kind of that error, and how it was taken.

    Args:
        value: the number; ``nan`` when it could not be determined.
        error: half-width, in the units of ``value``; 0 when ``kind`` is ``"exact"``.
        kind: ``"exact"`` (rounding only), ``"residual"`` (a bound from an eigen-residual), ``"standard error"`` (one
            sigma over draws), ``"spread"`` (standard deviation over members), ``"bound"`` (a one-sided 95 %
            confidence bound).
        how: one line a reader can check: method, batches, products, route.

    Example:
        >>> print(Estimate(1.0234, 0.0031, "residual", "Lanczos, 12 products"))
        1.023 ± 0.003
        >>> float(Estimate(2.0, 0.0, "exact", "closed form"))
        2.0
    """

    value: float
    error: float
    kind: ErrorKind
    how: str

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return format_value(self.value, self.error)

    def interval(self) -> tuple[float, float]:
        """Where the truth is to be expected: value ± error, and for a standard error the 95 % interval.

        Example:
            >>> Estimate(10.0, 1.0, "standard error", "ten draws").interval()
            (8.04, 11.96)
        """
        reach = 1.96 * self.error if self.kind == "standard error" else self.error
        return self.value - reach, self.value + reach

    def __format__(self, spec: str) -> str:
        """``f"{estimate:.3f}"`` is the value alone, ``f"{estimate}"`` has its error."""
        return format(self.value, spec) if spec else str(self)

    @property
    def determined(self) -> bool:
        """Whether the value is a number at all."""
        return math.isfinite(self.value)


def exact(value: float, how: str) -> Estimate:
    """An Estimate whose only error is rounding.

    Example:
        >>> exact(3.5, "norm of one tensor").kind
        'exact'
    """
    return Estimate(float(value), 0.0, "exact", how)


def listing(result: object) -> str:
    """One line for each Estimate of a result, for those who print it; what is None is left out.

    Example:
        >>> @dataclass
        ... class Pair:
        ...     first: Estimate
        ...     second: Estimate | None = None
        >>> print(listing(Pair(exact(2.0, "counted"))))
        first  2
    """
    found = {name: value for name, value in vars(result).items() if isinstance(value, Estimate)}
    width = max(map(len, found), default=0)
    return "\n".join(
        f"{name:<{width}}  {value}" + ("" if value.determined else f" ({value.how})") for name, value in found.items()
    )


def format_value(value: float, error: float | None = None) -> str:
    """Text for ``value ± error``, the error to one digit and the value to the same place.

    Five digits are as many as anyone can use: smaller errors are rounded up to the last of them.

    Example:
        >>> format_value(0.0123456), format_value(1234.567, 31.0), format_value(float("nan"))
        ('0.01235', '1230 ± 30', 'undetermined')
        >>> format_value(1.04208213, 1e-6), format_value(2.0, float("inf"))
        ('1.0421 ± 0.0001', '2 ± ?')
        >>> format_value(0.0, 0.5), format_value(1.2e-6, 1e-7)
        ('0.0 ± 0.5', '1.2e-06 ± 1e-07')
    """
    if not math.isfinite(value):
        return "undetermined"
    if error is not None and not math.isfinite(error):
        return f"{value:.4g} ± ?"
    if error is None or error <= 0.0:
        return f"{value:.4g}"
    size = math.floor(math.log10(abs(value))) if value else -math.inf
    if value:
        error = max(error, 10.0 ** (size - 4))
    place = math.floor(math.log10(error))
    if not 1e-4 <= max(abs(value), error) < 1e7:
        digits = max(0, int(size) - place) if value else 0
        return f"{value:.{digits}e} ± {error:.0e}"
    if place >= 0:
        return f"{round(value, -place):.0f} ± {round(error, -place):.0f}"
    return f"{value:.{-place}f} ± {error:.{-place}f}"
