"""The table of effective learning rates: one row per tensor, to print or to hand to pandas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diagnostics.estimate import Estimate

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class TensorRate:
    """How one tensor learns. None stands for what does not exist: rows of a vector, moments of plain SGD, rates of an
    optimizer whose step is not understood.

    Attributes:
        tensor: its name.
        lr: the rate in its parameter group.
        coordinate_rate: the step per unit of steady gradient: η F(1) for SGD; where the optimizer scales each
            coordinate, the median of η F(1) / (√v̂ + ε) over coordinates, with half their interquartile range as
            spread.
        weight_norm: ‖w‖.
        weight_magnitude: mean |w|.
        gradient_norm: ‖∇L‖ on the objective.
        alignment: cos(w, ∇L); zero for scale-invariant tensors.
        scale_invariant: whether ⟨w, ∇L⟩ = 0, L(2w) = L(w) and ∇L(2w) = ∇L(w)/2.
        effective: η/‖w‖² (SGD) or η/‖w‖ (adaptive optimizers) for scale-invariant tensors; None for others, and for
            Adafactor, whose steps grow with the weights.
        epsilon_share: share of coordinates with √v̂ < ε, where the adaptive rate is really SGD with rate η/ε.
        invariant_rows: share of rows that are scale-invariant each by itself, of those that have a gradient.
        row_effective: the same rates row by row: their median over these rows, half their interquartile range as
            spread.
        gradient_over_moment: RMS_t of the objective's gradient; see ``MomentStatistics``.
        sign_agreement: share of coordinates in which it and the first moment have one sign.
        moment_alignment: cos of the two.
        row_rates: (rows,), float64 on the CPU: every row's rate, nan where the row is not scale-invariant.
    """

    tensor: str
    lr: float
    coordinate_rate: Estimate | None
    weight_norm: Estimate
    weight_magnitude: Estimate
    gradient_norm: Estimate
    alignment: Estimate
    scale_invariant: bool
    effective: Estimate | None
    epsilon_share: Estimate | None
    invariant_rows: Estimate | None
    row_effective: Estimate | None
    gradient_over_moment: Estimate | None
    sign_agreement: Estimate | None
    moment_alignment: Estimate | None
    row_rates: Tensor | None = field(compare=False, repr=False)


@dataclass(frozen=True, repr=False)
class EffectiveLearningRates:
    """A table with one row per tensor that the optimizer and the objective share.

    Attributes:
        rows: one per tensor, in the model's order.
        note: why there are no rates, for an optimizer whose step is not understood; empty otherwise.
    """

    rows: list[TensorRate]
    note: str = ""

    def to_pandas(self) -> pandas.DataFrame:
        """The values as a DataFrame; errors in columns that end in ``_error``. Needs pandas."""
        import pandas

        return pandas.DataFrame([dict(_cells(row)) for row in self.rows])

    def __str__(self) -> str:
        width = max([6, *(len(row.tensor) for row in self.rows)])
        lines = [f"{'tensor':<{width}}  {'lr':>9}  {'per coord.':>10}  {'norm':>9}  {'cos(w,g)':>9}  effective"]
        for row in self.rows:
            rate = "unknown" if row.coordinate_rate is None else f"{row.coordinate_rate.value:.3g}"
            lines.append(
                f"{row.tensor:<{width}}  {row.lr:>9.3g}  {rate:>10}  "
                f"{row.weight_norm.value:>9.3g}  {row.alignment.value:>9.2g}  {_in_words(row)}"
            )
        return "\n".join([*lines, *([self.note] if self.note else [])])

    __repr__ = __str__


def _in_words(row: TensorRate) -> str:
    if row.effective is not None:
        return f"{row.effective.value:.3g}"
    if row.scale_invariant:
        return "scale-invariant"
    alone = row.invariant_rows is not None and row.invariant_rows.value > 0
    return "some rows scale-invariant" if alone else "not scale-invariant"


def _cells(row: TensorRate) -> Iterator[tuple[str, Any]]:
    for column in fields(row):
        value = getattr(row, column.name)
        if isinstance(value, Estimate):
            yield column.name, value.value
            yield f"{column.name}_error", value.error
        elif not isinstance(value, Tensor) and column.name != "row_rates":
            yield column.name, value
