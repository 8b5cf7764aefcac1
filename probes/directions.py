"""The sharpest directions of one check: how much of the gradient they hold, and how they have moved since the last."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics import Eigenpairs, Estimate, Hessian
from diagnostics.estimate import exact
from probes.probe import Reading

Part = Generator[Reading, None, None]


@dataclass(frozen=True)
class Space:
    """The sharpest directions of one check, (P, k), and the sine of the angle by which they may be tilted."""

    step: int
    vectors: Tensor
    tilt: float
    how: str


def space_of(pairs: Eigenpairs, k: int, step: int) -> Space:
    """The first k directions. Each is out of their true space by at most its residual over its distance to the rest."""
    how = f"k = {k} sharpest directions, {pairs.how}"
    if len(pairs.values) == k:
        # Nothing is left over that they could be mistaken for.
        return Space(step, pairs.vectors, 0.0, how)
    distances = pairs.values[:k] - (pairs.values + pairs.residuals)[k]
    apart = bool((distances > 0).all())
    tilt = float(torch.linalg.vector_norm(pairs.residuals[:k] / distances)) if apart else math.inf
    return Space(step, pairs.vectors[:, :k].clone(), tilt, how)


def _share(value: float, tilt: float, how: str) -> Estimate:
    """A squared projection, whose root can be wrong by the sine of the tilt."""
    error = 2 * math.sqrt(value) * tilt + tilt**2
    return Estimate(value, min(error, max(value, 1 - value)), "residual", how)


def gradient_in(space: Space, hessian: Hessian) -> Part:
    """Its norm, the curvature along it, and ‖Uᵀg‖² / ‖g‖²."""
    gradient = hessian.objective.gradient()
    length = float(torch.linalg.vector_norm(gradient))
    yield Reading("gradient_norm", length)
    if not (math.isfinite(length) and length > 0):
        yield Reading("gradient_share", None, status="skipped", note=f"the gradient's norm is {length:g}")
        return
    direction = (gradient / length).to(space.vectors.dtype)
    along = float(torch.dot(direction, hessian @ direction))
    yield Reading("gradient_curvature", exact(along, "gᵀHg over the gradient's square, one product"))
    inside = min(1.0, float((space.vectors.T @ direction).double().square().sum()))
    yield Reading("gradient_share", _share(inside, space.tilt, space.how))


def since(before: Space, now: Space, hessian: Hessian, pairs: Eigenpairs) -> Part:
    """How much of the former space the present one holds, and how much of the present curvature the former one has."""
    k = now.vectors.shape[1]
    value = min(1.0, float((before.vectors.T @ now.vectors).double().square().sum()) / k)
    yield Reading(
        "overlap", _share(value, math.sqrt(2 / k) * (before.tilt + now.tilt), f"{now.how}, and of step {before.step}")
    )
    total = float(pairs.values[:k].sum())
    if total > 0:
        held = float((before.vectors * (hessian @ before.vectors)).sum(dtype=torch.float64))
        how = f"tr UᵀHU over the sum of the eigenvalues, U of step {before.step}; {now.how}"
        error = float(pairs.residuals[:k].sum()) / total
        yield Reading("kept_curvature", Estimate(held / total, error, "residual", how))
