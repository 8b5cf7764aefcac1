"""Units that do what another unit of their layer does already.

Two units are duplicates when their outputs over the samples have a cosine above .95, plain and about the mean alike:
outputs that hardly vary, as those of a sigmoid near zero, have a plain cosine near 1 with everything. A unit that
varies on fewer than five samples (effectively: (Σc²)²/Σc⁴ of its centred output c) is not judged, for two such units
meet by chance. Source: Joudaki et al., arXiv 2510.00304, for the cosine.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALIKE = 0.95
FEWEST = 5.0
KEPT = 512
"""Samples kept of each layer, evenly spaced: enough to tell .95 from chance, in bounded memory."""

_BLOCK = 1024


def sampled(h: Tensor, share: int) -> Tensor:
    """At most ``share`` rows of (samples, units), evenly spaced, where they can wait for the other batches."""
    places = torch.linspace(0, len(h) - 1, min(share, len(h)), dtype=torch.float64).round().long()
    rows = h[places.to(h.device)]
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def duplicates(h: Tensor) -> int | None:
    """How many units have a duplicate, from outputs (samples, units); None when no unit could be judged.

    Example:
        >>> h = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)).relu()
        >>> duplicates(h), duplicates(torch.cat([h, 2 * h[:, :1]], dim=1))
        (0, 2)
    """
    # Scaled first: neither tiny nor huge outputs may leave the range of squares and fourth powers.
    h = h / h.abs().amax(0).clamp(min=torch.finfo(h.dtype).tiny)
    centred = h - h.mean(0)
    squares = centred.square()
    varies = squares.sum(0) > 1e-6 * h.square().sum(0)
    support = squares.sum(0).square() / squares.square().sum(0).clamp(min=torch.finfo(h.dtype).tiny)
    judged = varies & (support >= FEWEST)
    if not bool(judged.any()):
        return None
    plain, about_mean = (_unit_length(side[:, judged]) for side in (h, centred))
    found = 0
    for start in range(0, plain.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        alike = about_mean[:, block].T @ about_mean > ALIKE
        alike[:, block].fill_diagonal_(False)
        some = alike.any(1)
        # Few units are left whose plain cosines are wanted as well.
        found += int((alike[some] & (plain[:, block][:, some].T @ plain > ALIKE)).any(1).sum())
    return found


def _unit_length(columns: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(columns, dim=0)
    return columns / length
