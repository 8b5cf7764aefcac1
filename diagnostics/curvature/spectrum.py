"""The spectral density of an operator by stochastic Lanczos quadrature, and what is read from it.

Each probe gives a Gauss rule (``quadrature``); averaged over probes, sums over nodes are traces: tr f(A) is
P · mean Σ w f(θ). Everything here comes from the raw nodes and weights. Kernels are for drawing only: the usual ones,
as wide as the range over the steps, show 1 % of a bulk that holds 99.9 % of the eigenvalues.

**Errors.** The probes are uniform on the sphere, not ±1, although ±1 never has the larger variance. For on the sphere
the variance is a function of the spectrum alone, Var qᵀf(A)q = 2/(P + 2) · (mean f² − (mean f)²), and the spectrum is
what we measure. So a few probes, even one, have an honest error without a t factor, and no eigenvector is orthogonal
to a probe, as (e₁ − e₂)/√2 is to every other ±1 vector. (For the trace of a trained network's Hessian ±1 would have
saved 6 % of the variance.) What m steps leave open is added: for shares the bracket of ``share_below``, for other
functions what the second half of the steps changed.

Source: Ubaru, Chen & Saad 2017; Ghorbani, Krishnan & Xiao, arXiv 1901.10159; Papyan, arXiv 1811.07062.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from diagnostics.curvature.outliers import Outliers, find_outliers
from diagnostics.curvature.quadrature import GaussRules, gauss_rules
from diagnostics.curvature.sums import Sums, check_interval, real_number, share_below
from diagnostics.curvature.symmetric import SymmetricMap, dimension, rounding_of, route_of
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact

NEAR_ZERO = 1e-4
"""Eigenvalues up to this times the largest magnitude count as near zero, and the drawing axis is linear so far."""

MARGIN = 1e-6
"""By how much an interval is widened, relative to the largest magnitude, so that zero eigenvalues are in [0, 1]."""


@dataclass(frozen=True, repr=False)
class Spectrum:
    """Nodes and weights of the spectral density, and the statistics that follow from them.

    Every statistic is an Estimate whose error is one sigma: value ± 1.96 · error is the 95 % interval.

    Attributes:
        nodes: (probes, steps), float64 on the CPU, ascending. Where a probe's chain ended early (P < steps, repeated
            eigenvalues) its largest node is repeated with weight zero.
        weights: (probes, steps), each row sums to 1.
        residuals: (probes, steps), some eigenvalue lies within so much of the node; zero where a chain has ended.
        dimension: P.
        matvecs: products used.
        rounding: relative error of a product.
        orthogonal: whether reorthogonalised; otherwise eigenvalues come back as copies that share their weight.
        how: method and route in one line.
    """

    nodes: Tensor
    weights: Tensor
    residuals: Tensor
    dimension: int
    matvecs: int
    rounding: float
    orthogonal: bool
    how: str

    @cached_property
    def trace(self) -> Estimate:
        """Σ λ."""
        return self._total(self.nodes)

    @cached_property
    def frobenius(self) -> Estimate:
        """‖A‖_F = √(Σ λ²); the square root's bias is taken out to first order."""
        square = self._total(self.nodes**2)
        if square.value <= 0.0:
            return exact(0.0, self.how)
        root, relative = math.sqrt(square.value), square.error / square.value
        # Where the error is as large as the value, the expansion has nothing to say of the bias.
        return Estimate(root * (1 + min(relative, 1.0) ** 2 / 8), root * relative / 2, "standard error", self.how)

    @cached_property
    def effective_rank(self) -> Estimate:
        """The exponential of the entropy of |λ| / Σ|λ| (Roy & Vetterli 2007): k for k equal ones, the others zero."""

        def surprise(sizes: Tensor) -> Tensor:
            return torch.xlogy(sizes, sizes)

        def slopes(size: float, log: float) -> tuple[float, float, float]:
            value = size * math.exp(-log / size)
            return value, value * (1 / size + log / size**2), -value / size

        return self._of_two(surprise, slopes)

    @cached_property
    def participation_ratio(self) -> Estimate:
        """(Σ|λ|)² / Σλ²: also k for k equal eigenvalues, but less moved by the many small ones."""

        def slopes(size: float, square: float) -> tuple[float, float, float]:
            value = size**2 / square
            return value, 2 * size / square, -value / square

        return self._of_two(torch.square, slopes)

    def function(self, f: Callable[[Any], Any]) -> Estimate:
        """The trace of f(A), Σ f(λ), for f vectorised over a float64 tensor of eigenvalues (NumPy functions will do).

        Raises:
            DiagnosticsError: f is not finite at a node, does not keep the shape, or is no function of a tensor.

        Example:
            >>> spectrum = spectral_density(torch.eye(3, dtype=torch.float64))
            >>> round(spectrum.function(lambda x: torch.log(x + 1)).value, 4)
            2.0794
        """
        if not callable(f):
            raise DiagnosticsError("f is not a function", given=repr(f), expected="a function such as torch.exp")
        return self._total(self._values(f, self.nodes), lambda nodes: self._values(f, nodes))

    def mass(self, low: float, high: float) -> Estimate:
        """Share of the eigenvalues in [low, high], both ends included, and 1e-6 of the largest magnitude around them.

        A threshold inside the bulk is resolved by m steps to about one node's weight; the error allows for it.
        """
        low, high = check_interval(low, high)
        return self._share(low - self._margin, high + self._margin)

    @cached_property
    def negative_mass(self) -> Estimate:
        """Share of the eigenvalues below −``near_zero``."""
        return self._share(-math.inf, -self.near_zero - self._margin)

    @cached_property
    def near_zero_mass(self) -> Estimate:
        """Share of the eigenvalues within ±``near_zero``."""
        return self.mass(-self.near_zero, self.near_zero)

    @cached_property
    def positive_mass(self) -> Estimate:
        """Share of the eigenvalues above ``near_zero``: the three shares add up to 1."""
        return self._share(self.near_zero + self._margin, math.inf)

    @property
    def near_zero(self) -> float:
        """1e-4 of the largest magnitude found."""
        return NEAR_ZERO * self._scale

    @property
    def largest(self) -> Estimate:
        """The largest node: at most the largest eigenvalue, and within its residual of some eigenvalue."""
        return self._extreme(int(self.nodes.argmax()))

    @property
    def smallest(self) -> Estimate:
        """The smallest node: at least the smallest eigenvalue, and within its residual of some eigenvalue."""
        return self._extreme(int(self.nodes.argmin()))

    def outliers(self) -> Outliers:
        """Resolved eigenvalues beyond a gap at either end of the bulk; ``outliers`` says what counts as a gap.

        Positive ones above the bulk and negative ones below it. Copies of an eigenvalue count once.

        Example:
            >>> values = torch.cat([torch.linspace(0, 1, 97), torch.tensor([5.0, 8.0, -4.0])])
            >>> spectral_density(torch.diag(values)).outliers().values
            tensor([ 8.0000,  5.0000, -4.0000], dtype=torch.float64)
        """
        found, lower_edge, edge = find_outliers(self._rules, self.dimension, self._resolution)
        values, residuals, multiplicities = torch.from_numpy(found).unbind(1)
        beyond = (self.nodes > edge) | (self.nodes < lower_edge)
        return Outliers(
            values=values,
            residuals=torch.clamp(residuals, min=self._resolution),
            multiplicities=multiplicities,
            edge=edge,
            lower_edge=lower_edge,
            count=exact(len(values), self.how),
            total=self._total(beyond.double()),
        )

    def to_axis(self, eigenvalues: Tensor) -> Tensor:
        """Where eigenvalues stand on the drawing axis: asinh(λ/``near_zero``), so linear near zero, logarithmic beyond.

        It is matplotlib's ``set_xscale("asinh", linear_width=spectrum.near_zero)`` up to a factor.
        """
        return torch.asinh(eigenvalues.double() / (self.near_zero or 1.0))

    def grid(self, points: int = 512) -> Tensor:
        """Eigenvalues (points,) evenly spaced on the drawing axis, from end to end of what ``density`` draws."""
        if not isinstance(points, numbers.Integral) or points < 2:
            raise DiagnosticsError("points is too small or no whole number", given=repr(points), expected="at least 2")
        places = self.to_axis(self.nodes)
        margin = 4 * self._kernel_width
        low, high = float(places.min()) - margin, float(places.max()) + margin
        return torch.sinh(torch.linspace(low, high, int(points), dtype=torch.float64, device="cpu")) * (
            self.near_zero or 1.0
        )

    def density(self, grid: ArrayLike, width: float | None = None) -> Tensor:
        """A smooth density for drawing, (len(grid),): share of the eigenvalues per unit of the drawing axis.

        It integrates to 1 over ``to_axis(grid)``, so that equal areas on the page are equal shares. Read numbers from
        ``mass``, not from this curve.

        Args:
            grid: eigenvalues, a tensor, array or list, in any order; see ``grid()``.
            width: standard deviation of the Gaussian kernel, in units of the axis; by default the axis' length over
                twice the steps.
        """
        width = self._kernel_width if width is None else real_number("width", width)
        if not width > 0:
            raise DiagnosticsError("width is out of range", given=str(width), expected="a positive number")
        eigenvalues = _as_reals(grid)
        if eigenvalues is None or eigenvalues.ndim != 1:
            raise DiagnosticsError("grid is not a row of numbers", given=repr(grid)[:80], expected="shape (points,)")
        distances = (self.to_axis(eigenvalues).unsqueeze(1) - self.to_axis(self.nodes).flatten()) / width
        kernel = torch.exp(-(distances**2) / 2) / (width * math.sqrt(2 * math.pi))
        return kernel @ self.weights.flatten() / len(self.nodes)

    def __str__(self) -> str:
        negative, near, positive = self.negative_mass, self.near_zero_mass, self.positive_mass
        probes, steps = self.nodes.shape
        lines = [
            f"{self.dimension:,} eigenvalues from {self.smallest} to {self.largest}",
            f"trace {self.trace}, Frobenius norm {self.frobenius}, effective rank {self.effective_rank}",
            f"shares: negative {negative}, within ±{self.near_zero:.2g} {near}, positive {positive}",
            str(self.outliers()),
            f"({probes} {'probe' if probes == 1 else 'probes'}, {steps} steps: {self.how})",
        ]
        return "\n".join(textwrap.fill(line, 80, subsequent_indent="  ") for line in lines)

    def __repr__(self) -> str:
        return f"Spectrum({self})"

    @cached_property
    def _rules(self) -> GaussRules:
        return GaussRules(self.nodes, self.weights, self.residuals, self.matvecs, self.orthogonal)

    @cached_property
    def _scale(self) -> float:
        return float(self.nodes.abs().max())

    @property
    def _resolution(self) -> float:
        return self.rounding * self._scale

    @property
    def _margin(self) -> float:
        return max(self._resolution, MARGIN * self._scale, math.ulp(0.0))

    def _share(self, low: float, high: float) -> Estimate:
        """Share of the eigenvalues between two thresholds at which there are none."""
        above, above_half = share_below(self._rules, high)
        below, below_half = share_below(self._rules, low)
        value = min(max(float((above - below).mean()), 0.0), 1.0)
        # Any place in the bracket is as likely as another: one sigma is its half width over √3.
        bracket = float((above_half + below_half).mean()) / math.sqrt(3)
        sampling = self._sums.share_error(value)
        return Estimate(value, min(math.hypot(sampling, bracket), 1.0), "standard error", self.how)

    @property
    def _kernel_width(self) -> float:
        places = self.to_axis(self.nodes)
        return float(places.max() - places.min()) / (2 * self.nodes.shape[1]) or 0.1

    @cached_property
    def _sums(self) -> Sums:
        return Sums(self._rules, self.dimension, self.rounding)

    def _total(self, values: Tensor, again: Callable[[Tensor], Tensor] | None = None) -> Estimate:
        error = self._sums.error(values, again)
        return Estimate(self._sums.value(values), error, "standard error", self.how)

    def _of_two(
        self,
        second: Callable[[Tensor], Tensor],
        slopes: Callable[[float, float], tuple[float, float, float]],
    ) -> Estimate:
        """A function of Σ|λ| and of one other sum over |λ|, in units of the largest magnitude, by the delta method.

        Both are linearised into one sum over eigenvalues, whose variance and quadrature error are known.
        """
        if self._scale == 0.0:
            return Estimate(math.nan, math.inf, "standard error", f"{self.how}; every eigenvalue is zero")

        sizes = self.nodes.abs() / self._scale
        value, by_size, by_second = slopes(self._sums.value(sizes), self._sums.value(second(sizes)))

        def combined(nodes: Tensor) -> Tensor:
            sizes = nodes.abs() / self._scale
            return by_size * sizes + by_second * second(sizes)

        return dataclasses.replace(self._total(combined(self.nodes), combined), value=value)

    def _values(self, f: Callable[[Any], Any], nodes: Tensor) -> Tensor:
        with numpy.errstate(all="ignore"), warnings.catch_warnings():
            # NumPy functions of a tensor work, and warn that one day they might not.
            warnings.simplefilter("ignore", DeprecationWarning)
            found = _as_reals(f(nodes))
        if found is None:
            raise DiagnosticsError("f does not return real numbers", expected="one real number for each eigenvalue")
        values = found
        if values.shape != nodes.shape:
            raise DiagnosticsError(
                "f does not keep the shape of its argument",
                given=f"{tuple(values.shape)} for {tuple(nodes.shape)}",
                expected="a function that works entry by entry",
            )
        wrong = ~torch.isfinite(values)
        if bool(wrong.any()):
            raise DiagnosticsError(
                "f is not finite at an eigenvalue",
                given=f"f({float(nodes[wrong][0]):.6g}) = {float(values[wrong][0])}",
                expected=f"finite values on [{float(self.nodes.min()):.6g}, {float(self.nodes.max()):.6g}]",
                attempt="a damping, as in lambda x: torch.log(x.abs() + 1e-3)",
            )
        return values

    def _extreme(self, index: int) -> Estimate:
        residual = math.hypot(float(self.residuals.flatten()[index]), self._resolution)
        return Estimate(float(self.nodes.flatten()[index]), residual, "residual", self.how)


def _as_reals(given: Any) -> Tensor | None:
    """Numbers of any kind as float64 on the CPU, wherever the caller's default device is; None for anything else."""
    try:
        if given.is_complex() if isinstance(given, Tensor) else numpy.iscomplexobj(given):
            return None
        return torch.as_tensor(given, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        return None


def spectral_density(
    operator: SymmetricMap,
    *,
    probes: int = 8,
    steps: int = 64,
    seed: int = 0,
    max_basis: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Spectrum:
    """The distribution of all eigenvalues, by stochastic Lanczos quadrature.

    Takes probes × steps products. Probes bring the statistical error down (as 1/√(P · probes) for shares), steps the
    resolution: eight and 64 give shares to a few per cent at P = 1000, and the outliers of a trained network.

    Args:
        operator: anything symmetric with ``shape``, ``dtype``, ``device`` and ``@``.
        probes: random directions.
        steps: Lanczos steps from each; after a single one the errors are infinite.
        seed: of the directions; the global random state is neither read nor moved.
        max_basis: vectors (P,) that may be stored at once; by default what fits into 4 GiB. Below probes × steps the
            probes take turns. Below ``steps`` nothing is stored and eigenvalues come back as copies: every sum and
            share stays right, and ``outliers`` counts copies once.
        progress: called with the share done, from 0 to 1.

    Raises:
        DiagnosticsError: probes, steps or max_basis out of range, or a product that is not finite.

    Example:
        >>> spectrum = spectral_density(torch.diag(torch.linspace(-1, 3, 200)))
        >>> abs(spectrum.trace.value - 200) < 2 * spectrum.trace.error
        True
        >>> abs(spectrum.mass(-1, 0).value - 0.25) < 2 * spectrum.mass(-1, 0).error
        True
    """
    size = dimension(operator)
    for name, given in (("probes", probes), ("steps", steps), ("max_basis", max_basis)):
        if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
            raise DiagnosticsError(f"{name} is out of range", given=repr(given), expected="an integer from 1 up")
    rules = gauss_rules(operator, probes, steps, seed, max_basis, progress)
    return Spectrum(
        nodes=rules.nodes,
        weights=rules.weights,
        residuals=rules.residuals,
        dimension=size,
        matvecs=rules.matvecs,
        rounding=rounding_of(operator),
        orthogonal=rules.orthogonal,
        how=f"stochastic Lanczos quadrature, {'full' if rules.orthogonal else 'no'} reorthogonalisation, "
        f"{rules.matvecs} products, {route_of(operator)}, seed {seed}",
    )


def spectral_function(
    operator: SymmetricMap,
    f: Callable[[Any], Any],
    *,
    probes: int = 8,
    steps: int = 64,
    seed: int = 0,
) -> Estimate:
    """The trace of f(A), Σ f(λ): a log-determinant, an effective dimension, a heat kernel.

    Args:
        operator: A.
        f: vectorised over a float64 tensor of eigenvalues; NumPy functions will do.
        probes: random directions.
        steps: Lanczos steps from each; more where f bends sharply or has a pole close by. The error compares with half
            as many, which says too little only where convergence is slower than any power of the steps.
        seed: of the directions.

    Raises:
        DiagnosticsError: f is not finite on the spectrum, or as ``spectral_density``.

    Example:
        >>> A = torch.diag(torch.linspace(0, 4, 100))
        >>> dimension = spectral_function(A, lambda x: x / (x + 1))
        >>> abs(dimension.value - 59.7) < 3 * dimension.error
        True
    """
    return spectral_density(operator, probes=probes, steps=steps, seed=seed).function(f)
