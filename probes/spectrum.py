"""The Hessian's whole spectrum along a run: its density, its two ends, its layers, and where the gradient lies in it.

The density comes from stochastic Lanczos quadrature, from the same random directions at every check, so that what
changes from one check to the next is the spectrum and not the draw. Both ends come from Lanczos runs of their own,
which stop on a residual. Each part stands by itself: one that cannot be taken is skipped with the reason, and the
others are still there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from diagnostics import DiagnosticsError, Hessian, Objective, layer_curvature, top_eigenpairs
from diagnostics.curvature.spectrum import Spectrum as Density
from diagnostics.curvature.spectrum import spectral_density
from diagnostics.estimate import exact
from diagnostics.quiet import quiet
from probes.directions import Part, Space, gradient_in, since, space_of
from probes.probe import Cost, Moment, Need, Reading
from probes.readings import reading_of

FLAT = 1e-2
"""A direction is flat while its curvature is below this times the largest magnitude: what 32 steps still resolve."""

CUSTOMARY = 10
"""How many sharp directions are followed where the number of classes is not known."""

MOST_CLASSES = 20
"""With more classes, as a vocabulary has, they do not say how many directions to follow."""

MOST_PRODUCTS = 300
"""For each end; the layers, whose blocks are smaller, get a third of it."""

FEWEST_VECTORS = 17
"""With memory for fewer than this beside the wanted ones, a Lanczos run is not worth beginning."""


@dataclass
class Spectrum:
    """The spectrum of the Hessian: density, outliers, negative curvature, layers, and the gradient's place in it.

    Takes ``probes`` × ``steps`` products for the density and at least as many again for eigenvalues and layers: give
    it a schedule of its own with few checks, such as ``every=at(0, 1000, 10_000)`` or ``every=log_spaced(2)``.

    Args:
        every: own schedule; the Monitor's by default.
        probes: random directions of the density.
        steps: Lanczos steps from each.
        top: k, how many of the sharpest directions are followed; by default the number of classes (2 to 20 outputs of
            the model), as is customary, and 10 where that is not known.
        layers: whether every layer's own block is measured too.
        tol: relative residual of the eigenvalues; a tenth of it at the sharp end, which directions need.
        cold_every: every so many measurements start from random vectors.
        memory: GiB that the vectors of one Lanczos run may take; what cannot do with it is skipped.
        seed: of the random directions.

    Raises:
        DiagnosticsError: an argument out of range.

    Source: Sagun et al., arXiv 1706.04454; Ghorbani et al., arXiv 1901.10159; Gur-Ari et al., arXiv 1812.04754.
    """

    every: int | Callable[[int], bool] | None = None
    probes: int = 4
    steps: int = 32
    top: int | None = None
    layers: bool = True
    tol: float = 1e-3
    cold_every: int = 10
    memory: float = 4.0
    seed: int = 0
    name: ClassVar[str] = "spectrum"
    needs: ClassVar[frozenset[Need]] = frozenset({"objective"})
    cost: ClassVar[Cost] = "expensive"
    _warm: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _before: Space | None = field(default=None, init=False, repr=False)
    _count: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("probes", "steps", "cold_every", "top"):
            given = getattr(self, name)
            whole = isinstance(given, int) and not isinstance(given, bool) and given >= 1
            if not whole and not (name == "top" and given is None):
                raise DiagnosticsError(f"{name} is out of range", given=repr(given), expected="a whole number from 1")
        for name, example in (("tol", "a relative residual, as 1e-3"), ("memory", "GiB, as 4.0")):
            if not getattr(self, name) > 0:
                raise DiagnosticsError(f"{name} is not positive", given=str(getattr(self, name)), expected=example)

    def settings(self) -> dict[str, Any]:
        """Sizes, tolerance, memory and seed."""
        names = ("probes", "steps", "top", "layers", "tol", "cold_every", "memory", "seed")
        return {name: getattr(self, name) for name in names}

    def measure(self, moment: Moment) -> Iterator[Reading]:
        """Density first, for it tells the scale; then both ends, the sharpest directions, and the layers."""
        objective = moment.objective
        assert objective is not None
        self._forget(moment.step, objective.num_parameters)
        yield Reading("loss", objective.loss(), note=objective.description)
        hessian = Hessian(objective)
        outputs = _outputs(objective)
        if outputs is not None:
            yield Reading("outputs", outputs, note="of the model for each loss term")
        classes = outputs if outputs is not None and 2 <= outputs <= MOST_CLASSES else CUSTOMARY
        scale: list[float] = []
        yield from _or_skipped("density", self._density(hessian, scale))
        yield from _or_skipped("smallest", self._low_end(hessian, scale))
        yield from _or_skipped("largest", self._sharp_end(hessian, self.top or classes, moment.step))
        if self.layers:
            yield from _or_skipped("layers", self._by_layer(objective))

    def _forget(self, step: int, size: int) -> None:
        """Nothing is kept of another model or another run; of this one, no start for ever."""
        if self._before is not None and (self._before.step >= step or len(self._before.vectors) != size):
            self._before = None
            self._warm.clear()
        if self._count % self.cold_every == 0 or any(len(start) != size for start in self._warm.values()):
            self._warm.clear()
        self._count += 1

    def _density(self, hessian: Hessian, scale: list[float]) -> Part:
        density = spectral_density(
            hessian, probes=self.probes, steps=self.steps, seed=self.seed, max_basis=max(1, self._room(hessian))
        )
        largest = float(density.nodes.abs().max())
        scale += [largest, float(density.nodes.min())]
        raw = torch.stack([density.nodes, density.weights, density.residuals]).numpy()
        note = f"eigenvalues; the array is (3, directions, steps): nodes, weights, residuals; {density.how}"
        yield Reading("density", density.dimension, note=note, array=raw)
        for name in ("trace", "frobenius", "effective_rank", "negative_mass", "near_zero_mass"):
            yield reading_of(name, getattr(density, name))
        bound = FLAT * largest
        beyond = f"threshold {bound:.4g}, {FLAT:.0%} of the largest magnitude"
        yield reading_of("flat_mass", density.mass(-bound, bound), note=beyond)
        yield reading_of("downward_mass", density.mass(-math.inf, -bound), note=beyond)
        yield from _outliers(density)

    def _low_end(self, hessian: Hessian, scale: list[float]) -> Part:
        """λmin, to the tolerance of the largest magnitude: near zero, one relative to itself would not be met."""
        room = self._room_for(hessian, 1)
        tol = self.tol
        if scale and scale[1] != 0.0:
            tol = min(1.0, tol * max(1.0, scale[0] / abs(scale[1])))
        pairs = top_eigenpairs(
            hessian,
            which="SA",
            tol=tol,
            start=self._warm.get("smallest"),
            seed=self.seed,
            max_matvecs=MOST_PRODUCTS,
            max_basis=room,
        )
        self._warm["smallest"] = pairs.restart
        yield Reading("smallest", pairs.estimate())

    def _sharp_end(self, hessian: Hessian, k: int, step: int) -> Part:
        """λmax, and the space of the k sharpest directions: how it has moved, and how much of the gradient it holds."""
        k = min(k, hessian.shape[0])
        # One more than wanted, for the gap behind the last is what tells the space from the rest.
        wanted = min(k + 1, hessian.shape[0])
        room = self._room_for(hessian, wanted)
        pairs = top_eigenpairs(
            hessian,
            wanted,
            tol=0.1 * self.tol,
            start=self._warm.get("largest"),
            seed=self.seed,
            max_matvecs=max(wanted, MOST_PRODUCTS),
            max_basis=room,
        )
        self._warm["largest"] = pairs.restart
        values = torch.stack([pairs.values, pairs.residuals]).numpy()
        yield Reading("largest", pairs.estimate(), note="the array is (2, k): eigenvalues, residuals", array=values)
        before, self._before = self._before, space_of(pairs, k, step)
        yield from gradient_in(self._before, hessian)
        if before is not None and before.vectors.shape == self._before.vectors.shape:
            yield from since(before, self._before, hessian, pairs)

    def _by_layer(self, objective: Objective) -> Part:
        blocks = Hessian(objective, by_layer=True)
        most = min(self._room_for(blocks, 0), MOST_PRODUCTS // 3)
        # A single sample of a trace has no spread.
        probes = max(2, self.probes)
        for row in layer_curvature(blocks, tol=self.tol, probes=probes, seed=self.seed, max_steps=most).rows:
            for name in ("top", "trace", "share"):
                note = f"{row.parameters:,} parameters"
                yield reading_of(name, getattr(row, name), row.layer or type(objective.model).__name__, note)

    def _room(self, hessian: Hessian) -> int:
        """How many vectors the memory holds."""
        return int(self.memory * 2**30 // (hessian.shape[0] * max(4, hessian.dtype.itemsize)))

    def _room_for(self, hessian: Hessian, wanted: int) -> int:
        """The same, where it is enough for a Lanczos run."""
        room = self._room(hessian)
        if room < wanted + FEWEST_VECTORS:
            raise DiagnosticsError(
                "the vectors of a Lanczos run do not fit into memory",
                given=f"{hessian.shape[0]:,} parameters, {self.memory:g} GiB",
                expected=f"room for {wanted + FEWEST_VECTORS} vectors",
                attempt="Spectrum(memory=...) on a larger machine, or Objective(..., params=...) for a part",
            )
        return room


def _or_skipped(name: str, part: Part) -> Iterator[Reading]:
    """A part's readings as far as it comes; what is impossible or too large for this objective is no failure."""
    try:
        yield from part
    except (DiagnosticsError, MemoryError, RuntimeError) as problem:
        known = isinstance(problem, DiagnosticsError | MemoryError | torch.OutOfMemoryError)
        if not known and "allocate" not in str(problem):
            raise
        first, *_ = str(problem).splitlines() or [""]
        yield Reading(name, None, status="skipped", note=first or type(problem).__name__)


def _outliers(density: Density) -> Part:
    found = density.outliers()
    table = torch.stack([found.values, found.residuals, found.multiplicities]).numpy()
    note = f"beyond the bulk, {found.lower_edge:.4g} to {found.edge:.4g}"
    if len(found):
        note += "; the array is (3, outliers): values, residuals, multiplicities"
    yield Reading("outliers", found.count, note=note, array=table if len(found) else None)
    yield Reading("edge", exact(found.edge, density.how), note="upper end of the bulk, to the resolution of the nodes")


def _outputs(objective: Objective) -> int | None:
    """How many numbers the model puts out for each loss term: for a classifier, its classes."""
    try:
        with quiet(objective.model, objective.mode), torch.no_grad():
            seen = objective.batch_outputs(0, objective.space.values())
    except DiagnosticsError:
        return None
    axis = getattr(seen.kind, "axis", -1 if seen.outputs.ndim == 2 else None)
    return None if axis is None else int(seen.outputs.shape[axis])
