"""Where the gradient points, against diagonal quadratics and dense eigenvectors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, Hessian, Objective, gradient_curvature
from tests.reference.edge_measures import Quadratic, dense_at, network


def _diagonal(values: list[float], gradient: list[float]) -> Objective:
    h, g = torch.tensor(values, dtype=torch.float64), torch.tensor(gradient, dtype=torch.float64)
    return Quadratic(torch.diag(h), g / h).objective()


def test_a_diagonal_quadratic_is_exact() -> None:
    g = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    h = torch.tensor([10.0, 5.0, 1.0, -2.0], dtype=torch.float64)
    square = g.square()
    for k in range(5):
        measured = gradient_curvature(_diagonal(h.tolist(), g.tolist()), k)
        assert float(measured.norm) == pytest.approx(float(g.norm()))
        assert float(measured.curvature) == pytest.approx(float((h * square).sum() / square.sum()))
        assert float(measured.alignment) == pytest.approx(float((h * square).sum() / g.norm() / (h * g).norm()))
        if k == 0:
            assert measured.subspace_share is None
            assert measured.sharpest_share is None
        else:
            assert measured.subspace_share is not None
            assert measured.sharpest_share is not None
            assert float(measured.subspace_share) == pytest.approx(float(square[:k].sum() / square.sum()), abs=1e-6)
            assert float(measured.sharpest_share) == pytest.approx(float(g[0].abs() / g.norm()), abs=1e-6)


def test_shares_of_a_network_are_those_of_dense_eigenvectors_within_the_error() -> None:
    model, data = network()
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    gradient, H = dense_at(model, nn.CrossEntropyLoss(), data)
    _, vectors = torch.linalg.eigh(H)
    cosines = (vectors.flip(1).T @ gradient / gradient.norm()).abs()
    for tol in (1e-1, 1e-2, 1e-6):
        for k in (1, 3, 6):
            measured = gradient_curvature(objective, k, hessian=Hessian(objective), tol=tol)
            share, first = measured.subspace_share, measured.sharpest_share
            assert share is not None
            assert first is not None
            assert abs(float(share) - float(cosines[:k].square().sum())) <= share.error + 1e-9
            assert abs(float(first) - float(cosines[0])) <= first.error + 1e-9
            assert tol > 1e-6 or share.error < 1e-4
    assert float(measured.curvature) == pytest.approx(float(gradient @ H @ gradient / (gradient @ gradient)))


def test_a_space_that_is_not_defined_has_an_error_that_says_so() -> None:
    """Two equal eigenvalues with k between them: which of the two directions is taken is chance."""
    measured = gradient_curvature(_diagonal([3.0, 3.0, 1.0], [1.0, 2.0, 0.5]), k=1)
    assert measured.subspace_share is not None
    low, high = measured.subspace_share.interval()
    assert low <= 0.0 or high >= 1.0
    healthy = gradient_curvature(_diagonal([3.0, 3.0, 1.0], [1.0, 2.0, 0.5]), k=2)
    assert healthy.subspace_share is not None
    assert healthy.subspace_share.error < 0.05
    assert float(healthy.subspace_share) == pytest.approx(5 / 5.25, abs=1e-6)


def test_the_error_covers_over_many_gradients_and_is_no_excuse() -> None:
    """Random diagonals with small gaps at a loose tolerance: never outside, and mostly far from vacuous."""
    widths = []
    for seed in range(60):
        stream = torch.Generator().manual_seed(seed)
        h = torch.rand(40, dtype=torch.float64, generator=stream).sort(descending=True).values + 0.1
        g = torch.randn(40, dtype=torch.float64, generator=stream) * h**2
        share = gradient_curvature(_diagonal(h.tolist(), g.tolist()), 4, tol=1e-2, seed=seed).subspace_share
        assert share is not None
        assert abs(float(share) - float(g[:4].square().sum() / g.square().sum())) <= share.error + 1e-12
        widths.append(share.error)
    assert sorted(widths)[30] < 0.5


def test_alignment_is_one_for_an_eigenvector_and_minus_one_downwards() -> None:
    assert float(gradient_curvature(_diagonal([4.0, 1.0], [2.0, 0.0])).alignment) == pytest.approx(1.0)
    assert float(gradient_curvature(_diagonal([4.0, -1.0], [0.0, 2.0])).alignment) == pytest.approx(-1.0)


def test_the_error_covers_single_precision() -> None:
    model, data = network()
    exact = gradient_curvature(Objective(model, nn.CrossEntropyLoss(), data), 2, tol=1e-9)
    rounded = gradient_curvature(
        Objective(model.float(), nn.CrossEntropyLoss(), (data[0].float(), data[1])), 2, tol=1e-4
    )
    for name in ("norm", "curvature", "alignment", "subspace_share", "sharpest_share"):
        one, other = getattr(exact, name), getattr(rounded, name)
        assert abs(one.value - other.value) <= other.error + one.error, name
        assert other.error < 1e-2


@pytest.mark.parametrize("seed", range(5))
def test_after_a_good_fit_the_error_is_that_of_small_differences(seed: int) -> None:
    """A gradient of 1e-6 from outputs of 1: in single precision its direction is off by far more than 1e-7."""
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 60, generator=stream) * torch.linspace(0.1, 3, 60)
    weight = torch.randn(1, 60, generator=stream)
    y = (x.double() @ (weight.double() + 1e-6 * torch.randn(1, 60, dtype=torch.float64, generator=stream)).T).float()
    measured = []
    for dtype in (torch.float64, torch.float32):
        model = nn.Linear(60, 1, bias=False).to(dtype)
        model.weight.data.copy_(weight)
        measured.append(gradient_curvature(Objective(model, nn.MSELoss(), (x.to(dtype), y.to(dtype))), 3))
    exact, rounded = measured
    for name in ("norm", "curvature", "alignment", "subspace_share", "sharpest_share"):
        one, other = getattr(exact, name), getattr(rounded, name)
        assert abs(one.value - other.value) <= other.error + one.error, name
    off = abs(exact.curvature.value - rounded.curvature.value)
    assert off > 30 * 1e-7 * exact.curvature.value, "rounding of the product alone would not cover this"
    assert rounded.norm.error < 0.5 * rounded.norm.value


def test_no_gradient_has_no_direction() -> None:
    measured = gradient_curvature(_diagonal([4.0, 1.0], [0.0, 0.0]), k=1)
    assert float(measured.norm) == 0.0
    for estimate in (measured.curvature, measured.alignment, measured.subspace_share, measured.sharpest_share):
        assert estimate is not None
        assert not estimate.determined
        assert "gradient is zero" in estimate.how


def test_a_plane_has_no_alignment() -> None:
    model = nn.Linear(3, 1).double()
    data = [torch.randn(4, 3, dtype=torch.float64)]
    measured = gradient_curvature(Objective.from_loss(model, lambda m, x: m(x).mean(), data))
    assert float(measured.curvature) == 0.0
    assert "Hg is zero" in measured.alignment.how


@pytest.mark.parametrize("k", [-1, 3, 1.5, True])
def test_k_out_of_range_is_refused(k: object) -> None:
    with pytest.raises(DiagnosticsError, match="k is out of range"):
        gradient_curvature(_diagonal([4.0, 1.0], [1.0, 1.0]), k)


def test_a_diverged_model_is_refused() -> None:
    with pytest.raises(DiagnosticsError, match="not finite"):
        gradient_curvature(_diagonal([4.0, 1.0], [torch.nan, 1.0]))


def test_frozen_layers_are_left_out() -> None:
    model, data = network()
    model[0].requires_grad_(False)
    gradient, H = dense_at(model, nn.CrossEntropyLoss(), data)
    measured = gradient_curvature(Objective(model, nn.CrossEntropyLoss(), data))
    assert float(measured.curvature) == pytest.approx(float(gradient @ H @ gradient / (gradient @ gradient)))
    assert "cos(g, Hg)" in str(measured)
