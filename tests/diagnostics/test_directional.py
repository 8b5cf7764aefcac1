"""The quadratic model along a step, against dense matrices and against what the optimizers really do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, RMSprop

from diagnostics import DiagnosticsError, Hessian, Objective, directional_sharpness, stability
from tests.cases import CASES
from tests.cases.case import Case
from tests.reference.dense_hessian import dense_hessian
from tests.reference.edge_measures import dense_at, network, random_quadratic


def test_on_a_quadratic_every_number_is_exact_and_the_prediction_comes_true() -> None:
    model = random_quadratic()
    objective, H, theta = model.objective(), model.hessian, model.theta.detach()
    step = -0.3 * objective.gradient()
    measured = directional_sharpness(objective, step)
    assert float(measured.curvature) == pytest.approx(float(step @ H @ step / (step @ step)), rel=1e-12)
    assert float(measured.slope) == pytest.approx(float(step @ H @ theta), rel=1e-12)
    assert float(measured.ratio) == pytest.approx(float(step @ H @ step / (-2 * step @ H @ theta)), rel=1e-12)
    before = objective.loss()
    with torch.no_grad():
        model.theta += step
    assert objective.loss() - before == pytest.approx(float(measured.predicted_change), rel=1e-10)


def test_against_the_dense_hessian_of_a_network_with_layer_norm() -> None:
    model, data = network()
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    gradient, H = dense_at(model, nn.CrossEntropyLoss(), data)
    step = torch.randn(objective.num_parameters, dtype=torch.float64)
    step -= (0.5 + step @ gradient) * gradient / (gradient @ gradient)
    measured = directional_sharpness(objective, step, hessian=Hessian(objective))
    expected = {
        "curvature": step @ H @ step / (step @ step),
        "slope": gradient @ step,
        "ratio": step @ H @ step / (-2 * gradient @ step),
        "predicted_change": gradient @ step + 0.5 * step @ H @ step,
    }
    for name, value in expected.items():
        estimate = getattr(measured, name)
        assert abs(float(estimate) - float(value)) <= estimate.error + 1e-12, name
        assert estimate.error < 1e-10, name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_every_kind_of_model(case: Case) -> None:
    model, whole = case.build()
    H = dense_hessian(model, lambda: case.plain_loss(model, whole))
    objective = case.objective(ragged=True)
    step = torch.randn(objective.num_parameters, dtype=torch.float64)
    measured = directional_sharpness(objective, step)
    assert float(measured.curvature) == pytest.approx(
        float(step @ H @ step / (step @ step)), rel=10.0 ** -(case.digits - 3)
    )


def test_in_single_precision_the_error_covers_the_truth() -> None:
    exact_model, exact_data = network()
    step = torch.randn(objective_size := sum(p.numel() for p in exact_model.parameters()), dtype=torch.float64)
    assert objective_size > 10
    exact = directional_sharpness(Objective(exact_model, nn.CrossEntropyLoss(), exact_data), step * 1e-6)
    model, data = exact_model.float(), (exact_data[0].float(), exact_data[1])
    measured = directional_sharpness(Objective(model, nn.CrossEntropyLoss(), data), step.float() * 1e-6)
    for name in ("curvature", "slope", "predicted_change"):
        assert abs(float(getattr(measured, name)) - float(getattr(exact, name))) <= getattr(measured, name).error
    assert measured.curvature.error < 1e-3 * abs(float(measured.curvature))


@given(st.integers(0, 10_000), st.floats(0.01, 3.0), st.booleans())
def test_a_gradient_step_is_a_lower_bound_of_the_stability_ratio(seed: int, lr: float, definite: bool) -> None:
    """Δ = −ηP⁻¹g: a weighted mean of eigenvalues is below the largest one, with P the optimizer's own."""
    model = random_quadratic(5, seed, definite)
    objective = model.objective()
    plain = SGD(model.parameters(), lr=lr)
    step = -lr * objective.gradient()
    measured = directional_sharpness(objective, step)
    assert float(measured.ratio) <= float(stability(objective, plain, tol=1e-8).ratio) + 1e-7
    scaled = RMSprop(model.parameters(), lr=lr, eps=1e-3)
    moment = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 1e-3
    scaled.state[model.theta] = {"square_avg": moment, "step": torch.tensor(1.0)}
    step = -lr * objective.gradient() / (moment.sqrt() + 1e-3)
    measured = directional_sharpness(objective, step)
    assert float(measured.ratio) <= float(stability(objective, scaled, tol=1e-8).ratio) + 1e-7


def test_the_bound_is_reached_along_the_sharpest_direction() -> None:
    model = random_quadratic()
    values, vectors = torch.linalg.eigh(model.hessian)
    with torch.no_grad():
        model.theta.copy_(vectors[:, -1])
    step = -0.1 * model.objective().gradient()
    ratio = directional_sharpness(model.objective(), step).ratio
    assert float(ratio) == pytest.approx(0.05 * float(values[-1]), rel=1e-12)


def test_an_ascent_has_curvature_and_no_ratio() -> None:
    objective = random_quadratic().objective()
    measured = directional_sharpness(objective, objective.gradient())
    assert not measured.ratio.determined
    assert "not a descent direction" in measured.ratio.how
    assert "not a descent direction" in str(measured)
    assert measured.curvature.determined
    across = torch.randn(6, dtype=torch.float64)
    gradient = objective.gradient()
    across -= (across @ gradient) / (gradient @ gradient) * gradient
    assert "zero to rounding" in directional_sharpness(objective, across).ratio.how


@pytest.mark.parametrize(
    ("update", "said"),
    [
        (torch.ones(5), "does not fit"),
        (torch.ones(6, 1), "does not fit"),
        (torch.ones(6, dtype=torch.complex64), "does not fit"),
        ([1.0] * 6, "does not fit"),
        (torch.full((6,), torch.nan), "not finite"),
        (torch.zeros(6), "is zero"),
    ],
)
def test_what_is_no_update_is_refused(update: object, said: str) -> None:
    with pytest.raises(DiagnosticsError, match=f"update.*{said}"):
        directional_sharpness(random_quadratic().objective(), update)


def test_a_diverged_model_is_refused() -> None:
    model = random_quadratic()
    with torch.no_grad():
        model.theta.fill_(torch.nan)
    with pytest.raises(DiagnosticsError, match="not finite"):
        directional_sharpness(model.objective(), torch.ones(6, dtype=torch.float64))


def test_frozen_layers_are_left_out() -> None:
    model, data = network()
    model[0].requires_grad_(False)
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    gradient, H = dense_at(model, nn.CrossEntropyLoss(), data)
    measured = directional_sharpness(objective, -gradient)
    assert float(measured.curvature) == pytest.approx(float(gradient @ H @ gradient / (gradient @ gradient)), rel=1e-9)


def test_a_route_is_not_judged_by_its_product_along_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along a dense sign vector differences of gradients meet many kinks of a ReLU network, and a right product was
    refused for them.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    objective = Objective(model, nn.CrossEntropyLoss(), (torch.randn(32, 4), torch.randint(2, (32,))))
    update = -1e-3 * objective.gradient().sign()
    asked: list[torch.Tensor] = []
    plain = Hessian.__matmul__
    monkeypatch.setattr(Hessian, "__matmul__", lambda H, v: (asked.append(v), plain(H, v))[1])
    directional_sharpness(objective, update)
    directional_sharpness(objective, update)
    cosines = [float(torch.nn.functional.cosine_similarity(v.double(), update.double(), dim=0)) for v in asked]
    assert [abs(cosine) > 0.99 for cosine in cosines] == [False, True, True]
