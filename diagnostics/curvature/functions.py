"""What Gauss rules say of a spectrum, and how surely: sums over eigenvalues, shares below a threshold, the bulk's edge.

**Sums.** tr f(A) is P · mean Σ w f(θ). Its variance over probes on the sphere is a function of the spectrum, and so
another such sum. What m steps leave open is judged by the rule of half as many.

**Shares.** m Lanczos steps fix 2m moments of a probe's measure, and many measures share them. How much mass each of
them can have below x is known (Chebyshev, Markov, Stieltjes): make x itself a node of the rule, and every one of them
lies between the weights of the nodes below x, and those with the weight of x. That weight is about one node's weight
inside the bulk, and falls exponentially with m in a gap, where plain sums over nodes are exact too. We count half of
it: for a smooth density the rest is then far smaller than the half that the bracket allows for.

**The bulk's edge.** An outlier is a resolved eigenvalue above a gap that cannot be chance: below the gap, the same
length holds at least twenty eigenvalues. This rule knows no scale and no shape, so it needs no model of the bulk.
If eigenvalues lay at random, twenty neighbours would leave such a gap once in 2²⁰; at a soft edge, as of the
semicircle, they repel each other and do so less.

Source: Golub & Meurant, Matrices, Moments and Quadrature, ch. 6; Akhiezer, The Classical Moment Problem, ch. 2;
on outliers and bulk in networks: Sagun et al., arXiv 1706.04454; Papyan, arXiv 1811.07062.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from diagnostics.curvature.quadrature import GaussRules
from diagnostics.estimate import Estimate

CROWD = 20
"""Eigenvalues that the length of a gap must hold below it."""

MOST = 0.25
"""Share of all eigenvalues that may be outliers: more are a second bulk."""

RESOLVED = 0.1
"""Residual of a resolved eigenvalue, relative to the gap below it."""

LEAST_COUNT = 1e-3
"""Estimated multiplicity below which a node is no eigenvalue but a copy on its way: the true one averages 1."""

NEAREST = 1e-7
"""A threshold this near to a node, relative to its residual, is as good as on it, and dividing by less loses digits."""


@dataclass(frozen=True)
class Outliers:
    """Eigenvalues beyond the edges of the bulk.

    Attributes:
        values: (k,), float64, largest first; positive ones above ``edge``, negative ones below ``lower_edge``.
        residuals: (k,), an eigenvalue lies within so much of the value.
        multiplicities: (k,), how often each occurs, estimated: dimension × mean weight, off by about √(2/probes).
        edge: where the bulk ends above; the largest eigenvalue found when nothing lies beyond.
        lower_edge: where the bulk ends below, likewise.
        count: how many distinct eigenvalues lie beyond; each is resolved, so only rounding could change it.
        total: the same counted with their multiplicities, estimated from weights.
    """

    values: Tensor
    residuals: Tensor
    multiplicities: Tensor
    edge: float
    lower_edge: float
    count: Estimate
    total: Estimate

    def __len__(self) -> int:
        return len(self.values)

    def __str__(self) -> str:
        if not len(self):
            return "no outliers"
        noun = "outlier" if len(self) == 1 else "outliers"
        shown = ", ".join(f"{value:.4g}" for value in self.values[:5].tolist())
        more = ", ..." if len(self) > 5 else ""
        return f"{len(self)} {noun} beyond [{self.lower_edge:.3g}, {self.edge:.3g}]: {shown}{more}"


@dataclass(frozen=True)
class Sums:
    """Sums over all eigenvalues, from function values at the nodes, with their standard errors.

    Attributes:
        rules: of all probes.
        dimension: P.
        rounding: relative error of a product.
    """

    rules: GaussRules
    dimension: int
    rounding: float

    def value(self, values: Tensor) -> float:
        """Σ f(λ), for the values (probes, steps) of f at the nodes."""
        return self.dimension * float((self.rules.weights * values).sum(dim=1).mean())

    def error(self, values: Tensor, f: Callable[[Tensor], Tensor] | None = None) -> float:
        """One standard error of that sum; ``f`` computes values at other nodes, None where the rules are exact."""
        if self.rules.nodes.shape[1] == 1 and bool(self._running.any()):
            return math.inf  # one step tells the mean of a measure, and nothing of its width
        sampling = math.sqrt(self._variance(values))
        rounding = self.rounding * self.value(values.abs())
        return math.hypot(sampling, rounding, 0.0 if f is None else self._left_open(f))

    def share_error(self, share: float) -> float:
        """The same for a share of the eigenvalues, whose values are 0 and 1."""
        if min(share, 1 - share) * self.dimension < LEAST_COUNT:
            return 0.0  # no eigenvalue at all, or every one
        one_probe = self._one_probe / self.dimension
        return math.sqrt(one_probe * share * (1 - share) + one_probe**2)

    @property
    def _running(self) -> Tensor:
        """Which chains would have had more to see, (probes,)."""
        return (self.rules.residuals > 0).any(dim=1)

    @property
    def _one_probe(self) -> float:
        """Variance of P · qᵀg(A)q per unit of Σ g², for g of trace zero, after averaging over the probes."""
        return 2 * self.dimension / (self.dimension + 2) / len(self.rules.nodes)

    def _variance(self, values: Tensor) -> float:
        """Over draws of the probes.

        The second term is the doubt about the first: with a few probes and one eigenvalue that outweighs all others,
        its weight may have come out small, and with it the variance. It is what the score interval adds to the plain
        one.
        """
        centred = values - self.value(values) / self.dimension
        square = self.value(centred**2)
        # Centring leaves rounding where the values are all alike.
        if square <= self.dimension * (1e-15 * float(values.abs().max())) ** 2:
            return 0.0
        return self._one_probe * square + self._one_probe**2 * self.value(centred**4) / square

    def _left_open(self, f: Callable[[Tensor], Tensor]) -> float:
        """How much the second half of the steps changed the sum; zero for chains that ended.

        The last step alone would do where convergence is fast, and say too little where it is slow.
        """
        running = self._running
        if not bool(running.any()):
            return 0.0
        nodes, weights = self.rules.nodes[running], self.rules.weights[running]
        fewer_nodes, fewer_weights = shortened(nodes, weights, nodes.shape[1] // 2)
        change = (weights * f(nodes)).sum(dim=1) - (fewer_weights * f(fewer_nodes)).sum(dim=1)
        return self.dimension * abs(float(change.sum())) / len(self.rules.nodes)


def share_below(rules: GaussRules, threshold: float) -> tuple[Tensor, Tensor]:
    """The share of each probe's mass below a threshold, and half the width of its bracket: (probes,) each.

    The rule with a node at x has the eigenvalues of the tridiagonal matrix bordered by one more row. In the
    eigenbasis of T that is an arrow: the nodes on the diagonal, residuals on the border, and in the corner what
    makes x an eigenvalue.
    """
    nodes, weights, residuals = rules.nodes, rules.weights, rules.residuals
    if math.isinf(threshold):
        share = torch.full_like(nodes[:, 0], float(threshold > 0))
        return share, torch.zeros_like(share)
    distances = nodes - threshold
    below = (distances < 0).sum(dim=1, keepdim=True)
    floor = NEAREST * residuals
    distances = torch.where(distances.abs() < floor, torch.where(distances < 0, -floor, floor), distances)
    ratios = torch.where(residuals > 0, residuals**2 / torch.where(residuals > 0, distances, 1.0), 0.0)
    arrow = torch.diag_embed(torch.cat([nodes, threshold + ratios.sum(dim=1, keepdim=True)], dim=1))
    # The last components of the eigenvectors of T alternate in sign where the first are positive.
    border = residuals * (1 - 2 * (torch.arange(nodes.shape[1]) % 2))
    arrow[:, :-1, -1] = arrow[:, -1, :-1] = border
    vectors = torch.linalg.eigh(arrow).eigenvectors
    masses = torch.einsum("pi,pij->pj", weights.sqrt(), vectors[:, :-1]) ** 2
    # Interlacing: as many nodes of the new rule as of the old one lie below x, and the next one is x.
    half = masses.gather(1, below)[:, 0] / 2
    first = torch.arange(masses.shape[1]) < below
    return torch.where(first, masses, 0.0).sum(dim=1) + half, half


def shortened(nodes: Tensor, weights: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights (probes, steps) of the rules that so many steps would have given.

    Lanczos on a rule itself, from the roots of its weights, is Lanczos on A as far as the rule is exact.
    """
    basis = weights.sqrt().unsqueeze(1)
    while basis.shape[1] < steps:
        image = (nodes * basis[:, -1]).unsqueeze(2)
        for _ in range(2):
            image = image - basis.mT @ (basis @ image)
        basis = torch.cat([basis, torch.nn.functional.normalize(image, dim=1).mT], dim=1)
    values, vectors = torch.linalg.eigh(basis * nodes.unsqueeze(1) @ basis.mT)
    return values, vectors[:, 0] ** 2


def find_outliers(rules: GaussRules, dimension: int, rounding: float) -> tuple[numpy.ndarray, float, float]:
    """Resolved eigenvalues beyond the bulk, rows of (value, residual, multiplicity), and the bulk's two edges.

    Args:
        rules: of all probes.
        dimension: P.
        rounding: error of one product, in the units of the nodes.
    """
    mirrored = GaussRules(-rules.nodes, rules.weights, rules.residuals, rules.matvecs, rules.orthogonal)
    above, edge = _upper_end(rules, dimension, rounding)
    below, lower_edge = _upper_end(mirrored, dimension, rounding)
    return numpy.concatenate([above, below[::-1] * [-1, 1, 1]]), -lower_edge, edge


def _upper_end(rules: GaussRules, dimension: int, rounding: float) -> tuple[numpy.ndarray, float]:
    # Copies and probes agree on an eigenvalue to rounding, but without reorthogonalisation the rounding of a product
    # is seen through a start that holds 1/√P of the eigenvector (P up to 2·10⁵, both precisions: at most half of it).
    resolution = rounding * (4.0 if rules.orthogonal else max(4.0, math.sqrt(dimension)))
    nodes, residuals = rules.nodes.flatten().numpy(), rules.residuals.flatten().numpy()
    counts = rules.weights.flatten().numpy() * dimension / len(rules.nodes)
    nodes, residuals, counts = nodes[counts > 0], residuals[counts > 0], counts[counts > 0]
    order = numpy.argsort(-nodes)
    nodes, residuals, counts = nodes[order], residuals[order], counts[order]
    # Nothing below the share that may be outliers needs a closer look, nor does what is not positive.
    near = int(numpy.sum((numpy.cumsum(counts) <= 2 * MOST * dimension) & (nodes > resolution)))
    seen = _distinct(nodes[:near], residuals[:near], counts[:near], resolution)
    rest = float((nodes + residuals)[near:][counts[near:] >= LEAST_COUNT].max(initial=-math.inf))
    full = numpy.abs(nodes) > resolution
    sparse = bool(counts[~full].sum() >= dimension / 2)
    sparse = sparse and len(_distinct(nodes[full], residuals[full], counts[full], resolution)) < CROWD
    for k in range(len(seen), 0, -1):
        value, residual, count, spread = seen[:k].T
        edge = max(rest, float((seen[k:, 0] + seen[k:, 1]).max(initial=-math.inf)))
        gap = float((value - residual).min()) - edge
        if not 2 * resolution < gap < math.inf or spread.max() > RESOLVED * gap or count.sum() > MOST * dimension:
            continue
        within = (nodes >= edge - gap) & (nodes < edge + gap / 2)
        # A null space is a bulk only where so few eigenvalues are not zero that there can be no other.
        if counts[within & full].sum() >= CROWD or (sparse and bool((within & ~full).any())):
            return seen[:k, :3], edge
    return seen[:0, :3], float(nodes[0])


def _distinct(
    nodes: numpy.ndarray, residuals: numpy.ndarray, counts: numpy.ndarray, resolution: float
) -> numpy.ndarray:
    """Nodes of all probes that are the same eigenvalue as one row, largest first.

    Rows are (value, residual of the best, multiplicity, mean residual by weight). The best resolved nodes come first,
    and each other joins the nearest of them within both their errors. So a probe that saw an eigenvalue badly does not
    tie two of them together; but where all saw it badly, the mean residual shows that it is a part of the bulk.
    """
    centres: list[list[float]] = []
    for index in numpy.argsort(residuals, kind="stable"):
        node, residual, count = float(nodes[index]), float(residuals[index]), float(counts[index])
        if centres:
            found = numpy.array(centres)
            distance = numpy.abs(found[:, 0] - node)
            nearest = int(distance.argmin())
            if distance[nearest] <= residual + found[nearest, 1] + resolution:
                centres[nearest][2] += count
                centres[nearest][3] += count * residual
                continue
        centres.append([node, residual, count, count * residual])
    result = numpy.array(centres).reshape(-1, 4)
    result = result[result[:, 2] >= LEAST_COUNT]
    result[:, 3] /= result[:, 2]
    return result[numpy.argsort(-result[:, 0], kind="stable")]
