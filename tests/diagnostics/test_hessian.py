"""The Hessian operator is the dense Hessian, on every model, by every route, and stays where it was made."""

from __future__ import annotations

import gc
import weakref

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh
from torch import nn

from diagnostics import DiagnosticsError, Hessian, Objective, Preconditioned
from tests.cases import CASES, WHOLE_BATCH_CASES, Case, mlp
from tests.reference.dense_hessian import dense_hessian, differenced_hessian


def _dense(case: Case) -> torch.Tensor:
    model, whole = case.build()
    return dense_hessian(model, lambda: case.plain_loss(model, whole))


def _directions(rows: int, columns: int = 3) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _relative(given: torch.Tensor, expected: torch.Tensor) -> float:
    return float((given - expected).norm() / expected.norm())


@pytest.mark.parametrize("case", WHOLE_BATCH_CASES, ids=str)
def test_double_backward_is_the_dense_hessian(case: Case) -> None:
    H, dense = Hessian(case.objective()), _dense(case)
    V = _directions(len(dense))
    assert _relative(H @ V, dense @ V) < 0.1**case.digits
    assert H.route == "double backward, kept graph"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ragged_batches_have_the_hessian_of_the_whole(case: Case) -> None:
    H, dense = Hessian(case.objective(ragged=True)), _dense(case)
    V = _directions(len(dense), 1)
    assert _relative(H @ V, dense @ V) < 0.1**case.digits
    assert H.route == "double backward, 3 kept graphs"


@pytest.mark.parametrize("case", WHOLE_BATCH_CASES, ids=str)
def test_central_differences_agree_and_say_how_well(case: Case) -> None:
    H, dense = Hessian(case.objective(), route="central differences"), _dense(case)
    V = _directions(len(dense), 2)
    # What is computed in float32 inside a float64 model is rounded far above the step of the differences.
    tolerance = 1e-5 if case.digits == 10 else 0.3
    assert _relative(H @ V, dense @ V) < tolerance
    assert H.route == "central differences"
    assert H.product_error < tolerance


@pytest.mark.parametrize("name", ["layer norm, label smoothing", "cnn, batch norm train", "bert", "lstm"])
def test_the_twin_itself_agrees_with_differences_of_first_gradients(name: str) -> None:
    """Else both could share one wrong second derivative in torch."""
    case = next(case for case in WHOLE_BATCH_CASES if case.name == name)
    model, whole = case.build()
    assert _relative(differenced_hessian(model, lambda: case.plain_loss(model, whole)), _dense(case)) < 1e-6


def test_scipy_finds_the_extreme_eigenvalues_of_the_dense_matrix() -> None:
    case = CASES[5]
    dense = numpy.linalg.eigvalsh(_dense(case).numpy())
    operator = Hessian(case.objective()).to_scipy()
    start = numpy.ones(len(dense))
    both = eigsh(operator, k=4, which="BE", v0=start, return_eigenvectors=False)
    numpy.testing.assert_allclose(sorted(both), [*dense[:2], *dense[-2:]], atol=1e-9)
    assert operator.dtype == numpy.float64


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(-10, 10), st.floats(-10, 10))
def test_products_are_linear_and_symmetric(seed: int, a: float, b: float) -> None:
    H = Hessian(CASES[1].objective())
    u, v = torch.randn(2, H.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(H @ (a * u + b * v), a * (H @ u) + b * (H @ v), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.dot(u, H @ v), torch.dot(v, H @ u), rtol=1e-9, atol=1e-9)


def test_rows_of_an_unused_parameter_are_zero() -> None:
    objective = next(case for case in CASES if case.name == "unused parameter").objective()
    H = Hessian(objective)
    product = dict(zip(objective.space.names, objective.space.unflatten(H @ torch.ones(H.shape[0])), strict=True))
    assert float(product["unused.weight"].norm()) == float(product["unused.bias"].norm()) == 0.0
    assert float(product["used.weight"].norm()) > 0.0


@pytest.mark.parametrize("route", [None, "double backward", "central differences"])
def test_a_loss_linear_in_its_parameters_has_no_curvature(route: str | None) -> None:
    objective = Objective.from_loss(nn.Linear(3, 2).double(), lambda m, x: m(x).mean(), [_directions(4)])
    assert float((Hessian(objective, route=route) @ torch.ones(8)).abs().max()) < 1e-9


def test_dropout_in_train_mode_gives_one_fixed_symmetric_operator() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    batches = [(_directions(4), _directions(4, 2)), (_directions(6), _directions(6, 2))]
    H = Hessian(Objective(model, nn.MSELoss(), batches, mode="train"))
    u, v = _directions(H.shape[0], 2).unbind(1)
    first = H @ v
    torch.rand(3)
    assert torch.equal(H @ v, first)
    torch.testing.assert_close(torch.dot(u, first), torch.dot(v, H @ u), rtol=1e-12, atol=1e-12)
    slope = Hessian(H.objective, route="central differences") @ v
    assert _relative(slope, first) < 1e-5


def test_training_on_does_not_move_an_operator_already_made() -> None:
    for objective in (CASES[0].objective(), CASES[0].objective(ragged=True)):
        v = torch.ones(objective.num_parameters, dtype=torch.float64)
        for route in ("double backward", "central differences"):
            untouched, H = Hessian(objective, route=route) @ v, Hessian(objective, route=route)
            with torch.no_grad():
                for parameter in objective.model.parameters():
                    parameter.mul_(1.5)
            assert torch.equal(H @ v, untouched)
            assert _relative(Hessian(objective, route=route) @ v, untouched) > 1e-3


@pytest.mark.parametrize("change", ["running_mean", "frozen"])
def test_it_refuses_when_what_it_rests_on_has_changed(change: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    H = Hessian(Objective(model, nn.MSELoss(), (torch.randn(5, 3), torch.randn(5, 2))))
    v = torch.ones(H.shape[0])
    H @ v
    with torch.no_grad():
        (model[1].running_mean if change == "running_mean" else model[0].weight).add_(1.0)
    with pytest.raises(DiagnosticsError, match=r"has changed since.*Hessian\(objective\) anew"):
        H @ v


def test_a_product_that_is_not_finite_is_refused() -> None:
    model = nn.Linear(3, 2)
    H = Hessian(Objective(model, nn.MSELoss(), (torch.full((4, 3), 1e30), torch.zeros(4, 2))))
    with pytest.raises(DiagnosticsError, match=r"not finite.*of 8 entries.*objective.loss\(\)"):
        H @ torch.ones(8)


def test_nothing_is_left_on_the_model_and_the_graph_dies_with_the_operator() -> None:
    objective = CASES[0].objective()
    H = Hessian(objective)
    H @ torch.ones(H.shape[0], dtype=torch.float64)
    kept = H._route._sweep._kept[0]
    watched = [weakref.ref(tensor) for tensor in (*kept._leaves, *kept._gradients)]
    gc.disable()
    try:
        del H, kept
        assert [ref() for ref in watched] == [None] * len(watched), "freed at once, without the garbage collector"
    finally:
        gc.enable()
    assert all(parameter.grad is None for parameter in objective.model.parameters())


def test_shapes_counts_and_refusals() -> None:
    H = Hessian(CASES[0].objective())
    V = _directions(32, 3)
    torch.testing.assert_close(H @ V, torch.stack([H @ column for column in V.T], dim=1))
    assert (H.matvecs, H.shape, H.dtype) == (6, (32, 32), torch.float64)
    assert (H @ V.float()).dtype == torch.float64
    assert (H @ V[:, :0]).shape == (32, 0)
    for wrong in (V[:5], V[None], V.numpy()):
        with pytest.raises(DiagnosticsError, match=r"Hessian @ v does not fit.*\(32,\) or \(32, K\)"):
            H @ wrong
    with pytest.raises(DiagnosticsError, match=r"route is unknown.*'jvp'.*'double backward'"):
        Hessian(H.objective, route="jvp")


def test_preconditioned_is_the_dense_product_with_scale_and_shift() -> None:
    case = CASES[2]
    dense = _dense(case)
    scale, shift = _directions(len(dense), 2).abs().unbind(1)
    expected = scale[:, None] * (dense + torch.diag(shift)) * scale
    A, V = Preconditioned(Hessian(case.objective()), scale, shift), _directions(len(dense))
    assert _relative(A @ V, expected @ V) < 1e-12
    with pytest.raises(DiagnosticsError, match=r"shift does not fit.*shape \(3,\)"):
        Preconditioned(A, scale, shift[:3])


def test_a_batch_of_examples_the_size_of_one_parameter_is_no_special_case() -> None:
    """P = 1: a scalar parameter, a Hessian of one entry."""
    model = nn.Linear(1, 1, bias=False).double()
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    H = Hessian(Objective(model, nn.MSELoss(), (x, x)))
    assert float(H @ torch.ones(1)) == pytest.approx(5.0)
    assert mlp()[0].weight.shape == (5, 3)
