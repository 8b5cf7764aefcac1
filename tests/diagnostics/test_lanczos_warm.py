"""Warm starts save products and do not blind the search to what has changed since."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diagnostics import top_eigenpairs


def _unit(size: int, index: int) -> Tensor:
    return torch.arange(size).eq(index).double()


class Diagonal:
    """A diagonal operator with a spread bulk below its outliers, which sit first."""

    def __init__(self, size: int, *outliers: float, bulk: float) -> None:
        self.diagonal = bulk * torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        self.diagonal[: len(outliers)] = torch.tensor(outliers)
        self.shape, self.dtype, self.device = (size, size), torch.float64, torch.device("cpu")

    def __matmul__(self, vector: Tensor) -> Tensor:
        return self.diagonal * vector


def test_the_last_eigenvector_saves_most_of_the_products() -> None:
    operator = Diagonal(5000, 6.0, bulk=5.5)
    cold = top_eigenpairs(operator)
    drift = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / 5000**0.5
    warm = top_eigenpairs(operator, start=cold.vectors[:, 0] + 0.01 * drift)
    assert cold.converged
    assert warm.converged
    assert warm.matvecs <= cold.matvecs / 2
    assert float(warm.values[0]) == pytest.approx(6.0, rel=1e-4)


@pytest.mark.parametrize("bulk", [1e-3, 3.0], ids=["tiny bulk", "spread bulk"])
@pytest.mark.parametrize("size", [500, 20_000])
@pytest.mark.parametrize("risen", [10.0, 20.0])
def test_a_direction_that_has_newly_risen_is_found_from_the_exact_former_one(
    risen: float, size: int, bulk: float
) -> None:
    """The start is an exact eigenvector, of what is now the second eigenvalue."""
    operator = Diagonal(size, risen, 9.0, bulk=bulk)
    pairs = top_eigenpairs(operator, start=_unit(size, 1))
    assert float(pairs.values[0]) == pytest.approx(risen, rel=1e-3)


@pytest.mark.parametrize(
    ("outliers", "bulk", "size", "which", "tol"),
    [
        ((5.0, 2.0), 1.0, 25, "LA", 0.1),
        ((5.0, 2.0), 1.0, 100, "LA", 0.1),
        ((-2.5, 1.3), 1.0, 25, "LM", 0.1),
        ((-0.5, *[-1.0] * 40), 1.0, 41, "LA", 1e-2),
        ((-0.5, *[-1.0] * 40), 1.0, 41, "LA", 0.1),
    ],
)
def test_small_operators_are_not_taken_at_the_word_of_their_start(
    outliers: tuple[float, ...], bulk: float, size: int, which: str, tol: float
) -> None:
    """The start is the second eigenvector; by P / 30 alone, nothing had to be shown, and a third were wrong."""
    operator = Diagonal(size, *outliers, bulk=bulk)
    found = [
        float(top_eigenpairs(operator, start=_unit(size, 1), which=which, tol=tol, seed=seed).values[0])
        for seed in range(100)
    ]
    assert sum(abs(value - outliers[0]) > tol * abs(outliers[0]) for value in found) <= 3


@pytest.mark.parametrize("size", [25, 1000, 20_000])
def test_tracking_stays_cheap(size: int) -> None:
    operator = Diagonal(size, 5.0, 2.0, bulk=1.0)
    drift = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / size**0.5
    pairs = top_eigenpairs(operator, start=_unit(size, 0) + 0.05 * drift, tol=1e-2)
    assert pairs.converged
    assert pairs.matvecs <= 5


def test_several_former_vectors_are_all_used() -> None:
    operator = Diagonal(3000, 9.0, 8.0, 7.0, bulk=5.0)
    cold = top_eigenpairs(operator, k=3)
    warm = top_eigenpairs(operator, k=3, start=cold.vectors)
    torch.testing.assert_close(warm.values, torch.tensor([9.0, 8.0, 7.0], dtype=torch.float64), rtol=1e-5, atol=0)
    assert warm.matvecs < cold.matvecs


@pytest.mark.parametrize(
    "start",
    [torch.zeros(50), torch.full((50,), float("nan")), torch.full((50,), float("inf")), torch.zeros(50, 2)],
    ids=["zero", "nan", "infinite", "zero matrix"],
)
def test_a_useless_start_is_a_cold_one(start: Tensor) -> None:
    operator = Diagonal(50, 9.0, bulk=5.0)
    pairs = top_eigenpairs(operator, start=start)
    assert pairs.converged
    assert float(pairs.values[0]) == pytest.approx(9.0, rel=1e-4)


def test_vectors_that_cancel_are_no_start_either() -> None:
    v = _unit(50, 0)
    pairs = top_eigenpairs(Diagonal(50, 9.0, bulk=5.0), start=torch.stack([v, -v], dim=1))
    assert float(pairs.values[0]) == pytest.approx(9.0, rel=1e-4)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_warm_starts_on_operators_smaller_than_the_extra_steps(size: int) -> None:
    operator = Diagonal(size, 9.0, bulk=5.0)
    pairs = top_eigenpairs(operator, start=_unit(size, 0))
    assert float(pairs.values[0]) == pytest.approx(9.0)
    assert pairs.matvecs <= size
