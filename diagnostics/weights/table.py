"""The table of weight matrices: one row per matrix, to print or to hand to pandas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diagnostics.estimate import Estimate
from diagnostics.weights.entries import Entries
from diagnostics.weights.power_law import PowerLaw

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class MatrixSpectrum:
    """One weight matrix.

    Attributes:
        name: its name.
        shape: of the tensor; rows are the first axis, columns all others together.
        dtype: without ``torch.``.
        entries: counts over all entries; None for tensors that cannot be read as numbers.
        spectral_norm: σ₁.
        operator_norm: σ₁ / √(rows/columns).
        condition: σ₁/σ_r; ``nan`` where σ_r is below what the arithmetic resolves.
        stable_rank: ‖W‖²/σ₁².
        effective_rank: exponential of the entropy of the singular values.
        power_law: fitted to the tail of the eigenvalues σ².
        normal_distance: Wasserstein-1 distance of the entries to a normal distribution of their mean and variance, in
            standard deviations.
        uniform_distance: the same to a uniform distribution.
        zero_rows: rows that are zero throughout.
        repeated_rows: rows whose |cos| with an earlier one is 0.9999 or more.
        note: why something is missing; empty where nothing is.
        singular_values: (r,) float64, largest first; None where they were not taken.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    entries: Entries | None = None
    spectral_norm: Estimate | None = None
    operator_norm: Estimate | None = None
    condition: Estimate | None = None
    stable_rank: Estimate | None = None
    effective_rank: Estimate | None = None
    power_law: PowerLaw | None = None
    normal_distance: Estimate | None = None
    uniform_distance: Estimate | None = None
    zero_rows: int | None = None
    repeated_rows: int | None = None
    note: str = ""
    singular_values: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.shape[0], math.prod(self.shape[1:])


@dataclass(frozen=True, repr=False)
class WeightSpectra:
    """A table with one row per weight matrix, in their order."""

    rows: list[MatrixSpectrum]

    def to_pandas(self) -> pandas.DataFrame:
        """The values as a DataFrame; errors in columns that end in ``_error``. Needs pandas."""
        import pandas

        return pandas.DataFrame([dict(_cells(row)) for row in self.rows])

    def __str__(self) -> str:
        if not self.rows:
            return "no weight matrix"
        width = max([6, *(len(row.name) for row in self.rows)])
        lines = [
            f"{'matrix':<{width}}  {'shape':>14}  {'norm':>9}  {'rms→rms':>9}  {'condition':>9}  {'stable':>7}  "
            f"{'effective':>9}  exponent"
        ]
        lines += [_line(row, width) for row in self.rows]
        return "\n".join(lines)

    __repr__ = __str__


def _line(row: MatrixSpectrum, width: int) -> str:
    shape = "x".join(map(str, row.shape))
    if row.spectral_norm is None:
        return f"{row.name:<{width}}  {shape:>14}  {row.note}"
    numbers = [
        f"{'-' if value is None else f'{value.value:.4g}' if value.determined else '?':>{columns}}"
        for value, columns in (
            (row.spectral_norm, 9),
            (row.operator_norm, 9),
            (row.condition, 9),
            (row.stable_rank, 7),
            (row.effective_rank, 9),
        )
    ]
    tail = "-" if row.power_law is None else str(row.power_law.exponent)
    doubt = " (doubtful)" if row.power_law is not None and row.power_law.warning and tail != "undetermined" else ""
    return f"{row.name:<{width}}  {shape:>14}  {'  '.join(numbers)}  {tail}{doubt}"


def _cells(row: MatrixSpectrum) -> Iterator[tuple[str, Any]]:
    for column in fields(row):
        value = getattr(row, column.name)
        if column.name == "power_law":
            yield "exponent", None if value is None else value.exponent.value
            yield "exponent_error", None if value is None else value.exponent.error
            yield "p_value", None if value is None or value.p_value is None else value.p_value.value
        elif column.name == "entries":
            counts = {} if value is None else {inner.name: getattr(value, inner.name) for inner in fields(value)}
            yield from counts.items()
        elif isinstance(value, Estimate):
            yield column.name, value.value
            yield f"{column.name}_error", value.error
        elif column.name != "singular_values":
            yield column.name, value
