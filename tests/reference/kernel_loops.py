"""Slow twins of what is measured on tangent kernels: sums over single pairs, quadruples and steps, written out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor


def alignment(k: Tensor, target: Tensor) -> float:
    """⟨K, L⟩/(‖K‖‖L‖), entry by entry."""
    size = len(k)
    dot = sum(float(k[i, j] * target[i, j]) for i in range(size) for j in range(size))
    norms = [math.sqrt(sum(float(one[i, j]) ** 2 for i in range(size) for j in range(size))) for one in (k, target)]
    return dot / (norms[0] * norms[1])


def centring(examples: int, outputs: int) -> Tensor:
    """H ⊗ I for example-major rows: the mean over examples of each output is taken out."""
    mean = torch.eye(examples).double() - 1.0 / examples
    return torch.kron(mean, torch.eye(outputs).double())


def unbiased_hsic(k: Tensor, target: Tensor) -> float:
    """E K_ij L_ij + E K_ij L_kl − 2 E K_ij L_ik, each mean over all choices of different indices."""
    size = len(k)
    pairs = list(itertools.permutations(range(size), 2))
    triples = list(itertools.permutations(range(size), 3))
    quadruples = list(itertools.permutations(range(size), 4))
    first = sum(float(k[i, j] * target[i, j]) for i, j in pairs) / len(pairs)
    second = sum(float(k[i, j] * target[m, n]) for i, j, m, n in quadruples) / len(quadruples)
    third = sum(float(k[i, j] * target[i, m]) for i, j, m in triples) / len(triples)
    return first + second - 2 * third


def unbiased_alignment(k: Tensor, target: Tensor) -> float:
    """Quotient of U-statistics."""
    return unbiased_hsic(k, target) / math.sqrt(unbiased_hsic(k, k) * unbiased_hsic(target, target))


def descent(theta: Tensor, start: Tensor, wanted: Tensor, lr: float, steps: int) -> Tensor:
    """f_t of a model with a fixed kernel: f ← f − η/N Θ (f − y), step by step."""
    f = start.clone()
    for _ in range(steps):
        f = f - lr / len(start) * theta @ (f - wanted)
    return f


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """The Jacobian of a function by central differences, a column for each entry."""
    columns = []
    for place in range(at.numel()):
        away = torch.zeros_like(at).flatten()
        away[place] = step
        away = away.view_as(at)
        columns.append((function(at + away) - function(at - away)).flatten() / (2 * step))
    return torch.stack(columns, 1)
