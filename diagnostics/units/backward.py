"""What the loss asks of each unit: its gradient at every output and in every incoming weight, in one backward pass.

A unit may be lively and yet without influence on the loss, as one whose outgoing weights are zero. Gradients at the
outputs show it (arXiv 2505.24061); hooks sum them up while they pass, so that none of them has to be kept. Of the
incoming weights only whether they have a gradient at all is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.reentrant import reentrant_checkpoints_refused
from diagnostics.units.capture import Product, Site, capture
from diagnostics.units.incoming import Incoming
from diagnostics.units.tally import Tally


def everything_that_trains(objective: Objective) -> Objective:
    """The same loss of all trained parameters: whether units learn is no matter of what was selected.

    Raises:
        DiagnosticsError: nothing trains.
    """
    return objective.narrowed(None)


def differentiated_pass(
    objective: Objective, index: int, see: Callable[[Site | Product], None], tallies: dict[str, Tally]
) -> str:
    """Run one batch forwards, with every non-linearity handed to ``see``, and backwards. To be called in ``quiet``.

    Args:
        objective: of all that trains.
        index: which batch.
        see: makes the tallies.
        tallies: by place; their gradients are added to.

    Returns:
        Why there are no gradients of this batch; empty where there are.
    """
    weight = objective.weights[index]
    leaves = [value.requires_grad_() for value in objective.space.values()]
    incoming: list[tuple[Tally, Incoming]] = []
    hooked: list[str] = []

    def see_with_gradient(site: Site | Product) -> None:
        see(site)
        tally = tallies[site.place]
        incoming.extend((tally, source) for source in site.incoming)
        tally.followed &= bool(site.incoming)
        if isinstance(site, Site) and site.output.requires_grad and weight:
            # A hook that knew the site would keep its output alive, and that the hook.
            site.output.register_hook(partial(_add, tally, site.axis, weight))
            hooked.append(site.place)

    arrived: list[Tensor] = []

    def both_ways() -> None:
        with capture(objective.model, see_with_gradient):
            loss = objective.batch_loss(index, leaves)
        arrived.append(loss)
        if not weight:
            return
        used = [source.weight for _, source in incoming if source.weight.requires_grad]
        # A weight that is computed, as with weight normalisation, is no leaf.
        found = torch.autograd.grad(loss, [*leaves, *used], allow_unused=True)
        parts = dict(zip(map(id, used), found[len(leaves) :], strict=True))
        for tally, source in incoming:
            _move(tally, source, parts.get(id(source.weight)))

    try:
        with reentrant_checkpoints_refused():
            objective.placed(leaves, both_ways)
    # Operations without a derivative, checkpoints, too little memory: the counts of the forward pass still stand.
    except (RuntimeError, DiagnosticsError) as problem:
        if not arrived:
            raise
        return str(problem).splitlines()[0]
    for place in hooked:
        tallies[place].differentiated += 1
    return ""


def _add(tally: Tally, axis: int, weight: float, gradient: Tensor) -> None:
    by_unit = gradient.detach().movedim(axis, -1).reshape(-1, gradient.shape[axis])
    tally.gradient += weight * by_unit.abs().double().sum(0).cpu()


def _move(tally: Tally, source: Incoming, gradient: Tensor | None) -> None:
    units = len(tally.moved)
    if gradient is None:
        return
    rows = gradient.detach().movedim(source.axis, 0)
    # Fused projections hold several blocks of units, the gate's among them: which one is not known.
    if len(rows) == units:
        tally.moved |= (rows.reshape(units, -1) != 0).any(1).cpu()
    else:
        tally.followed = False
