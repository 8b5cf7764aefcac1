"""The loss around the parameters, along lines and on a plane through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor

from diagnostics import DiagnosticsError, Hessian, Objective, loss_slice, random_direction, top_eigenpairs
from diagnostics.arguments import whole_number
from probes.probe import Cost, Moment, Need, Reading

RISE = 4.0
"""On the line along a sharp direction the quadratic model has the loss rise by so many times itself at the ends."""


@dataclass
class Landscape:
    """Loss slices: along a random filter-normalised direction, along the two sharpest, and on a random plane.

    Takes a forward pass of all batches for each point, and two eigenpairs: one for a checkpoint, or for a run with a
    schedule of its own and few checks.

    Args:
        points: on a line.
        plane: on each side of the plane.
        seed: of the random directions.
        every: own schedule; the Monitor's by default.

    Raises:
        DiagnosticsError: an argument out of range.

    Source: Li et al., arXiv 1712.09913.
    """

    points: int = 25
    plane: int = 15
    seed: int = 0
    every: int | Callable[[int], bool] | None = None
    name: ClassVar[str] = "landscape"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "expensive"

    def __post_init__(self) -> None:
        for name in ("points", "plane"):
            whole_number(f"{name} is too small", getattr(self, name), "a whole number, at least 3", 3)
        whole_number("seed is no seed", self.seed, "a whole number, at least 0", 0)

    def settings(self) -> dict[str, Any]:
        """How many points, and the seed."""
        return {"points": self.points, "plane": self.plane, "seed": self.seed}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """Three lines and a plane; what cannot be taken is skipped, and the others are still there."""
        assert moment.objective is not None
        objective = moment.objective
        loss = objective.loss()
        if not math.isfinite(loss):
            yield Reading("along", None, status="skipped", note=f"the loss is {loss} at the parameters themselves")
            return
        try:
            random = [random_direction(objective, self.seed + place) for place in range(2)]
        except DiagnosticsError as reason:
            random = []
            yield Reading("along", None, "random", status="skipped", note=str(reason))
        if random:
            yield from self._line(objective, "random", random[0], "a random filter-normalised direction")
        try:
            for name, direction, note in _sharpest(objective, loss):
                yield from self._line(objective, name, direction, note)
        except DiagnosticsError as reason:
            yield Reading("along", None, "sharpest", status="skipped", note=str(reason))
        if random:
            found = loss_slice(objective, *random, points=self.plane)
            grid = numpy.full((len(found.alphas) + 1, len(found.alphas) + 1), numpy.nan)
            grid[1:, 0] = grid[0, 1:] = found.alphas.numpy()
            grid[1:, 1:] = found.losses.numpy()
            note = f"two random filter-normalised directions, {found.how}; the array has α in its column, β in its row"
            yield Reading("plane", found.loss, note=note, array=grid)

    def _line(self, objective: Objective, name: str, direction: Tensor, what: str) -> Iterator[Reading]:
        found = loss_slice(objective, direction, points=self.points)
        values = torch.stack([found.alphas, found.losses]).numpy()
        yield Reading("distance", float(torch.linalg.vector_norm(direction)), name, note="at α = 1")
        yield Reading("along", found.loss, name, note=f"{what}, {found.how}; the array is α, loss", array=values)


def _sharpest(objective: Objective, loss: float) -> Iterator[tuple[str, Tensor, str]]:
    """The two sharpest directions, as long as the loss needs to rise if it were quadratic."""
    pairs = top_eigenpairs(Hessian(objective), k=min(2, objective.num_parameters), tol=1e-2)
    size = float(torch.linalg.vector_norm(objective.space.flatten(objective.space.values()).double()))
    for name, value, vector in zip(("sharpest", "second sharpest"), pairs.values, pairs.vectors.T, strict=False):
        length = math.sqrt(2 * RISE * max(loss, 0.0) / float(value)) if float(value) > 0 else 0.0
        # Far from a small loss, or along a flat direction, the parameters' own size is as far as a step may mean.
        length = min(length, size) if length > 0 else size
        note = f"an eigenvector, eigenvalue {float(value):.4g}"
        yield name, vector.double() * length, note
