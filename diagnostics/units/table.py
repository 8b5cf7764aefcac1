"""The table of unit activity: one row for each non-linearity."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class LayerActivity:
    """The units of one non-linearity. What is None could not be told from what was run.

    Attributes:
        layer: module path of the non-linearity; ``path.tanh`` for a functional call.
        nonlinearity: its family, e.g. ``"relu"``.
        units: channels or features.
        dormant: units with a score of at most τ.
        dead: units without slope and output on every sample.
        saturated: units that are flat, with an output, on at least 95 % of samples.
        linearised: units with one slope on at least 99 % of samples.
        duplicate: units whose output is that of another unit of the layer.
        outliers: units whose RMS is more than six times the layer's median.
        gated_dormant: of a gated layer, units whose gated product scores at most τ; None without a gate.
        gradient_dormant: units that the loss hardly depends on; needs an Objective.
        frozen: units whose incoming weights have no gradient at all; needs an Objective.
        sign_entropy: mean over units of the entropy of the sign of the pre-activation, in bits.
        rms: root of the mean square of all outputs.
        outlier_ratio: the largest RMS of a unit over the median; None where half of the units have no output.
        samples: positions judged per unit (examples, times pixels or tokens).
        scores: (units,), E|h_i| over its mean across the layer.
        gradient_scores: (units,), E|∂L/∂h_i| over its mean across the layer; None without an Objective.
    """

    layer: str
    nonlinearity: str
    units: int
    dormant: int
    dead: int
    saturated: int
    linearised: int
    duplicate: int | None
    outliers: int | None
    gated_dormant: int | None
    gradient_dormant: int | None
    frozen: int | None
    sign_entropy: float
    rms: float = field(compare=False)
    outlier_ratio: float | None = field(compare=False)
    samples: int
    scores: Tensor = field(repr=False, compare=False)
    gradient_scores: Tensor | None = field(repr=False, compare=False, default=None)

    @property
    def firing_bound(self) -> float:
        """With 95 % confidence a unit called dead works on less than this share of inputs (Clopper-Pearson)."""
        return float(1.0 - 0.05 ** (1.0 / self.samples))


COLUMNS = tuple(one.name for one in fields(LayerActivity) if not one.name.endswith("scores"))

_HEADINGS = {
    "nonlinearity": "",
    "gated_dormant": "gated-dormant",
    "gradient_dormant": "gradient-dormant",
    "sign_entropy": "sign-entropy",
    "outlier_ratio": "largest/median",
}


@dataclass(frozen=True, repr=False)
class UnitActivity:
    """A table with one row per non-linearity, in the order in which they run.

    Attributes:
        rows: one LayerActivity each.
        tau: of the dormant score.
        without_gradients: why nothing is known of gradients; empty where it is.
    """

    rows: list[LayerActivity]
    tau: float
    without_gradients: str = ""

    def to_pandas(self) -> pandas.DataFrame:
        """The counts as a DataFrame. Needs pandas."""
        import pandas

        return pandas.DataFrame([{name: getattr(row, name) for name in COLUMNS} for row in self.rows], columns=COLUMNS)

    def __str__(self) -> str:
        if not self.rows:
            return "no non-linearity was seen"
        # Columns of which no row knows anything are left out.
        shown = [name for name in COLUMNS if any(getattr(row, name) is not None for row in self.rows)]
        texts = [[_HEADINGS.get(name, name) for name in shown]]
        texts += [[_text(getattr(row, name)) for name in shown] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        lines = []
        for cells in texts:
            named = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
            counts = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
            lines.append("  ".join((*named, *counts)))
        return "\n".join(lines)

    __repr__ = __str__


def _text(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
