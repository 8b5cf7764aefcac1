"""A bounded basis: the same eigenvalues from few vectors, and no more memory than was promised."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diagnostics import top_eigenpairs
from diagnostics.curvature.eigen import basis
from tests.reference.known_spectra import Diagonal, rotated, uniform

CLUSTERED = {
    "clustered at the top": [3.0, 2.999, 2.998, 2.997, *uniform(36)],
    "top three times, bottom twice": [4.0, 4.0, 4.0, -2.0, -2.0, *uniform(30)],
    "pairs that differ by 1e-9": [3.0, 3.0 + 1e-9, 2.0, 2.0 + 1e-9, -3.5, -3.5 - 1e-9, *uniform(30)],
    "no gap anywhere": [value * 2 - 1 for value in uniform(32)],
}


@pytest.mark.parametrize("name", CLUSTERED)
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize(("k", "spare"), [(1, 2), (4, 3), (4, 8)])
def test_restarts_from_a_tiny_basis_against_dense_eigenvalues(name: str, which: str, k: int, spare: int) -> None:
    A = rotated(CLUSTERED[name])
    dense = torch.linalg.eigvalsh(A)
    expected = {
        "LA": dense.flip(0)[:k],
        "SA": dense[:k],
        "LM": dense[dense.abs().sort(descending=True).indices[:k]],
        "BE": torch.cat([dense[: k // 2], dense[len(dense) - k + k // 2 :]]),
    }[which]
    pairs = top_eigenpairs(A, k=k, which=which, tol=1e-6, max_basis=k + spare, max_matvecs=5000)
    assert pairs.converged
    torch.testing.assert_close(pairs.values, expected, rtol=1e-5, atol=1e-9)
    true = torch.linalg.vector_norm(A @ pairs.vectors - pairs.vectors * pairs.values, dim=0)
    assert bool((true <= pairs.residuals * 1.01 + 1e-14).all())
    torch.testing.assert_close(pairs.vectors.T @ pairs.vectors, torch.eye(k).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CLUSTERED)
def test_float32_restarts_keep_the_basis_orthonormal(name: str) -> None:
    A = rotated(CLUSTERED[name]).float()
    pairs = top_eigenpairs(A, k=3, tol=1e-4, max_basis=7, max_matvecs=5000)
    assert pairs.converged
    torch.testing.assert_close(pairs.vectors.T @ pairs.vectors, torch.eye(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(pairs.values, torch.linalg.eigvalsh(A.double()).flip(0)[:3], rtol=1e-4, atol=0)


def test_a_restart_loses_nothing_but_products() -> None:
    """Outliers over a bulk: a basis of 10 needs a few more products than an unbounded one, and tells the same."""
    outliers = torch.tensor([10.0, 8.0, 7.0, 5.0, 3.0], dtype=torch.float64)
    bulk = torch.rand(3000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    operator = Diagonal(torch.cat([outliers, bulk]))
    free, bound = top_eigenpairs(operator, k=3, tol=1e-6), top_eigenpairs(operator, k=3, tol=1e-6, max_basis=10)
    torch.testing.assert_close(bound.values, free.values, rtol=1e-9, atol=0)
    assert free.converged
    assert bound.converged
    assert 10 < free.matvecs <= bound.matvecs < 2 * free.matvecs


class _LiveBytes(TorchDispatchMode):
    """Adds up the memory of tensors of at least ``least`` entries for as long as they live."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.numel() >= self.least:
                place = tensor.untyped_storage().data_ptr()
                if place not in self.live:
                    self.live[place] = tensor.untyped_storage().nbytes()
                    weakref.finalize(tensor, self.live.pop, place, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return result


@pytest.mark.parametrize(("k", "max_basis", "start"), [(1, 8, False), (4, 10, False), (4, 20, True)])
def test_peak_memory_is_the_basis_and_a_few_vectors(
    k: int, max_basis: int, start: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restarts in place, and the result is not a copy of the basis. Float32 stays float32: no double vectors."""
    monkeypatch.setattr(basis, "PIECE", 1000)
    size = 5000
    diagonal = torch.rand(size, generator=torch.Generator().manual_seed(0)) + torch.arange(size).lt(30)
    operator = Diagonal(diagonal)
    begin = torch.ones(size) if start else None
    with _LiveBytes(least=size // 2) as memory:
        pairs = top_eigenpairs(operator, k=k, tol=1e-3, max_basis=max_basis, max_matvecs=150, start=begin)
    assert pairs.matvecs > max_basis, "or there was no restart"
    vectors = memory.peak / (4 * size)
    assert max_basis - 1 <= vectors <= max_basis + 6
    assert pairs.vectors.untyped_storage().nbytes() == 4 * size * k, "the result holds on to nothing else"


def test_ordinary_problems_take_no_more_than_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basis, "PIECE", 1000)
    size = 5000
    operator = Diagonal(torch.rand(size, generator=torch.Generator().manual_seed(0)) + 9 * torch.arange(size).eq(0))
    with _LiveBytes(least=size // 2) as memory:
        pairs = top_eigenpairs(operator)
    assert memory.peak / (4 * size) <= 2 * pairs.matvecs + 6


def test_a_basis_as_large_as_the_space_is_always_enough() -> None:
    pairs = top_eigenpairs(torch.diag(torch.tensor([3.0, 2.0, 1.0])), k=3, max_basis=3)
    assert pairs.converged
    assert pairs.values.tolist() == pytest.approx([3.0, 2.0, 1.0])


@pytest.mark.parametrize(("k", "max_basis"), [(1, None), (3, 6)])
def test_long_float32_vectors_stay_orthonormal_and_their_residuals_true(k: int, max_basis: int | None) -> None:
    """A plain single-precision product over a million entries is off by 1e-5, and more where a few are large."""
    size = 1_000_000
    diagonal = 0.01 * torch.randn(size, generator=torch.Generator().manual_seed(0))
    diagonal[:5] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    pairs = top_eigenpairs(Diagonal(diagonal), k=k, max_basis=max_basis)
    V = pairs.vectors.double()
    torch.testing.assert_close(V.T @ V, torch.eye(k).double(), rtol=0, atol=2e-6)
    true = torch.linalg.vector_norm(diagonal.double()[:, None] * V - V * pairs.values, dim=0)
    assert bool((true <= pairs.residuals).all())
    torch.testing.assert_close(pairs.values, torch.tensor([5.0, 4.0, 3.0]).double()[:k], rtol=2e-6, atol=0)
