"""Every choice of eigenvalues against dense ones: the right ones, in the promised order, as often as they are there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diagnostics import top_eigenpairs
from tests.reference.known_spectra import SPECTRA, Diagonal, rotated


def _expected(dense: Tensor, which: str, k: int) -> Tensor:
    """From ascending eigenvalues."""
    if which == "LM":
        return dense[dense.abs().sort(descending=True, stable=True).indices[:k]]
    if which == "BE":
        return torch.cat([dense[: k // 2], dense[len(dense) - k + k // 2 :]])
    return (dense.flip(0) if which == "LA" else dense)[:k]


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("which", ["LM", "BE"])
@pytest.mark.parametrize("k", [1, 2, 3, 6, "P"])
def test_magnitude_and_both_ends_against_dense_eigenvalues(name: str, which: str, k: int | str) -> None:
    A = rotated(SPECTRA[name])
    count = len(A) if k == "P" else int(k)
    expected = _expected(torch.linalg.eigvalsh(A), which, count)
    pairs = top_eigenpairs(A, k=count, which=which, tol=1e-8)
    assert pairs.converged
    scale = float(torch.linalg.matrix_norm(A, 2))
    if which == "LM":
        # Where θ and −θ are both eigenvalues, rounding decides which comes first.
        torch.testing.assert_close(pairs.values.abs(), expected.abs(), rtol=1e-6, atol=1e-7 * scale)
    else:
        torch.testing.assert_close(pairs.values, expected, rtol=1e-6, atol=1e-7 * scale)
    true = torch.linalg.vector_norm(A @ pairs.vectors - pairs.vectors * pairs.values, dim=0)
    assert bool((true <= pairs.residuals * 1.01 + 1e-14 * scale).all())
    torch.testing.assert_close(pairs.vectors.T @ pairs.vectors, torch.eye(count).double(), rtol=0, atol=1e-13)


def test_the_order_of_each_choice() -> None:
    A = rotated([4.0, 2.0, 1.0, 0.5, -1.5, -3.0, -6.0])
    orders = {
        "LA": [4.0, 2.0, 1.0],
        "SA": [-6.0, -3.0, -1.5],
        "LM": [-6.0, 4.0, -3.0],
        "BE": [-6.0, 2.0, 4.0],
    }
    for which, values in orders.items():
        got = top_eigenpairs(A, k=3, which=which, tol=1e-9).values
        torch.testing.assert_close(got, torch.tensor(values, dtype=torch.float64), rtol=1e-8, atol=0)


def test_the_largest_in_magnitude_is_not_taken_for_the_sharpness() -> None:
    A = rotated([-10.0, 1.0, 2.0, 5.0])
    assert float(top_eigenpairs(A).values[0]) == pytest.approx(5.0)
    assert float(top_eigenpairs(A, which="LM").values[0]) == pytest.approx(-10.0)


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_one_dimension(which: str) -> None:
    for value in (-2.0, 0.0, 3.0):
        pairs = top_eigenpairs(torch.tensor([[value]]), which=which)
        assert pairs.converged
        assert pairs.matvecs == 1
        assert float(pairs.values[0]) == value
        assert abs(float(pairs.vectors[0, 0])) == pytest.approx(1.0)


@pytest.mark.parametrize(("copies", "k"), [(3, 30), (5, 50), (2, 50)])
def test_many_eigenvalues_that_are_there_several_times(copies: int, k: int) -> None:
    """Ten values, each so many times: a Krylov space holds one of each, so further runs must bring the others."""
    repeated = torch.linspace(10.0, 2.0, 10).double().repeat_interleave(copies)
    bulk = torch.rand(600, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    operator = Diagonal(torch.cat([repeated, bulk]))
    pairs = top_eigenpairs(operator, k=k)
    assert pairs.converged
    torch.testing.assert_close(pairs.values, operator.diagonal.sort(descending=True).values[:k], rtol=1e-3, atol=0)
    assert pairs.matvecs == operator.products < 8 * k, "copies are collected several at a time"


@pytest.mark.parametrize(("beside", "tol"), [(2, 1e-2), (4, 1e-4), (8, 1e-4)])
def test_copies_are_not_missed_for_want_of_room(beside: int, tol: float) -> None:
    """Every eigenvalue three times, and so few rows that a run restarts every 1 to 4 steps: such steps are worth less
    than those of one Krylov space, and 5 + 1.5 ln P of them do not show that nothing is left."""
    converged = 0
    for seed in range(24):
        stream = torch.Generator().manual_seed(seed)
        size = 30 + int(torch.randint(31, (), generator=stream))
        values = torch.randn(size // 3 + 1, dtype=torch.float64, generator=stream).repeat_interleave(3)[:size]
        k = 2 + seed % 4
        pairs = top_eigenpairs(Diagonal(values), k=k, tol=tol, max_basis=k + beside, seed=seed, max_matvecs=600)
        if pairs.converged:
            converged += 1
            expected = values.sort(descending=True).values[:k]
            torch.testing.assert_close(pairs.values, expected, rtol=1.5 * tol, atol=1e-12)
    assert converged >= 18


@pytest.mark.parametrize("which", ["LM", "BE"])
def test_copies_at_both_ends(which: str) -> None:
    bulk = torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    operator = Diagonal(torch.cat([torch.tensor([-7.0] * 3 + [5.0] * 3).double(), bulk]))
    pairs = top_eigenpairs(operator, k=6, which=which)
    assert pairs.converged
    expected = [-7.0] * 3 + [5.0] * 3
    torch.testing.assert_close(pairs.values, torch.tensor(expected).double(), rtol=1e-5, atol=0)


def test_starts_and_restarts_of_several_columns() -> None:
    A = rotated([5.0, -4.0, 3.0, *SPECTRA["uniform"]])
    first = top_eigenpairs(A, k=3, which="LM")
    again = top_eigenpairs(A, k=3, which="LM", start=first.vectors)
    assert first.restart.shape == again.restart.shape == (len(A),)
    torch.testing.assert_close(again.values, torch.tensor([5.0, -4.0, 3.0]).double(), rtol=1e-3, atol=0)
