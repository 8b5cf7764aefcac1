"""Which units still do something: dormant, dead, saturated and linearised units are four numbers, not one.

* dormant: E|h_i| is at most τ times the layer's mean (Sokar et al., arXiv 2302.12902). Relative: a dormant unit may
  still fire.
* dead: flat (|φ'| < 10⁻³) with no output on every sample; no gradient can reach its weights.
* saturated: flat (|φ'| below 3 % of its working slope, |z| ≈ 2.5 for tanh) with an output, on at least 95 % of
  samples.
* linearised: φ' within 1 % of its working slope on at least 99 % of samples; alive, but the layer could be merged
  away (Lyle et al., arXiv 2402.18762).

All are read from post-activations and slopes, per channel for convolutions and per feature for tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diagnostics.errors import DiagnosticsError
from diagnostics.parameters import unwrap
from diagnostics.quiet import quiet
from diagnostics.units.capture import Site, capture
from diagnostics.units.forward import forward_passes
from diagnostics.units.nonlinearities import slopes

if TYPE_CHECKING:
    import pandas

FLAT = 1e-3
SILENT = 1e-2
SATURATED_SLOPE, SATURATED_SHARE = 0.03, 0.95
LINEAR_SLOPE, LINEAR_SHARE = 0.01, 0.99


@dataclass(frozen=True)
class LayerActivity:
    """The units of one non-linearity.

    Attributes:
        layer: module path of the non-linearity; ``path.tanh`` for a functional call.
        nonlinearity: its family, e.g. ``"relu"``.
        units: channels or features.
        dormant: units with a score of at most τ.
        dead: units without slope and output on every sample.
        saturated: units that are flat, with an output, on at least 95 % of samples.
        linearised: units with one slope on at least 99 % of samples.
        samples: positions judged per unit (examples, times pixels or tokens).
        scores: (units,), E|h_i| over its mean across the layer.
    """

    layer: str
    nonlinearity: str
    units: int
    dormant: int
    dead: int
    saturated: int
    linearised: int
    samples: int
    scores: Tensor = field(repr=False, compare=False)

    @property
    def firing_bound(self) -> float:
        """With 95 % confidence a unit called dead works on less than this share of inputs (Clopper-Pearson)."""
        return float(1.0 - 0.05 ** (1.0 / self.samples))


@dataclass(frozen=True, repr=False)
class UnitActivity:
    """A table with one row per non-linearity, in the order in which they run."""

    rows: list[LayerActivity]
    tau: float

    def to_pandas(self) -> pandas.DataFrame:
        """The counts as a DataFrame. Needs pandas."""
        import pandas

        columns = ("layer", "nonlinearity", "units", "dormant", "dead", "saturated", "linearised", "samples")
        return pandas.DataFrame([{name: getattr(row, name) for name in columns} for row in self.rows], columns=columns)

    def __str__(self) -> str:
        if not self.rows:
            return "no non-linearity was seen"
        width = max([5, *(len(row.layer) for row in self.rows)])
        lines = [f"{'layer':<{width}}  {'':<10}  units  dormant  dead  saturated  linearised  samples"]
        lines += [
            f"{row.layer:<{width}}  {row.nonlinearity:<10}  {row.units:>5}  {row.dormant:>7}  {row.dead:>4}  "
            f"{row.saturated:>9}  {row.linearised:>10}  {row.samples:>7}"
            for row in self.rows
        ]
        return "\n".join(lines)

    __repr__ = __str__


def unit_activity(model: nn.Module, batch: Any, tau: float = 0.025) -> UnitActivity:
    """Count dormant, dead, saturated and linearised units at every non-linearity, in evaluation mode.

    Args:
        model: any module; non-linearities are seen as modules and as functions alike.
        batch: a tensor of inputs; an ``(inputs, targets)`` pair; a mapping for ``model(**batch)``; or an Objective of
            this model, whose batches are then all run.
        tau: τ of the dormant score; .025 and .1 are customary.

    Raises:
        DiagnosticsError: the batch cannot be run, τ is negative, or a pre-activation is not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> _ = nn.init.constant_(model[0].bias, -100.0)
        >>> unit_activity(model, torch.randn(50, 3)).rows[0].dead
        4
    """
    if not tau >= 0:
        raise DiagnosticsError("tau is negative", given=str(tau), expected="a threshold such as 0.025")
    plain = unwrap(model)
    tallies: dict[str, _Tally] = {}

    def see(site: Site) -> None:
        tallies.setdefault(site.place, _Tally(site)).add(site)

    for run in forward_passes(plain, batch):
        with quiet(plain, "eval"), torch.no_grad(), capture(plain, see):
            run()
    return UnitActivity([tally.row(tau) for tally in tallies.values()], tau)


class _Tally:
    """Sums over samples for the units of one non-linearity."""

    def __init__(self, site: Site) -> None:
        units = site.h.shape[1]
        self.place = site.place
        self.nonlinearity = site.nonlinearity
        self.samples = 0
        self.non_finite = 0
        self.magnitude = torch.zeros(units, dtype=torch.float64)
        self.dead, self.saturated, self.linear = (torch.zeros(units, dtype=torch.int64) for _ in range(3))

    def add(self, site: Site) -> None:
        slope = slopes(site.function, site.z).abs()
        output = site.h.abs()
        relative = slope / site.nonlinearity.slope
        flat = relative < SATURATED_SLOPE
        with_output = torch.ones_like(flat) if site.nonlinearity.bounded else output > SILENT
        silent = (slope < FLAT) & (output <= SILENT) & (not site.nonlinearity.bounded)
        self.samples += len(output)
        self.non_finite += int((~site.z.isfinite()).sum())
        self.magnitude += output.double().sum(0).cpu()
        self.dead += silent.sum(0).cpu()
        self.saturated += (flat & with_output).sum(0).cpu()
        self.linear += ((relative - 1).abs() <= LINEAR_SLOPE).sum(0).cpu()

    def row(self, tau: float) -> LayerActivity:
        # The slope at NaN is whatever the gradient of a comparison with it is: no unit could be judged by that.
        if self.non_finite:
            raise DiagnosticsError(
                f"the pre-activations at {self.place!r} are not finite",
                given=f"{self.non_finite:,} of {self.samples * len(self.magnitude):,} values are NaN or infinite",
                expected="finite weights and inputs",
            )
        mean = self.magnitude / self.samples
        # A layer in which nothing fires has a mean of zero: every one of its units is then dormant.
        scores = mean / (mean.mean() + 1e-9)
        return LayerActivity(
            layer=self.place,
            nonlinearity=self.nonlinearity.name,
            units=len(scores),
            dormant=int((scores <= tau).sum()),
            dead=int((self.dead == self.samples).sum()),
            saturated=int((self.saturated >= SATURATED_SHARE * self.samples).sum()),
            linearised=int((self.linear >= LINEAR_SHARE * self.samples).sum()),
            samples=self.samples,
            scores=scores,
        )
