"""Slow twins of SGD's stability: dense Hessians of single examples, square roots, and every batch by enumeration."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor


def coherence_matrix(hessians: Sequence[Tensor]) -> Tensor:
    """S_ij = ‖H_i^½ H_j^½‖, from square roots of (P, P) matrices."""
    roots = []
    for hessian in hessians:
        values, vectors = torch.linalg.eigh(hessian)
        roots.append(vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T)
    return torch.stack([torch.stack([(one @ other).norm() for other in roots]) for one in roots])


def coherence(hessians: Sequence[Tensor]) -> float:
    """σ."""
    largest = max(float(torch.linalg.eigvalsh(one)[-1]) for one in hessians)
    return float(torch.linalg.eigvalsh(coherence_matrix(hessians))[-1]) / largest


def on_range(hessians: Sequence[Tensor]) -> list[Tensor]:
    """The same without the directions in which none of them has any curvature."""
    values, vectors = torch.linalg.eigh(torch.stack(list(hessians)).mean(0))
    basis = vectors[:, values > 1e-10 * values[-1]]
    return [basis.T @ one @ basis for one in hessians]


def mean_square_radius(hessians: Sequence[Tensor], batch_size: int, lr: float) -> float:
    """How much E[Δ Δᵀ] grows in a step at most: the spectral radius of E[(I − ηH_B) ⊗ (I − ηH_B)] over all batches."""
    reduced = on_range(hessians)
    eye = torch.eye(len(reduced[0])).double()
    steps = [eye - lr * sum(reduced[i] for i in batch) / batch_size for batch in _batches(len(reduced), batch_size)]
    return float(torch.linalg.eigvalsh(sum(torch.kron(step, step) for step in steps) / len(steps)).abs().max())


def bernoulli_radius(hessians: Sequence[Tensor], batch_size: int, lr: float) -> float:
    """The same where every example is in a batch by itself with chance B/N, by all 2^N batches."""
    reduced = on_range(hessians)
    count, eye = len(reduced), torch.eye(len(reduced[0])).double()
    total, chance = torch.zeros(len(eye) ** 2, len(eye) ** 2).double(), batch_size / len(reduced)
    for size in range(count + 1):
        for batch in _batches(count, size):
            step = eye - lr * sum((reduced[i] for i in batch), 0 * eye) / batch_size
            total += chance**size * (1 - chance) ** (count - size) * torch.kron(step, step)
    return float(torch.linalg.eigvalsh(total).abs().max())


def simulated(hessians: Sequence[Tensor], batch_size: int, lr: float, steps: int, runs: int, seed: int) -> Tensor:
    """‖Δ‖² of many runs of SGD on ½ Δᵀ H_B Δ, over its start, (runs,)."""
    generator = torch.Generator().manual_seed(seed)
    reduced = torch.stack(on_range(hessians))
    at = torch.randn(runs, reduced.shape[1], generator=generator).double()
    start = at.square().sum(1)
    for _ in range(steps):
        drawn = torch.rand(runs, len(reduced), generator=generator).topk(batch_size, 1).indices
        at = at - lr * torch.einsum("rbij,rj->ri", reduced[drawn], at) / batch_size
    return at.square().sum(1) / start


def _batches(count: int, size: int) -> list[tuple[int, ...]]:
    return list(combinations(range(count), size))
