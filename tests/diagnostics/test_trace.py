"""``trace``, ``frobenius_norm``, ``diagonal``: exact where they can be, unbiased with honest errors where not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diagnostics import DiagnosticsError, Estimate
from diagnostics.curvature import trace as module
from diagnostics.curvature.trace import diagonal, frobenius_norm, trace

SEEDS = 400
GENERATOR = torch.Generator().manual_seed(5)

Measure = Callable[..., Estimate]
MEASURES = {"trace": trace, "frobenius_norm": frobenius_norm}


def _rotated(values: Tensor) -> Tensor:
    basis = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=GENERATOR)).Q
    matrix = (basis * values.double()) @ basis.T
    return (matrix + matrix.T) / 2


def _truth(name: str, matrix: Tensor) -> float:
    return float(matrix.double().trace() if name == "trace" else matrix.double().norm())


MATRICES = {
    "uniform": _rotated(torch.linspace(-1, 1, 100)),
    "power law": _rotated(1 / torch.arange(1.0, 101.0)),
    "like a network": _rotated(
        torch.cat([torch.tensor([30.0, 20, 14, 9, 6]), torch.logspace(0, -4, 75), -0.3 * torch.logspace(0, -3, 20)])
    ),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("sketched", [True, False])
def test_coverage(measure: str, name: str, sketched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """95 % intervals of both methods over 400 seeds."""
    if not sketched:
        monkeypatch.setattr(module, "BASIS_BYTES", 0)
    matrix = MATRICES[name]
    truth, hits = _truth(measure, matrix), 0
    for seed in range(SEEDS):
        estimate = MEASURES[measure](matrix, matvecs=48, seed=seed)
        hits += abs(estimate.value - truth) <= 1.96 * estimate.error
    assert 0.925 <= hits / SEEDS <= 0.98
    assert ("Hutch++" if sketched else "Hutchinson") in estimate.how


@pytest.mark.parametrize("measure", MEASURES)
def test_the_sketch_pays_where_the_spectrum_falls(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = MATRICES["like a network"]
    sketched = MEASURES[measure](matrix)
    monkeypatch.setattr(module, "BASIS_BYTES", 0)
    assert sketched.error < 0.05 * MEASURES[measure](matrix).error


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("rank", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_low_rank_is_exact_to_rounding(measure: str, rank: int, dtype: torch.dtype) -> None:
    values = torch.cat([torch.arange(1.0, rank + 1), torch.zeros(80 - rank)])
    matrix = _rotated(values).to(dtype)
    estimate = MEASURES[measure](matrix)
    assert estimate.value == pytest.approx(_truth(measure, matrix), abs=100 * torch.finfo(dtype).eps)
    assert estimate.error <= 1e-4 * rank


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-12, 1e12, 1e20, 1e30])
@pytest.mark.parametrize("measure", MEASURES)
def test_scale_goes_through(measure: str, scale: float) -> None:
    matrix = MATRICES["uniform"].float()
    plain, scaled = MEASURES[measure](matrix), MEASURES[measure](scale * matrix)
    assert scaled.value == pytest.approx(scale * plain.value, rel=1e-3)
    assert scaled.error == pytest.approx(scale * plain.error, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e20, 1e30])
def test_scale_goes_through_the_diagonal(scale: float) -> None:
    matrix = MATRICES["uniform"].float()
    plain, scaled = diagonal(matrix, matvecs=40), diagonal(scale * matrix, matvecs=40)
    torch.testing.assert_close(scaled.values / scale, plain.values, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scaled.errors / scale, plain.errors, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("sketched", [True, False])
def test_a_default_device_and_autocast_change_nothing(
    measure: str, sketched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not sketched:
        monkeypatch.setattr(module, "BASIS_BYTES", 0)
    matrix = MATRICES["uniform"].float()
    expected = MEASURES[measure](matrix)
    with torch.device("meta"), torch.autocast("cpu"):
        assert MEASURES[measure](matrix) == expected


def test_an_interval_from_few_products_says_what_it_covers() -> None:
    """One eigenvalue that outweighs the rest: the docstring's figures, give or take three standard deviations."""
    matrix = _rotated(torch.cat([torch.tensor([50.0]), torch.ones(149)]))
    for budget, covers in ((8, 0.855), (24, 0.87)):
        hits = 0
        for seed in range(SEEDS):
            low, high = trace(matrix, matvecs=budget, seed=seed).interval()
            hits += low <= 199.0 <= high
        assert hits / SEEDS == pytest.approx(covers, abs=0.053)
        assert "few draws" in trace(matrix, matvecs=budget).how
    assert "few draws" not in trace(matrix, matvecs=59).how


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("size", [1, 2, 30, 64])
def test_exact_with_as_many_products_as_dimensions(measure: str, size: int) -> None:
    matrix = _rotated(torch.linspace(-2, 3, size))
    estimate = MEASURES[measure](matrix)
    assert estimate.value == pytest.approx(_truth(measure, matrix), rel=1e-12)
    assert (estimate.kind, estimate.error) == ("exact", 0.0)
    assert f"{size} products" in estimate.how


def test_the_budget_is_kept() -> None:
    class Counted:
        shape, dtype, device, taken = (100, 100), torch.float64, torch.device("cpu"), 0

        def __matmul__(self, vectors: Tensor) -> Tensor:
            self.taken += vectors.shape[1]
            return MATRICES["uniform"] @ vectors

    for budget in (4, 5, 31, 64, 99, 100, 1000):
        for measure in (trace, frobenius_norm, diagonal):
            operator = Counted()
            measure(operator, matvecs=budget)
            assert operator.taken == min(budget, 100)


def test_diagonal_errors_cover_entry_by_entry() -> None:
    matrix = MATRICES["power law"]
    covered = []
    for seed in range(40):
        result = diagonal(matrix, matvecs=24, seed=seed)
        covered.append(((result.values - matrix.diagonal()).abs() <= 1.96 * result.errors).double().mean())
    assert 0.93 <= float(torch.stack(covered).mean()) <= 0.97


def test_diagonal_errors_are_the_rows_without_the_diagonal() -> None:
    matrix = MATRICES["uniform"]
    errors = diagonal(matrix, matvecs=90).errors
    off = matrix - torch.diag(matrix.diagonal())
    torch.testing.assert_close(errors.mean(), (off.norm(dim=1) / math.sqrt(90)).mean(), rtol=0.05, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_diagonal_is_exact_for_diagonal_operators_and_full_budgets(dtype: torch.dtype) -> None:
    values = torch.linspace(-3, 5, 70, dtype=dtype)
    few = diagonal(torch.diag(values), matvecs=2)
    torch.testing.assert_close(few.values, values)
    assert (few.errors <= 1e-5 * values.abs() + 1e-6).all()
    matrix = MATRICES["uniform"].to(dtype)
    full = diagonal(matrix, matvecs=100)
    assert (full.kind, full.matvecs, float(full.errors.max())) == ("exact", 100, 0.0)
    torch.testing.assert_close(full.values, matrix.diagonal())
    assert full.values.dtype == dtype


def test_what_a_person_reads() -> None:
    text = str(diagonal(MATRICES["uniform"]))
    assert text.startswith("100 entries from ")
    assert "64 products" in text
    assert repr(diagonal(torch.eye(2))).startswith("Diagonal(2 entries from 1 to 1")


def test_seeds_repeat_differ_and_leave_the_callers_random_state() -> None:
    before = torch.get_rng_state()
    matrix = MATRICES["uniform"]
    assert trace(matrix, seed=1).value == trace(matrix, seed=1).value != trace(matrix, seed=2).value
    diagonal(matrix)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("measure", [trace, frobenius_norm, diagonal], ids=["trace", "frobenius_norm", "diagonal"])
def test_what_is_refused(measure: Callable[..., object]) -> None:
    with pytest.raises(DiagnosticsError, match="matvecs is out of range"):
        measure(torch.eye(10), matvecs=1)
    with pytest.raises(DiagnosticsError, match="matvecs is out of range"):
        measure(torch.eye(10), matvecs=8.0)
    with pytest.raises(DiagnosticsError, match="not square"):
        measure(torch.ones(3, 4))
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(DiagnosticsError, match="not real floating-point"):
            measure(torch.eye(10).to(dtype))
    broken = torch.eye(100)
    broken[3, 4] = math.nan
    for budget in (20, 200):
        with pytest.raises(DiagnosticsError, match="not finite"):
            measure(broken, matvecs=budget)
