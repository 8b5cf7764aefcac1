"""Curvature layer by layer: each diagonal block's largest eigenvalue and its share of the trace.

Every block has its own Lanczos run, and all runs advance together: one vector of length P holds a direction for each
layer, one block-diagonal product moves all of them, and one basis of (steps, P) stores them. A layer's pass goes only
through what lies above it in the network, and a layer that has converged takes no part in later products. Each layer
starts from a Rademacher vector z, so the first product also gives a sample of every trace, zᵀAz.

Blocks are not the matrix: the largest eigenvalue of the whole is at least that of any block, and curvature shared
between layers shows in none of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from diagnostics.curvature.draws import random_stream
from diagnostics.curvature.layers import Layer
from diagnostics.curvature.operators import GaussNewton, Hessian
from diagnostics.curvature.quadrature import inner, lengths, plainly
from diagnostics.curvature.sums import real_number
from diagnostics.curvature.symmetric import multiply, refuse, rounding_of, route_of
from diagnostics.curvature.trace import mean_error
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate
from diagnostics.objective import Objective

if TYPE_CHECKING:
    import pandas

LOOK_AGAIN = 1.5
"""A value is accepted after so many times the steps at which it first met its tolerance."""


@dataclass(frozen=True)
class LayerRow:
    """One layer's block.

    Attributes:
        layer: path of the module that holds the parameters.
        parameters: how many it holds.
        top: largest eigenvalue of its block, with the residual.
        trace: of its block, with the standard error over probes, widened as few of them need (Student's t).
        share: of the trace of all blocks together, likewise; undetermined when that may be zero. Where it is barely
            known not to be, 95 % intervals of a few probes cover about 88 %.
    """

    layer: str
    parameters: int
    top: Estimate
    trace: Estimate
    share: Estimate


@dataclass(frozen=True, repr=False)
class LayerCurvature:
    """A table with one row per layer, in the model's order.

    Attributes:
        rows: one for each module that holds selected parameters.
        matvecs: block-diagonal products taken.
        how: method, route and batches in one line.
    """

    rows: list[LayerRow]
    matvecs: int
    how: str

    def to_pandas(self) -> pandas.DataFrame:
        """Values and errors as a DataFrame. Needs pandas."""
        import pandas

        return pandas.DataFrame(
            [
                {"layer": row.layer, "parameters": row.parameters}
                | {
                    f"{name}{ending}": getattr(getattr(row, name), part)
                    for name in ("top", "trace", "share")
                    for ending, part in (("", "value"), ("_error", "error"))
                }
                for row in self.rows
            ]
        )

    def __str__(self) -> str:
        names = [row.layer or "(the model itself)" for row in self.rows]
        width = max(5, *(len(name) for name in names))
        lines = [f"{'layer':<{width}}  {'parameters':>10}  {'top eigenvalue':>20}  {'trace':>20}  share of trace"]
        lines += [
            f"{name:<{width}}  {row.parameters:>10,}  {row.top!s:>20}  {row.trace!s:>20}  {row.share}"
            for name, row in zip(names, self.rows, strict=True)
        ]
        if any(not row.share.determined for row in self.rows):
            lines.append(
                "shares are undetermined where the trace of all blocks may be zero, as with traces of both signs"
            )
        return "\n".join(lines)

    __repr__ = __str__


def layer_curvature(
    source: Objective | Hessian | GaussNewton,
    *,
    tol: float = 1e-2,
    probes: int = 8,
    seed: int = 0,
    max_steps: int = 100,
) -> LayerCurvature:
    """Largest eigenvalue and trace of every layer's diagonal block.

    Args:
        source: an Objective, for its Hessian; or an operator made with ``by_layer=True``.
        tol: relative residual of the eigenvalues.
        probes: Rademacher vectors for the traces; at least 2 for a standard error.
        seed: of the probes.
        max_steps: give up on an eigenvalue after so many products, and say so in its text.

    Raises:
        DiagnosticsError: an operator without layers, or an argument out of range.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
        >>> objective = Objective(model, torch.nn.MSELoss(), (torch.eye(2), torch.ones(2, 1)))
        >>> table = layer_curvature(objective)
        >>> [(row.layer, row.parameters) for row in table.rows]
        [('0', 4), ('1', 2)]
    """
    operator = Hessian(source, by_layer=True) if isinstance(source, Objective) else source
    _check(operator, tol, probes, max_steps)
    generator = random_stream(seed)

    def measure() -> tuple[list[_Run], numpy.ndarray]:
        samples = []
        for _ in range(probes - 1):
            vector = _signs(operator, generator)
            product = multiply(operator, vector)
            samples.append(_segment_dots(operator.layers, vector, product))
        start = _signs(operator, generator)
        runs, first = _lanczos(operator, start, tol, max_steps)
        return runs, torch.stack([first, *samples]).cpu().numpy()

    runs, samples = plainly(operator, measure)
    products = probes - 1 + max(len(run.diagonal) for run in runs)
    how = f"by layer, {products} block-diagonal products, {route_of(operator)}; {operator.objective.description}"
    shares = _shares(samples)
    rows = [
        LayerRow(
            layer.name,
            layer.size,
            run.estimate(tol, how),
            _mean(samples[:, index], f"Hutchinson, {probes} Rademacher probes, {how}"),
            shares[index],
        )
        for index, (layer, run) in enumerate(zip(operator.layers, runs, strict=True))
    ]
    return LayerCurvature(rows, products, how)


class _Run:
    """Lanczos on one block: its tridiagonal matrix, and whether it goes on."""

    def __init__(self, size: int, floor: float) -> None:
        self.size = size
        self.floor = floor
        self.diagonal: list[float] = []
        self.off_diagonal: list[float] = []
        self.value = self.residual = math.nan
        self.going = True
        self.converged = False
        self._met: tuple[int, float] | None = None

    def advance(self, alpha: float, beta: float, tol: float) -> float:
        """Take in one step; the β to divide by, 0 when this block is done."""
        self.diagonal.append(alpha)
        norm = abs(alpha) + beta + (self.off_diagonal[-1] if self.off_diagonal else 0.0)
        steps = len(self.diagonal)
        if steps == self.size or beta <= self.floor * norm:
            beta = 0.0
        values, vectors = eigh_tridiagonal(numpy.array(self.diagonal), numpy.array(self.off_diagonal))
        self.value, rounding = float(values[-1]), self.floor * float(numpy.abs(values).max())
        self.residual = math.hypot(beta * abs(float(vectors[-1, -1])), rounding)
        meets = self.residual <= max(tol * abs(self.value), rounding)
        if meets and (self._met is None or self.value > self._met[1]):
            self._met = steps, self.value + self.residual
        seen_twice = self._met is not None and steps >= max(LOOK_AGAIN * self._met[0], self._met[0] + 3)
        self.converged = beta == 0.0 or (meets and seen_twice)
        self.going = not self.converged
        self.off_diagonal.append(beta)
        return beta if self.going else 0.0

    def estimate(self, tol: float, how: str) -> Estimate:
        """The largest eigenvalue."""
        tail = "" if self.converged else f", NOT CONVERGED to a relative residual of {tol:g}"
        return Estimate(self.value, self.residual, "residual", f"Lanczos {how}{tail}")


def _lanczos(operator: Hessian | GaussNewton, start: Tensor, tol: float, max_steps: int) -> tuple[list[_Run], Tensor]:
    layers = operator.layers
    runs = [_Run(layer.size, rounding_of(operator)) for layer in layers]
    direction = start.clone()
    for layer in layers:
        direction[layer.span] /= math.sqrt(layer.size)
    basis: list[Tensor] = []
    first = direction[:0]
    for step in range(min(max_steps, max(layer.size for layer in layers))):
        basis.append(direction)
        image = multiply(operator, direction)
        alphas = _segment_dots(layers, direction, image)
        if step == 0:
            first = alphas * torch.tensor([float(layer.size) for layer in layers], device=alphas.device)
        if not bool(torch.isfinite(alphas).all()):
            refuse(operator, direction)
        following = torch.zeros_like(direction)
        for layer, run, alpha in zip(layers, runs, alphas.tolist(), strict=True):
            if not run.going:
                continue
            left = image[layer.span]
            rows = torch.stack([vector[layer.span] for vector in basis])
            for _ in range(2):
                left = left - rows.T @ (rows @ left)
            beta = run.advance(alpha, float(lengths(left.unsqueeze(0))), tol)
            if beta > 0.0:
                following[layer.span] = left / beta
        if not any(run.going for run in runs):
            break
        direction = following
    return runs, first


def _signs(operator: Hessian | GaussNewton, generator: torch.Generator) -> Tensor:
    bits = torch.randint(2, (operator.shape[0],), generator=generator, dtype=torch.int8, device="cpu")
    return (2 * bits - 1).to(operator.device, operator.dtype)


def _segment_dots(layers: Sequence[Layer], left: Tensor, right: Tensor) -> Tensor:
    return torch.stack([inner(left[layer.span], right[layer.span]) for layer in layers])


def _mean(samples: numpy.ndarray, how: str) -> Estimate:
    if len(samples) < 2:
        return Estimate(float(samples.mean()), math.nan, "standard error", f"{how}; one probe has no spread")
    return Estimate(float(samples.mean()), mean_error(torch.from_numpy(samples)), "standard error", how)


def _shares(samples: numpy.ndarray) -> list[Estimate]:
    """Each block's part of the summed trace, with a jackknife over probes."""
    totals = samples.sum(axis=1)
    count, total = len(totals), float(totals.sum())
    how = f"ratio of summed traces, jackknife over {count} probes"
    unsure = count > 1 and abs(total) <= 2 * float(totals.std(ddof=1)) * math.sqrt(count)
    if total == 0.0 or unsure:
        reason = "the trace of all blocks may be zero"
        return [Estimate(math.nan, math.nan, "standard error", reason) for _ in range(samples.shape[1])]
    shares = samples.sum(axis=0) / total
    if count == 1:
        return [Estimate(float(share), math.nan, "standard error", how) for share in shares]
    without = (samples.sum(axis=0) - samples) / (total - totals)[:, None]
    # The spread of the jackknife's pseudo-values, whose mean is the share but for its bias.
    errors = [mean_error(torch.from_numpy(one)) for one in (count * shares - (count - 1) * without).T]
    return [
        Estimate(float(share), float(error), "standard error", how) for share, error in zip(shares, errors, strict=True)
    ]


def _check(operator: Hessian | GaussNewton, tol: float, probes: int, max_steps: int) -> None:
    if not getattr(operator, "layers", ()):
        raise DiagnosticsError(
            "the operator has no layers",
            given=type(operator).__name__,
            expected="an Objective, or an operator made with by_layer=True",
            attempt="Hessian(objective, by_layer=True)",
        )
    if not real_number("tol", tol) > 0:
        raise DiagnosticsError("tol is not positive", given=str(tol), expected="a relative residual such as 1e-2")
    for name, number in (("probes", probes), ("max_steps", max_steps)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise DiagnosticsError(f"{name} is out of range", given=repr(number), expected="a whole number from 1")
