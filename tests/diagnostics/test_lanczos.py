"""``top_eigenpairs`` against dense eigenvalues: right, each once, honest about its residual, and quick."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diagnostics import DiagnosticsError, Eigenpairs, top_eigenpairs
from tests.reference.known_spectra import SPECTRA, Diagonal, rotated


def _check(A: Tensor, pairs: Eigenpairs, expected: Tensor, rtol: float = 1e-5) -> None:
    """The values, orthonormal vectors, and residuals that are at least the true ones."""
    scale = float(torch.linalg.matrix_norm(A, 2)) or 1.0
    torch.testing.assert_close(pairs.values, expected.double(), rtol=rtol, atol=rtol * scale)
    V = pairs.vectors
    eps = torch.finfo(A.dtype).eps
    torch.testing.assert_close(V.T @ V, torch.eye(V.shape[1], dtype=V.dtype), rtol=0, atol=100 * eps)
    true = torch.linalg.vector_norm(A.double() @ V.double() - V.double() * pairs.values, dim=0)
    assert bool((true <= pairs.residuals * 1.01 + 10 * eps * scale).all()), (true, pairs.residuals)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("which", ["LA", "SA"])
@pytest.mark.parametrize("k", [1, 2, 5, "P"])
def test_against_dense_eigenvalues(name: str, which: str, k: int | str) -> None:
    A = rotated(SPECTRA[name])
    count = len(A) if k == "P" else int(k)
    dense = torch.linalg.eigvalsh(A)
    expected = (dense.flip(0) if which == "LA" else dense)[:count]
    pairs = top_eigenpairs(A, k=count, which=which, tol=1e-8)
    assert pairs.converged
    _check(A, pairs, expected)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_operators_smaller_than_any_number_of_steps(size: int) -> None:
    A = torch.diag(torch.arange(1.0, size + 1)).double()
    for k in range(1, size + 1):
        _check(A, top_eigenpairs(A, k=k), torch.arange(float(size), size - k, -1.0))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tol", [0.5, 0.1, 1e-3])
def test_residuals_are_honest_at_loose_tolerances_and_with_copies(seed: int, tol: float) -> None:
    """A pair found beside inexact pairs inherits their error: that must be in its residual too."""
    draw = torch.randn(27, generator=torch.Generator().manual_seed(seed)).tolist()
    A = rotated([5.0, 5.0, 5.0, *draw], seed)
    pairs = top_eigenpairs(A, k=5, tol=tol, seed=seed)
    V = pairs.vectors
    true = torch.linalg.vector_norm(A @ V - V * pairs.values, dim=0)
    assert bool((true <= pairs.residuals + 1e-12).all())
    if pairs.converged:
        assert bool((true <= tol * pairs.values.abs() + 1e-12).all())
        dense = torch.linalg.eigvalsh(A)
        assert all(float((dense - value).abs().min()) <= tol * abs(value) for value in pairs.values.tolist())


@pytest.mark.parametrize("name", ["uniform", "indefinite, -5 largest in magnitude", "top eigenvalue three times"])
def test_float32_is_as_good_as_its_products(name: str) -> None:
    A = rotated(SPECTRA[name]).float()
    pairs = top_eigenpairs(A, k=3, tol=1e-4)
    assert pairs.converged
    _check(A, pairs, torch.linalg.eigvalsh(A.double()).flip(0)[:3], rtol=1e-4)
    assert float(pairs.residuals.min()) >= 8 * torch.finfo(torch.float32).eps, "rounding is part of the error"


@settings(max_examples=30)
@given(
    st.integers(0, 10**6), st.floats(-20, 20), st.floats(0.01, 100), st.integers(2, 20), st.sampled_from(["LA", "SA"])
)
def test_shift_scale_rotation_and_sign(seed: int, shift: float, scale: float, size: int, which: str) -> None:
    """λ(cA + s) = cλ(A) + s; λ(QᵀAQ) = λ(A); the smallest of A is minus the largest of −A."""
    values = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    A = rotated(values.tolist(), seed)
    expected = values.sort(descending=which == "LA").values[:2]
    moved = scale * A + shift * torch.eye(size, dtype=torch.float64)
    got = top_eigenpairs(moved, k=2, which=which, tol=1e-9).values
    torch.testing.assert_close(got, scale * expected + shift, rtol=1e-6, atol=1e-6 * (scale + abs(shift)))
    other = "SA" if which == "LA" else "LA"
    torch.testing.assert_close(-top_eigenpairs(-moved, k=2, which=other, tol=1e-9).values, got, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nine_outliers_over_a_bulk_of_twenty_thousand_are_found_once_each(dtype: torch.dtype) -> None:
    outliers = torch.tensor([100.0, 50, 30, 20, 10, 5, 3, 2, 1], dtype=torch.float64)
    bulk = 1e-3 * torch.randn(20_000 - 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    operator = Diagonal(torch.cat([bulk, outliers]).to(dtype))
    pairs = top_eigenpairs(operator, k=12)
    torch.testing.assert_close(pairs.values[:9], outliers, rtol=1e-4, atol=0)
    assert float(pairs.values[9:].max()) < 0.01, "no copies: what follows is the edge of the bulk"
    assert pairs.matvecs == operator.products < 180


@pytest.mark.parametrize(("k", "budget"), [(1, 2), (5, 5), (5, 8), (50, 60)])
def test_a_budget_is_kept_and_its_exhaustion_is_said(k: int, budget: int) -> None:
    operator = Diagonal(torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    pairs = top_eigenpairs(operator, k=k, tol=1e-6, max_matvecs=budget)
    assert operator.products == pairs.matvecs == budget
    assert not pairs.converged
    assert "NOT CONVERGED" in str(pairs)
    assert "NOT CONVERGED" in pairs.estimate().how
    assert len(pairs.values) == k
    true = torch.linalg.vector_norm(operator.diagonal[:, None] * pairs.vectors - pairs.vectors * pairs.values, dim=0)
    assert bool((true <= pairs.residuals + 1e-12).all())


def test_the_result_is_the_same_for_the_same_seed_and_the_global_state_is_left_alone() -> None:
    A = rotated(SPECTRA["uniform"])
    before = torch.get_rng_state()
    first = top_eigenpairs(A, k=3, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, other = top_eigenpairs(A, k=3, seed=4), top_eigenpairs(A, k=3, seed=5)
    assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors, other.vectors)


def test_it_runs_under_inference_mode_and_gives_ordinary_tensors() -> None:
    A = rotated(SPECTRA["uniform"])
    with torch.inference_mode():
        pairs = top_eigenpairs(A, k=2)
    assert not pairs.vectors.is_inference()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 0}, r"k is out of range; given: 0; expected: 1 to P = 4"),
        ({"k": 5}, r"k is out of range; given: 5"),
        ({"which": "SM"}, r"which is unknown; given: 'SM'; expected: 'LA' or 'SA' or 'LM' or 'BE'"),
        ({"tol": 0.0}, r"tol is not positive; given: 0.0"),
        ({"k": 1.5}, r"k is not a whole number; given: 1.5; expected: 1 to P = 4"),
        ({"tol": float("nan")}, r"tol is not positive; given: nan"),
        ({"tol": float("inf")}, r"tol is not positive; given: inf"),
        ({"tol": "small"}, r"tol is not positive; given: small"),
        ({"seed": 0.5}, r"seed is not a whole number; given: 0.5"),
        ({"start": [1.0] * 4}, r"start is not a real tensor; given: list; expected: shape \(4,\) or \(4, j\)"),
        ({"start": torch.ones(4, dtype=torch.complex64)}, r"start is not a real tensor; given: torch.complex64"),
        ({"start": torch.ones(3)}, r"start does not fit the operator; given: shape \(3,\); expected: \(4,\)"),
        ({"start": torch.ones(4, 1, 1)}, r"start does not fit the operator; given: shape \(4, 1, 1\)"),
        ({"k": 1, "max_basis": 2}, r"max_basis is too small; given: 2; expected: at least k \+ 2 = 3"),
        ({"max_matvecs": 2.5}, r"max_matvecs is not a whole number; given: 2.5"),
        ({"k": 3, "max_matvecs": 2}, r"max_matvecs is too small; given: 2; expected: at least k = 3"),
    ],
)
def test_refusals(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(DiagnosticsError, match=words):
        top_eigenpairs(torch.eye(4), **arguments)


def test_operators_that_are_not_square_not_real_or_not_finite_are_refused() -> None:
    with pytest.raises(DiagnosticsError, match=r"operator is not real; given: torch.int64"):
        top_eigenpairs(torch.eye(2, dtype=torch.int64))
    with pytest.raises(DiagnosticsError, match=r"operator is not square; given: shape \(2, 3\)"):
        top_eigenpairs(torch.zeros(2, 3))
    with pytest.raises(DiagnosticsError, match="not finite"):
        top_eigenpairs(torch.diag(torch.tensor([1.0, float("nan")])))
