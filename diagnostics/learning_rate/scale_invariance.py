"""Which tensors, and which rows of them, the loss does not see the size of.

A weight before a normalisation layer is scale-invariant: L(cw) = L(w) for every c > 0. Then ⟨w, ∇L⟩ = 0 (Euler) and
∇L(cw) = ∇L(w)/c, so a growing norm lowers the learning rate without anyone having asked for it. Before LayerNorm that
holds for the tensor as a whole; before BatchNorm, which normalises each channel by itself, for every row alone.

Orthogonality alone proves nothing in high dimension, where random vectors are nearly orthogonal too; nor does a loss
that stays the same under w → cw, for it may hardly see the tensor at all: below a small output layer, in a bias
before a normalisation, in the bias of attention keys. So what is orthogonal far better than chance would have it is
scaled: a tensor is doubled, rows are scaled each by a factor of its own. The loss must stay, and the whole gradient
must fall by these factors. The ε inside normalisation layers keeps that from being exact.

Source: van Laarhoven, arXiv 1706.05350.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.curvature.draws import random_stream
from diagnostics.objective import Objective

ORTHOGONAL = 1e-2
"""Largest |cos(w, ∇L)| that still counts as orthogonal; the test on the gradient decides."""

BESIDE_CHANCE = 0.2
"""Largest |cos(w, ∇L)| as a share of 1/√d, which is what unrelated vectors in d dimensions have."""

HALVED = 0.02
"""Largest ‖c∇L(cw) − ∇L(w)‖ / ‖∇L(w)‖ that still counts as the gradient of a vector having fallen by c: the gain of a
normalisation layer comes near it where biases are small. And the largest change of the loss, in parts of ‖w‖‖∇L‖.
"""

FELL = 0.1
"""The same for the gradient of a matrix or of one row. The ε of a normalisation layer moves activations a little, over
the kinks of ReLU too, and in a deep, well-fitted network one example that crosses a kink can be 9 % of the gradient; in
float32 rows are off by up to 3 % besides. A gradient that does not fall is off by 41 % at least.
"""

ROUNDING = 64
"""By so many units of its last digit a loss may change all the same."""

UNREACHED = 1e-4
"""Rows whose gradient is smaller than this, in parts of the tensor's largest row, hold rounding and are not judged."""

ENOUGH = 0.25
"""Rows are scaled where more than this share of them is orthogonal; by chance it is a sixth."""


@dataclass(frozen=True)
class Invariance:
    """What the loss does not see the size of in one tensor.

    Attributes:
        tensor: whether of the tensor as a whole.
        rows: (rows,), bool, on the CPU: of which rows alone; None with fewer than two axes.
        reached: (rows,), bool: which rows have a gradient to judge by; None likewise.
    """

    tensor: bool
    rows: Tensor | None
    reached: Tensor | None


def scale_invariance(
    objective: Objective, loss: float, gradients: Sequence[Tensor], alignments: Mapping[str, float], *, seed: int = 0
) -> dict[str, Invariance]:
    """What of each selected tensor is scale-invariant.

    Costs two gradients when all that looks invariant is, one for rows and one for tensors; otherwise one more for each
    tensor that did not pass.

    Args:
        objective: the loss.
        loss: L at the parameters as they are.
        gradients: ∇L, one tensor per selected parameter.
        alignments: cos(w, ∇L) by parameter name; ``nan`` where w or ∇L is zero, which is never invariant here: a
            tensor that the loss ignores altogether has no effective rate.
        seed: of the factors for rows.
    """
    values = objective.space.values()
    trial = _Trial(objective, values, loss, gradients)
    reached = {
        index: _reached(gradient) for index, gradient in enumerate(gradients) if gradient.ndim > 1 and gradient.numel()
    }
    suspects = {index: _orthogonal_rows(values[index], gradients[index]) & reached[index] for index in reached}
    suspects = {index: rows for index, rows in suspects.items() if rows.sum() > ENOUGH * reached[index].sum()}
    rows = {index: torch.zeros_like(reached[index]) for index in reached}
    rows.update(_passed(trial, _factors(suspects, seed), suspects, whole=False))
    # Rows that may each be scaled by itself may be scaled by one factor.
    invariant = {index for index in rows if bool(rows[index].any()) and bool((rows[index] == reached[index]).all())}
    doubled = {
        index: torch.full((len(value) if value.ndim else 1,), 2.0, dtype=torch.float64)
        for index, (name, value) in enumerate(zip(objective.space.names, values, strict=True))
        if index not in invariant
        and abs(alignments[name]) <= min(ORTHOGONAL, BESIDE_CHANCE / math.sqrt(max(1, value.numel())))
    }
    everything = {index: torch.tensor(True) for index in doubled}
    invariant |= {index for index, fell in _passed(trial, doubled, everything, whole=True).items() if bool(fell)}
    return {
        name: Invariance(index in invariant, rows.get(index), reached.get(index))
        for index, name in enumerate(objective.space.names)
    }


def _factors(suspects: Mapping[int, Tensor], seed: int) -> dict[int, Tensor]:
    """One for each row; upwards, for the ε of a normalisation layer weighs less with larger weights."""
    generator = random_stream(seed)
    return {
        index: torch.where(rows, 2 ** (0.5 + torch.rand(len(rows), generator=generator, dtype=torch.float64)), 1.0)
        for index, rows in suspects.items()
    }


def _passed(
    trial: _Trial, factors: Mapping[int, Tensor], suspects: Mapping[int, Tensor], *, whole: bool
) -> dict[int, Tensor]:
    """Which suspects fell by their factors: all tensors in one trial, and those that did not in one of their own."""
    if not factors:
        return {}
    fell = {index: suspects[index] & passed for index, passed in trial.fell(factors, whole=whole).items()}
    for index, factor in factors.items():
        # What is not invariant changes the gradient of everything else.
        if len(factors) > 1 and not bool((fell[index] == suspects[index]).all()):
            fell[index] = suspects[index] & trial.fell({index: factor}, whole=whole)[index]
    return fell


class _Trial:
    """The loss and its gradient where some tensors are scaled, against those where they are not."""

    def __init__(
        self, objective: Objective, values: Sequence[Tensor], loss: float, gradients: Sequence[Tensor]
    ) -> None:
        self._objective = objective
        self._values = values
        self._loss = loss
        self._gradients = gradients

    def fell(self, factors: Mapping[int, Tensor], *, whole: bool) -> dict[int, Tensor]:
        """For each scaled tensor, which rows' gradients fell by their factors; none where the loss changed.

        Args:
            factors: by index of a tensor, one factor per row.
            whole: judge the gradient of each tensor as one vector, not row by row.
        """
        scaled = list(self._values)
        for index, factor in factors.items():
            scaled[index] = _by_row(factor, self._values[index]) * self._values[index]
        loss, flat = self._objective.loss_and_gradient(scaled)
        after = self._objective.space.unflatten(flat)
        stayed = abs(loss - self._loss) <= self._allowed(factors)
        fallen = {}
        for index, factor in factors.items():
            gradient = self._gradients[index].double()
            wide = 0 if whole else 1
            slack = FELL if gradient.ndim > 1 else HALVED
            off = (_by_row(factor, after[index]).double() * after[index].double() - gradient).flatten(wide)
            # Not a number where w → cw overflows: that is no invariance either.
            close = off.norm(dim=-1) <= slack * gradient.flatten(wide).norm(dim=-1)
            fallen[index] = (close & torch.tensor(stayed, device=close.device)).cpu()
        return fallen

    def _allowed(self, factors: Mapping[int, Tensor]) -> float:
        """How far the loss may move: less than it would at first order if these weights mattered; and rounding."""
        first_order = sum(
            float(torch.linalg.vector_norm(self._values[index].double()))
            * float(torch.linalg.vector_norm(self._gradients[index].double()))
            for index in factors
        )
        digits: float = torch.finfo(self._objective.space.dtype).eps * abs(self._loss)
        return HALVED * first_order + ROUNDING * digits


def _by_row(factor: Tensor, value: Tensor) -> Tensor:
    """One factor per row, so that it multiplies a tensor along its first axis."""
    return factor.to(value.device, value.dtype).reshape(-1, *[1] * (value.ndim - 1)) if value.ndim else factor[0]


def _reached(gradient: Tensor) -> Tensor:
    sizes = _row_norms(gradient)
    return sizes > UNREACHED * sizes.max()


def _orthogonal_rows(value: Tensor, gradient: Tensor) -> Tensor:
    along = (value.double() * gradient.double()).flatten(1).sum(1).abs().cpu()
    sizes, bound = _row_norms(value), min(ORTHOGONAL, BESIDE_CHANCE / math.sqrt(value[0].numel()))
    return (along <= bound * sizes * _row_norms(gradient)) & (sizes > 0)


def _row_norms(tensor: Tensor) -> Tensor:
    """(rows,), float64, on the CPU."""
    norms: Tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1, dtype=torch.float64).cpu()
    return norms
