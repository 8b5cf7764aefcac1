"""How the singular values of each matrix moved: what changed its shape, apart from what only turned it.

The drift of a matrix is ‖σ(W_k) − σ(W_0)‖ / ‖σ(W_0)‖, over all singular values in order. By Mirsky's inequality it is
at most ‖W_k − W_0‖_F / ‖W_0‖_F: where it is much less, the matrix has turned rather than grown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diagnostics.estimate import Estimate, exact
from diagnostics.weights.blocks import as_matrix
from diagnostics.weights.changes import apart
from diagnostics.weights.singular_values import singular_values

MAX_SIDE = 1024
"""The longest smaller side of a matrix whose singular values are taken, once for every checkpoint."""


@dataclass(frozen=True)
class SpectralDrift:
    """One matrix over the checkpoints.

    Attributes:
        name: its name.
        drift: relative change of its singular values since the first checkpoint, one for each; the first is 0.
        largest: σ₁ in each checkpoint.
        note: why it was left out; both are empty then.
    """

    name: str
    drift: tuple[Estimate, ...]
    largest: tuple[Estimate, ...]
    note: str = ""


def spectral_drift(
    state_dicts: Sequence[Mapping[str, Any]],
    *,
    max_side: int = MAX_SIDE,
    read: Callable[[Tensor], None] = lambda tensor: None,
) -> list[SpectralDrift]:
    """The drift of every matrix of the first checkpoint.

    Args:
        state_dicts: two or more of one model, in the order of training.
        max_side: matrices whose smaller side is longer are left out with a note.
        read: called with a tensor whenever it has been read, for those who hold a mapped file.

    Example:
        >>> turned = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> [row] = spectral_drift([{"weight": torch.eye(2)}, {"weight": turned}, {"weight": 3 * torch.eye(2)}])
        >>> [round(float(drift), 6) for drift in row.drift]
        [0.0, 0.0, 2.0]
    """
    rows = []
    with torch.inference_mode(False), torch.no_grad():
        for name in state_dicts[0]:
            tensors = [one.get(name) for one in state_dicts]
            if isinstance(tensors[0], Tensor) and not tensors[0].is_nested and tensors[0].ndim > 1:
                rows.append(_matrix(str(name), tensors, max_side))
                for tensor in tensors:
                    if isinstance(tensor, Tensor):
                        read(tensor)
    return rows


def _matrix(name: str, tensors: Sequence[Any], max_side: int) -> SpectralDrift:
    reason = apart(tensors)
    if not reason and not tensors[0].is_floating_point():
        reason = "no real numbers"
    if not reason and min(as_matrix(tensors[0]).shape) > max_side:
        reason = f"its smaller side is above {max_side:,}"
    spectra = []
    for tensor in tensors if not reason else ():
        matrix = as_matrix(tensor)
        scale = float(matrix.abs().max()) if matrix.numel() else 0.0
        if not (scale and math.isfinite(scale)):
            reason = "empty, all zero, or not finite in a checkpoint"
            break
        spectra.append(singular_values(matrix, scale, max_side=max_side))
    if reason:
        return SpectralDrift(name, (), (), reason)
    values = [spectrum.values for spectrum in spectra if spectrum.values is not None]
    size = float(torch.linalg.vector_norm(values[0]))
    how = f"‖σ(W_k) − σ(W_0)‖/‖σ(W_0)‖ over {len(values[0])} singular values"
    drift = tuple(exact(float(torch.linalg.vector_norm(value - values[0])) / size, how) for value in values)
    return SpectralDrift(name, drift, tuple(spectrum.largest for spectrum in spectra))
