"""Eigenvalues that stand apart from the bulk, as the Gauss rules of several probes show them.

An outlier is a resolved eigenvalue above a gap that cannot be chance: below the gap, the same
length holds at least twenty eigenvalues. This rule knows no scale and no shape, so it needs no model of the bulk.
If eigenvalues lay at random, twenty neighbours would leave such a gap once in 2²⁰; at a soft edge, as of the
semicircle, they repel each other and do so less.

Source: on outliers and bulk in networks, Sagun et al., arXiv 1706.04454; Papyan, arXiv 1811.07062.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
from torch import Tensor

from diagnostics.curvature.quadrature import GaussRules
from diagnostics.curvature.sums import LEAST_COUNT
from diagnostics.estimate import Estimate

CROWD = 20
"""Eigenvalues that the length of a gap must hold below it."""

MOST = 0.25
"""Share of all eigenvalues that may be outliers: more are a second bulk."""

RESOLVED = 0.1
"""Residual of a resolved eigenvalue, relative to the gap below it."""


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
