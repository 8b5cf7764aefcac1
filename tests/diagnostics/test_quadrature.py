"""Gauss rules: equal to a slow twin, exact for the moments they promise, whole at every breakdown, and frugal."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from torch import Tensor

from diagnostics import DiagnosticsError
from diagnostics.curvature import quadrature
from diagnostics.curvature.draws import random_stream
from diagnostics.curvature.quadrature import GaussRules, gauss_rules
from diagnostics.curvature.sums import share_below
from tests.reference.quadrature import gauss_rule, largest_mass


class Recorder:
    """A matrix that keeps the vectors it was multiplied with, and the most columns at once."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.shape, self.dtype, self.device = matrix, tuple(matrix.shape), matrix.dtype, matrix.device
        self.given: list[Tensor] = []

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.given.append(vectors.clone())
        return self.matrix @ vectors


def _symmetric(size: int, seed: int = 5) -> Tensor:
    draw = torch.randn(size, size, dtype=torch.float64, generator=random_stream(seed))
    return (draw + draw.T) / math.sqrt(2 * size)


def _starts(matrix: Tensor, probes: int, seed: int = 0) -> Tensor:
    recorder = Recorder(matrix)
    gauss_rules(recorder, probes, 1, seed)
    return recorder.given[0].T


SPECTRA = {
    "semicircle": torch.linalg.eigvalsh(_symmetric(40)),
    "P below steps": torch.linspace(-1, 2, 7, dtype=torch.float64),
    "P = 1": torch.tensor([3.0], dtype=torch.float64),
    "three values, repeated": torch.tensor([0.0] * 20 + [1.0] * 5 + [-2.0] * 5, dtype=torch.float64),
    "identity": torch.ones(9, dtype=torch.float64),
    "zero": torch.zeros(9, dtype=torch.float64),
    "rank one": torch.tensor([4.0] + [0.0] * 11, dtype=torch.float64),
    "six decades": torch.logspace(-3, 3, 30, dtype=torch.float64),
    "tiny": 1e-150 * torch.linspace(1, 2, 20, dtype=torch.float64),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_same_as_one_probe_at_a_time(name: str) -> None:
    matrix, steps = torch.diag(SPECTRA[name]), 12
    rules = gauss_rules(matrix, 3, steps, seed=0)
    assert rules.nodes.shape == rules.weights.shape == rules.residuals.shape == (3, steps)
    scale = float(SPECTRA[name].abs().max()) or 1.0
    for row, start in enumerate(_starts(matrix, 3)):
        nodes, weights, residuals = gauss_rule(matrix.numpy(), start.numpy(), steps)
        seen = len(nodes)
        numpy.testing.assert_allclose(rules.nodes[row, :seen], nodes, rtol=0, atol=1e-10 * scale)
        numpy.testing.assert_allclose(rules.weights[row, :seen], weights, rtol=0, atol=1e-10)
        numpy.testing.assert_allclose(rules.residuals[row, :seen], residuals, rtol=0, atol=1e-10 * scale)
        # What is missing weighs nothing, and is no new extreme.
        assert (rules.weights[row, seen:] == 0).all()
        assert (rules.nodes[row, seen:] == rules.nodes[row, seen - 1]).all()


@pytest.mark.parametrize("max_basis", [None, 20, 5], ids=["all at once", "in turns", "three terms"])
def test_exact_for_moments_below_twice_the_steps(max_basis: int | None) -> None:
    matrix, steps = _symmetric(60), 9
    rules = gauss_rules(matrix, 3, steps, seed=1, max_basis=max_basis)
    assert rules.orthogonal == (max_basis != 5)
    starts = _starts(matrix, 3, seed=1)
    for power in range(2 * steps):
        direct = [float(start @ torch.linalg.matrix_power(matrix, power) @ start) for start in starts]
        moments = (rules.weights * rules.nodes**power).sum(dim=1)
        torch.testing.assert_close(moments, torch.tensor(direct, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_residuals_bound_the_distance_to_an_eigenvalue() -> None:
    matrix = _symmetric(80)
    rules = gauss_rules(matrix, 4, 25, seed=0)
    distances = (rules.nodes.unsqueeze(2) - torch.linalg.eigvalsh(matrix)).abs().amin(dim=2)
    assert (distances <= rules.residuals + 1e-12).all()


def test_taking_turns_changes_nothing() -> None:
    matrix = _symmetric(50)
    together = gauss_rules(matrix, 5, 10, seed=0)
    recorder = Recorder(matrix)
    apart = gauss_rules(recorder, 5, 10, seed=0, max_basis=20)
    assert {given.shape[1] for given in recorder.given} == {2, 1}
    torch.testing.assert_close(together.nodes, apart.nodes)
    torch.testing.assert_close(together.weights, apart.weights)


def test_without_a_basis_one_probe_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens where not even one basis fits: decided by the size of a vector alone."""
    monkeypatch.setattr(quadrature, "BASIS_BYTES", 50 * 8 * 7)
    recorder = Recorder(_symmetric(50))
    rules = gauss_rules(recorder, 3, 8, seed=0)
    assert not rules.orthogonal
    assert {given.shape[1] for given in recorder.given} == {1}
    torch.testing.assert_close(rules.nodes, gauss_rules(recorder.matrix, 3, 8, seed=0, max_basis=100).nodes)


def test_chains_that_have_all_ended_take_no_more_products() -> None:
    rules = gauss_rules(torch.eye(500), 4, 64, seed=0)
    assert rules.matvecs == 4


def test_single_precision_products_are_enough() -> None:
    """The same rule as the twin in double precision from the same start, to single precision."""
    matrix = _symmetric(90)
    rules = gauss_rules(matrix.float(), 2, 15, seed=0)
    assert rules.nodes.dtype == torch.float64
    for row, start in enumerate(_starts(matrix.float(), 2)):
        nodes, weights, _ = gauss_rule(matrix.numpy(), start.double().numpy(), 15)
        numpy.testing.assert_allclose(rules.nodes[row], nodes, rtol=0, atol=2e-5)
        numpy.testing.assert_allclose(rules.weights[row], weights, rtol=0, atol=2e-5)


def test_lengths_and_products_of_long_vectors() -> None:
    """Sums in pieces, with a remainder, in single precision."""
    rows = torch.rand(3, quadrature.PIECE["cpu"] * 5 // 3 + 17, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(quadrature.lengths(rows).float(), rows.double().norm(dim=1).float(), rtol=2e-7, atol=0)
    expected = torch.dot(rows[0].double(), rows[1].double()).float()
    torch.testing.assert_close(quadrature.inner(rows[0], rows[1]).float(), expected, rtol=2e-7, atol=0)


def test_probes_are_not_the_callers_own_numbers() -> None:
    mine = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    theirs = torch.randn(1000, generator=random_stream(0))
    assert abs(float(torch.corrcoef(torch.stack([mine, theirs]))[0, 1])) < 0.1


def test_the_callers_random_state_stays() -> None:
    before = torch.get_rng_state()
    gauss_rules(torch.eye(4), 2, 2, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_an_operator_may_hand_back_what_it_was_given() -> None:
    class Identity:
        shape, dtype, device = (6, 6), torch.float64, torch.device("cpu")

        def __matmul__(self, vectors: Tensor) -> Tensor:
            return vectors

    for max_basis in (None, 1):
        rules = gauss_rules(Identity(), 2, 4, seed=0, max_basis=max_basis)
        torch.testing.assert_close(rules.nodes, torch.ones(2, 4, dtype=torch.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("max_basis", [None, 1])
def test_a_product_that_is_not_finite_is_refused(bad: float, max_basis: int | None) -> None:
    matrix = torch.eye(5)
    matrix[2, 3] = bad
    with pytest.raises(DiagnosticsError, match="not finite"):
        gauss_rules(matrix, 2, 4, seed=0, max_basis=max_basis)


def test_progress_ends_at_one() -> None:
    seen: list[float] = []
    gauss_rules(_symmetric(30), 3, 5, seed=0, max_basis=10, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.parametrize("x", [-1.5, -0.31, 0.0, 0.9, 1.999])
def test_the_share_below_a_threshold_is_bracketed(x: float) -> None:
    """Each probe's true mass below x lies in the bracket, whose width is the Christoffel function."""
    matrix = _symmetric(70)
    rules = gauss_rules(matrix, 4, 10, seed=2)
    shares, halves = share_below(rules, x)
    values, vectors = torch.linalg.eigh(matrix)
    for row, start in enumerate(_starts(matrix, 4, seed=2)):
        true = float(((vectors.T @ start) ** 2)[values < x].sum())
        assert abs(true - float(shares[row])) <= float(halves[row]) + 1e-12
        width = largest_mass(*(part[row].numpy() for part in (rules.nodes, rules.weights, rules.residuals)), x)
        assert 2 * float(halves[row]) == pytest.approx(width, rel=1e-6)


def test_a_share_is_exact_in_a_gap_and_at_a_node() -> None:
    values = torch.cat([torch.linspace(0, 1, 50), torch.linspace(5, 6, 50)]).double()
    rules = gauss_rules(torch.diag(values), 2, 24, seed=0)
    shares, halves = share_below(rules, 3.0)
    true = (_starts(torch.diag(values), 2) ** 2)[:, :50].sum(dim=1)
    torch.testing.assert_close(shares, true, rtol=0, atol=1e-8)
    assert (halves < 1e-8).all()
    node = GaussRules(*(part[:1] for part in (rules.nodes, rules.weights, rules.residuals)), 0, True)
    share, half = share_below(node, float(node.nodes[0, 10]))
    assert float(share + half) == pytest.approx(float(node.weights[0, :11].sum()), abs=1e-5)
    assert float(share - half) == pytest.approx(float(node.weights[0, :10].sum()), abs=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-22, 1e20, 1e30])
@pytest.mark.parametrize("max_basis", [None, 1])
def test_single_precision_at_any_scale(scale: float, max_basis: int | None) -> None:
    """Squares of norms leave the range of single precision long before norms do."""
    matrix = _symmetric(60).float()
    plain, scaled = (gauss_rules(factor * matrix, 3, 20, 0, max_basis) for factor in (1.0, scale))
    assert scaled.matvecs == plain.matvecs
    torch.testing.assert_close(scaled.nodes / scale, plain.nodes, rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.weights, plain.weights, rtol=0, atol=1e-3)


def test_a_default_device_and_autocast_change_nothing() -> None:
    matrix = _symmetric(60).float()
    for max_basis in (None, 1):
        expected = gauss_rules(matrix, 3, 20, 0, max_basis)
        with torch.device("meta"), torch.autocast("cpu"):
            assert torch.equal(gauss_rules(matrix, 3, 20, 0, max_basis).nodes, expected.nodes)
