"""Symmetric matrices whose eigenvalues are known before anybody looks, the awkward ones included."""

from __future__ import annotations

import torch
from torch import Tensor


class Diagonal:
    """A diagonal operator, for sizes at which a matrix would not fit."""

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal = diagonal
        self.shape = (len(diagonal), len(diagonal))
        self.dtype, self.device = diagonal.dtype, diagonal.device
        self.products = 0

    def __matmul__(self, vector: Tensor) -> Tensor:
        self.products += 1
        return self.diagonal * vector


def rotated(values: list[float], seed: int = 0) -> Tensor:
    """A dense matrix with these eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    size = len(values)
    basis, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    matrix = (basis * torch.tensor(values, dtype=torch.float64)) @ basis.T
    return (matrix + matrix.T) / 2


def uniform(size: int, seed: int = 0) -> list[float]:
    """Draws between zero and one."""
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)).double().tolist()


SPECTRA = {
    "uniform": uniform(40),
    "indefinite, -5 largest in magnitude": [-5.0, 2.0, 1.5, *uniform(30)],
    "top eigenvalue three times": [4.0, 4.0, 4.0, *uniform(30)],
    "clustered at the top": [3.0, 2.999, 2.998, 2.997, *uniform(30)],
    "two distinct values": [2.0] * 7 + [1.0] * 8,
    "negative definite": [-value - 1.0 for value in uniform(20)],
    "identity": [1.0] * 12,
    "zero": [0.0] * 12,
    "rank one": [3.0] + [0.0] * 11,
    "rank two, both signs": [3.0, -3.0] + [0.0] * 11,
    "pairs that differ by 1e-9": [3.0, 3.0 + 1e-9, 1.0, 1.0 + 1e-9, -3.0, -3.0 - 1e-9, *uniform(20)],
    "tiny": [value * 1e-12 for value in uniform(15)],
    "huge": [value * 1e12 for value in uniform(15)],
}
