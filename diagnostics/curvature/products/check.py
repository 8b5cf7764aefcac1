"""How the first product of a route is checked: against differences, against itself, and what a refusal says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diagnostics.determinism import what_varies
from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective

DISAGREEMENT = 0.01
"""Largest relative distance between a route and central differences that is put down to the differences."""

REFUSALS = (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError)
"""What an operation without a derivative raises: torch's own errors, and those of backward passes written by hand."""


def reason_of(refusal: Exception, objective: Objective) -> str:
    """The first line of a refusal. Want of memory, our own errors and those of the loss itself are raised again."""
    if isinstance(refusal, torch.OutOfMemoryError | DiagnosticsError):
        raise refusal
    if not isinstance(refusal, RuntimeError):
        # A model that cannot be run at all, as on inputs of the wrong kind, says so itself here.
        objective.batch_losses(objective.space.values())
    lines = str(refusal).strip().splitlines() or [type(refusal).__name__]
    return lines[0][:160]


def length(vector: Tensor) -> float:
    """Its norm, which in single precision would vanish below 1e-22 and overflow above 1e19."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.promote_types(vector.dtype, torch.float64)))


def disagreement(objective: Objective, product: Tensor, differenced: Callable[[float], Tensor]) -> float | None:
    """How far a product is from central differences, relative to them.

    Args:
        objective: of the product.
        product: by the route.
        differenced: the same by differences, with a share of their usual step.

    Returns:
        0 when they agree as well as differences can tell; None when these are zero or not finite, and tell nothing.

    Raises:
        DiagnosticsError: they differ because the objective is another function on every call.
    """
    expected = differenced(1.0)
    if not bool(torch.isfinite(expected).all()):
        # The step may lead out of where the loss is defined, as log p of a small p.
        expected = differenced(1e-2)
    size = length(expected)
    if not 0.0 < size < float("inf"):
        return None
    off = length(product - expected)
    if off <= DISAGREEMENT * size:
        return 0.0
    if varies := what_varies(objective):
        raise varies
    # Kinks and rounding make two steps of the differences disagree as much.
    if off <= 4 * length(differenced(0.5) - expected):
        return 0.0
    return off / size


def rounding_seen(times: Callable[[Tensor], Tensor], vector: Tensor, product: Tensor) -> float:
    """Rounding of a product, relative, from A(1.7 v) against 1.7 Av: a model may compute in less than its dtype."""
    size = length(product)
    if not 0.0 < size < float("inf"):
        return 0.0
    return 4 * length(times(1.7 * vector) / 1.7 - product) / size
