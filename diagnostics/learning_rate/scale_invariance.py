"""Which tensors the loss does not see the size of.

A weight before a normalisation layer is scale-invariant: L(cw) = L(w) for every c > 0. Then ⟨w, ∇L⟩ = 0 (Euler) and
∇L(cw) = ∇L(w)/c, so a growing norm lowers the learning rate without anyone having asked for it.

Orthogonality alone proves nothing in high dimension, where random vectors are nearly orthogonal too; nor does a loss
that stays the same under w → 2w, for it may hardly see the tensor at all: below a small output layer, in a bias
before a normalisation, in the bias of attention keys. So a tensor that is orthogonal far better than chance would
have it is doubled, and its whole gradient must halve. The ε inside normalisation layers keeps that from being exact.

Source: van Laarhoven, arXiv 1706.05350.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diagnostics.objective import Objective

ORTHOGONAL = 1e-2
"""Largest |cos(w, ∇L)| that still counts as orthogonal; the test on the gradient decides."""

BESIDE_CHANCE = 0.2
"""Largest |cos(w, ∇L)| as a share of 1/√d, which is what unrelated vectors in d dimensions have."""

HALVED = 0.02
"""Largest ‖2∇L(2w) − ∇L(w)‖ / ‖∇L(w)‖ that still counts as the gradient having halved."""


def scale_invariant(
    objective: Objective, alignments: dict[str, float], gradients: tuple[Tensor, ...]
) -> dict[str, bool]:
    """Whether each selected tensor is scale-invariant, at one gradient of the objective for each candidate.

    Args:
        objective: the loss.
        alignments: cos(w, ∇L) by parameter name; ``nan`` where w or ∇L is zero, which is never invariant here: a
            tensor that the loss ignores altogether has no effective rate.
        gradients: ∇L, one tensor per selected parameter.
    """
    values = objective.space.values()
    invariant = {}
    for index, (name, value) in enumerate(zip(objective.space.names, values, strict=True)):
        orthogonal = abs(alignments[name]) <= min(ORTHOGONAL, BESIDE_CHANCE / math.sqrt(value.numel()))
        invariant[name] = orthogonal and _halves(objective, values, index, gradients[index])
    return invariant


def _halves(objective: Objective, values: tuple[Tensor, ...], index: int, gradient: Tensor) -> bool:
    doubled = [2 * value if other == index else value for other, value in enumerate(values)]
    _, flat = objective.loss_and_gradient(doubled)
    difference = 2 * objective.space.unflatten(flat)[index].double() - gradient.double()
    # Not a number where w → 2w overflows: that is no invariance either.
    return bool(torch.linalg.vector_norm(difference) <= HALVED * torch.linalg.vector_norm(gradient.double()))
