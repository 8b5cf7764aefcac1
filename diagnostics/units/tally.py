"""Sums over samples for the units of one non-linearity, and what they say once all batches have been run."""

from __future__ import annotations

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.units.capture import Product, Site
from diagnostics.units.duplicates import KEPT, duplicates, sampled
from diagnostics.units.nonlinearities import slopes
from diagnostics.units.table import LayerActivity

FLAT = 1e-3
SILENT = 1e-2
SATURATED_SLOPE, SATURATED_SHARE = 0.03, 0.95
LINEAR_SLOPE, LINEAR_SHARE = 0.01, 0.99
OUTLYING = 6.0
GRADIENT_TAU = 0.01


class Tally:
    """The units of one non-linearity.

    Args:
        site: its first use.
        batches: how many will be run, to share out the samples that are kept.
    """

    def __init__(self, site: Site, batches: int) -> None:
        units = site.h.shape[1]
        self.place = site.place
        self.nonlinearity = site.nonlinearity
        self.samples = 0
        self.non_finite = 0
        self.magnitude, self.square, self.gated, self.gradient = torch.zeros(4, units, dtype=torch.float64)
        self.dead, self.saturated, self.linear, self.positive = torch.zeros(4, units, dtype=torch.int64)
        self.moved = torch.zeros(units, dtype=torch.bool)
        """Units of which some incoming weight has a gradient."""
        self.gated_samples = 0
        self.gate_is_made = False
        """Whether what gates the units was followed to weights."""
        self.differentiated = 0
        self.followed = True
        self._share = max(1, KEPT // batches)
        self._rows: list[Tensor] = []
        self._device = site.h.device

    def add(self, site: Site) -> None:
        """Add what one batch showed."""
        slope = slopes(site.function, site.z).abs()
        output = site.h.abs()
        relative = slope / site.nonlinearity.slope
        flat = relative < SATURATED_SLOPE
        with_output = torch.ones_like(flat) if site.nonlinearity.bounded else output > SILENT
        silent = (slope < FLAT) & (output <= SILENT) & (not site.nonlinearity.bounded)
        self.samples += len(output)
        self.non_finite += int((~site.z.isfinite()).sum())
        self.magnitude += output.double().sum(0).cpu()
        self.square += output.double().square().sum(0).cpu()
        self.dead += silent.sum(0).cpu()
        self.saturated += (flat & with_output).sum(0).cpu()
        self.linear += ((relative - 1).abs() <= LINEAR_SLOPE).sum(0).cpu()
        self.positive += (site.z > 0).sum(0).cpu()
        self._rows.append(sampled(site.h, self._share).cpu())

    def add_product(self, product: Product) -> None:
        """Add what the gated outputs of one batch were."""
        if product.h.shape[1] == len(self.gated):
            self.gated += product.h.abs().double().sum(0).cpu()
            self.gated_samples += len(product.h)
            self.gate_is_made |= bool(product.incoming)

    def row(self, tau: float, *, gradients: bool) -> LayerActivity:
        """The verdicts, those that rest on gradients only where all batches gave some.

        Raises:
            DiagnosticsError: pre-activations are not finite.
        """
        # The slope at NaN is whatever the gradient of a comparison with it is: no unit could be judged by that.
        if self.non_finite:
            raise DiagnosticsError(
                f"the pre-activations at {self.place!r} are not finite",
                given=f"{self.non_finite:,} of {self.samples * len(self.magnitude):,} values are NaN or infinite",
                expected="finite weights and inputs",
            )
        scores = _scores(self.magnitude / self.samples)
        # Where nothing before a unit trains, no gradient comes by: its weights are frozen all the same.
        pull = _relative(self.gradient) if gradients and self.differentiated else None
        # As the forget gate of a recurrent cell on a state that starts at zero: nothing was asked of these units.
        unasked = self.gated_samples > 0 and not self.gate_is_made and not bool(self.gated.any())
        gated = _scores(self.gated / self.gated_samples) if self.gated_samples and not unasked else None
        pull = None if unasked else pull
        rms = (self.square / self.samples).sqrt()
        median = float(rms.quantile(0.5)) if rms.isfinite().all() else 0.0
        ratios = rms / median if median > 0 else None
        return LayerActivity(
            layer=self.place,
            nonlinearity=self.nonlinearity.name,
            units=len(scores),
            dormant=int((scores <= tau).sum()),
            dead=int((self.dead == self.samples).sum()),
            saturated=int((self.saturated >= SATURATED_SHARE * self.samples).sum()),
            linearised=int((self.linear >= LINEAR_SHARE * self.samples).sum()),
            duplicate=duplicates(torch.cat(self._rows).to(self._device)),
            outliers=None if ratios is None else int((ratios > OUTLYING).sum()),
            gated_dormant=None if gated is None else int((gated <= tau).sum()),
            gradient_dormant=None if pull is None else int((pull <= GRADIENT_TAU).sum()),
            frozen=int((~self.moved).sum()) if gradients and self.followed else None,
            sign_entropy=float(_bits(self.positive.double() / self.samples).mean()),
            rms=float((self.square / self.samples).mean().sqrt()),
            outlier_ratio=None if ratios is None else float(ratios.max()),
            samples=self.samples,
            scores=scores,
            gradient_scores=pull,
        )


def _scores(mean: Tensor) -> Tensor:
    # A layer in which nothing fires has a mean of zero: every one of its units is then dormant.
    return mean / (mean.mean() + 1e-9)


def _relative(sums: Tensor) -> Tensor | None:
    """Gradients have no scale of their own, so nothing is added to their mean."""
    if not bool(sums.isfinite().all()):
        return None
    return sums / sums.mean() if bool(sums.any()) else sums


def _bits(share: Tensor) -> Tensor:
    return -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)) / torch.log(torch.tensor(2.0).double())
