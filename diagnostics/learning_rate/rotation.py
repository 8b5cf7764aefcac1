"""How far a step turns a weight.

Of a weight before a normalisation layer only the direction counts, and a step is worth the angle it turns it by; the
rows of a weight before BatchNorm each have an angle of their own. ``equilibrium`` says what angle to expect.

Source: Kosson et al., arXiv 2305.17212.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact

CHUNK = 2**16
"""Entries taken to float64 at a time: what fits into a cache."""


@dataclass(frozen=True, repr=False)
class Rotation:
    """The angle between a weight and what a step has made of it, in radians.

    Attributes:
        whole: of the tensor as one vector.
        rows: root mean square over rows (the first axis: output neurons, filters), with their standard deviation.
        by_row: (rows,), float64 on the CPU; nan where a row is zero before or after.
    """

    whole: Estimate
    rows: Estimate
    by_row: Tensor = field(compare=False)

    def __str__(self) -> str:
        return f"turned by {self.rows} rad per row, {self.whole} rad as a whole"

    __repr__ = __str__


def rotation(before: Tensor, after: Tensor) -> Rotation:
    """The angle by which a step turned a weight, as a whole and row by row.

    Args:
        before: the weight before the step; the first axis counts rows, and fewer than two axes are one row.
        after: of the same shape, after it.

    Raises:
        DiagnosticsError: the shapes differ, there are no entries, or they are complex.

    Source: arXiv 2305.17212. The angle is atan2(‖w × w'‖, ⟨w, w'⟩): the arc cosine in float32 sees no angle below
    3e-4.

    Example:
        >>> w = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> turned = rotation(w, torch.tensor([[1.0, 1e-6], [0.0, 1.0]]))
        >>> [round(angle, 9) for angle in turned.by_row.tolist()]
        [1e-06, 0.0]
    """
    require_alike(before, after)
    with torch.inference_mode(False), torch.no_grad():
        old, new = as_rows(before), as_rows(after)
        lengths, along, changes = (torch.zeros(len(old), dtype=torch.float64) for _ in range(3))
        step = max(1, CHUNK // old.shape[1])
        for start in range(0, len(old), step):
            part = slice(start, start + step)
            kept = old[part].double()
            change = new[part].double() - kept
            lengths[part] = kept.square().sum(1).cpu()
            along[part] = (kept * change).sum(1).cpu()
            changes[part] = change.square().sum(1).cpu()
        by_row = _angles(lengths, along, changes)
        whole = _angles(lengths.sum(), along.sum(), changes.sum())
        known = by_row[by_row.isfinite()]
        squares = float(known.square().mean()) if len(known) else math.nan
        spread = float(known.std(correction=0)) if len(known) else math.nan
    return Rotation(
        whole=exact(float(whole), "angle between the tensors before and after"),
        rows=Estimate(math.sqrt(squares), spread, "spread", f"rms of the angle over {len(known):,} rows"),
        by_row=by_row,
    )


def _angles(lengths: Tensor, along: Tensor, changes: Tensor) -> Tensor:
    """From ‖w‖², ⟨w, Δw⟩ and ‖Δw‖²; what cancels here is the change of length, not the small angle."""
    across = (lengths * changes - along.square()).clamp_min(0).sqrt()
    angles = torch.atan2(across, lengths + along)
    there = (lengths > 0) & (lengths + 2 * along + changes > 0)
    return torch.where(there, angles, torch.nan)


def as_rows(tensor: Tensor) -> Tensor:
    """(rows, entries per row); fewer than two axes are one row."""
    return tensor.detach().reshape(1, -1) if tensor.ndim < 2 else tensor.detach().flatten(1)


def row_norms(tensor: Tensor) -> Tensor:
    """(rows,), float64, on the CPU. Part by part: torch takes six times as long over a norm in float64."""
    rows = as_rows(tensor)
    parts = rows.split(max(1, CHUNK // max(1, rows.shape[1])))
    return torch.cat([torch.linalg.vector_norm(part.double(), dim=1) for part in parts]).cpu()


def require_alike(before: Tensor, after: Tensor) -> None:
    """Refuse tensors that no step leads from one to the other, and those that have no rows of real numbers."""
    for given in (before, after):
        if not isinstance(given, Tensor):
            raise DiagnosticsError(
                "before and after are not tensors",
                given=type(given).__name__,
                expected="one weight at two times",
                attempt="one call for each tensor of the model",
            )
    if before.shape != after.shape or before.numel() == 0 or before.is_complex() or after.is_complex():
        raise DiagnosticsError(
            "before and after are not one weight at two times",
            given=f"shapes {tuple(before.shape)} and {tuple(after.shape)}, {before.dtype} and {after.dtype}",
            expected="one shape, with entries, and real numbers",
        )
