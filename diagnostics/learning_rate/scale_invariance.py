"""Which tensors the loss does not see the size of.

A weight before a normalisation layer is scale-invariant: L(cw) = L(w) for every c > 0. Then ⟨w, ∇L⟩ = 0 (Euler) and
the
gradient shrinks as 1/‖w‖, so a growing norm lowers the learning rate without anyone having asked for it.
Orthogonality alone proves
nothing in high dimension, where random vectors are nearly orthogonal too; so a tensor that passes it is scaled by 2
and by ½ and the loss is taken
again. The ε inside normalisation layers keeps the equality from being exact: relative changes below 10⁻³ count as
equal.

Source: van Laarhoven, arXiv 1706.05350.
"""

from __future__ import annotations

from torch import Tensor

from diagnostics.objective import Objective

ORTHOGONAL = 1e-2
"""Largest |cos(w, ∇L)| that still counts as orthogonal; the test on the loss decides."""

UNCHANGED = 1e-3
"""Largest relative change of the loss under w → 2w and w → w/2 that still counts as none."""


def scale_invariant(objective: Objective, alignments: dict[str, float], loss: float) -> dict[str, bool]:
    """Whether each selected tensor is scale-invariant, at two forward passes for each candidate.

    Args:
        objective: the loss.
        alignments: cos(w, ∇L) by parameter name; ``nan`` where w or ∇L is zero, which is never invariant here: a
        tensor
            that the loss ignores altogether has no effective rate.
        loss: L(θ).
    """
    values = list(objective.space.values())
    invariant = {}
    for index, name in enumerate(objective.space.names):
        invariant[name] = abs(alignments[name]) <= ORTHOGONAL and all(
            _loss_with(objective, values, index, values[index] * factor, loss) for factor in (2.0, 0.5)
        )
    return invariant


def _loss_with(objective: Objective, values: list[Tensor], index: int, replaced: Tensor, loss: float) -> bool:
    changed = objective.loss_at([replaced if other == index else value for other, value in enumerate(values)])
    return abs(changed - loss) <= UNCHANGED * abs(loss)
