"""Which units still do something: each way of being lost has its own number.

* dormant: E|h_i| is at most τ times the layer's mean (Sokar et al., arXiv 2302.12902). Relative: a dormant unit may
  still fire. Of gated units the product is judged too.
* dead: flat (|φ'| < 10⁻³) with no output on every sample; no gradient can reach its weights.
* saturated: flat (|φ'| below 3 % of its working slope, |z| ≈ 2.5 for tanh) with an output, on at least 95 % of
  samples.
* linearised: φ' within 1 % of its working slope on at least 99 % of samples; alive, but the layer could be merged
  away (Lyle et al., arXiv 2402.18762).
* duplicate: its output is that of another unit (``duplicates.py``).
* gradient-dormant: E|∂L/∂h_i| is at most .01 times the layer's mean (arXiv 2505.24061).
* frozen: its incoming weights have no gradient at all, or do not train.
* outlier: its RMS is more than six times the layer's median. Large features of this kind, six times the usual size
  in arXiv 2208.07339, decide what low precision loses.

Sign entropy, the mean over units of H₂(P(z > 0)) in bits, falls as units come to be always on or always off
(Lewandowski et al., arXiv 2410.20634). All are read from post-activations and slopes, per channel for convolutions
and per feature for tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.parameters import unwrap
from diagnostics.quiet import quiet
from diagnostics.units.backward import differentiated_pass, everything_that_trains
from diagnostics.units.capture import Product, Site, capture
from diagnostics.units.forward import forward_passes
from diagnostics.units.table import UnitActivity
from diagnostics.units.tally import Tally


def unit_activity(model: nn.Module, batch: Any, tau: float = 0.025) -> UnitActivity:
    """Count dormant, dead, saturated, linearised and otherwise lost units at every non-linearity, in evaluation mode.

    Args:
        model: any module; non-linearities are seen as modules and as functions alike.
        batch: a tensor of inputs; an ``(inputs, targets)`` pair; a mapping for ``model(**batch)``; or an Objective of
            this model, whose batches are then all run, forwards and backwards: only so can gradients be judged.
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
    runs = forward_passes(plain, batch)
    tallies: dict[str, Tally] = {}

    def see(site: Site | Product) -> None:
        if isinstance(site, Product):
            tallies[site.place].add_product(site)
            return
        if site.place not in tallies:
            tallies[site.place] = Tally(site, len(runs))
        tallies[site.place].add(site)

    without = "" if isinstance(batch, Objective) else "gradients need a loss: an Objective"
    differentiable: Objective | None = None
    if isinstance(batch, Objective):
        try:
            differentiable = everything_that_trains(batch)
        except DiagnosticsError as nothing_trains:
            without = str(nothing_trains)
    for index, run in enumerate(runs):
        if differentiable is not None:
            with quiet(plain, "eval"):
                without = differentiated_pass(differentiable, index, see, tallies) or without
        else:
            with quiet(plain, "eval"), torch.no_grad(), capture(plain, see):
                run()
    return UnitActivity([tally.row(tau, gradients=not without) for tally in tallies.values()], tau, without)
