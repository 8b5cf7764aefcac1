"""The end of gradient flow, where it is known: scalar networks with their conserved differences of squares."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from diagnostics import DiagnosticsError, Hessian, HessianAt, Objective, gradient_flow_sharpness, sharpness
from tests.reference.dense_hessian import dense_hessian
from tests.reference.edge_measures import Chain, network, random_quadratic


def _phi(weights: torch.Tensor) -> float:
    """Σ 1/w_i² where the flow ends: w_i² − w_j² stays as it is, and Π w = 1."""
    squares = weights.detach().square().numpy()
    rest = squares - squares.min()
    shift = brentq(lambda c: numpy.log(rest + c).sum(), 1e-12, 1e3, xtol=1e-14)
    return float((1 / (rest + shift)).sum())


@pytest.mark.parametrize("weights", [[3.0, 0.5], [2.0, 1.0, 0.2], [1.5, 1.4, 0.6, 1.2], [0.4, 0.5, 0.6]])
def test_a_scalar_network_ends_where_its_conserved_quantities_say(weights: list[float]) -> None:
    model = Chain(weights)
    end = gradient_flow_sharpness(model.objective())
    expected = _phi(model.weights)
    assert end.converged
    assert abs(float(end.sharpness) - expected) <= end.sharpness.error
    assert end.sharpness.error < 0.02 * expected
    assert end.fall <= 1.05e-3
    assert end.loss < 1e-5


def test_a_deep_linear_chain_that_is_balanced_stays_so() -> None:
    """Three layers from product ½ to 2: λmax = L s^(2−2/L)."""
    chain = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(3))).double()
    for layer in chain:
        nn.init.constant_(layer.weight, 0.5 ** (1 / 3))
    x = torch.ones(4, 1, dtype=torch.float64)
    objective = Objective(chain, lambda outputs, targets: 0.5 * (outputs - targets).square().mean(), (x, 2 * x))
    end = gradient_flow_sharpness(objective, fall=1e-5, rtol=1e-5)
    assert float(end.sharpness) == pytest.approx(3 * 2 ** (4 / 3), rel=1e-4)
    assert abs(float(end.sharpness) - 3 * 2 ** (4 / 3)) <= end.sharpness.error


def test_it_falls_along_gradient_descent_at_the_edge_while_sharpness_does_not() -> None:
    model = Chain([2.6, 0.9, 0.5, 0.75])
    objective, lr = model.objective(), 0.33
    phis, sharp = [], []
    for _ in range(12):
        end = gradient_flow_sharpness(objective, fall=1e-4, rtol=1e-4)
        assert end.converged
        phis.append(end.sharpness)
        sharp.append(float(end.start))
        with torch.no_grad():
            model.weights -= lr * objective.gradient()
    assert max(sharp) > 2 / lr, "this run is at the edge"
    assert any(after > before * 1.01 for before, after in pairwise(sharp))
    for before, after in pairwise(phis):
        assert float(after) <= float(before) + before.error + after.error
    assert float(phis[-1]) < 0.98 * float(phis[0])


def test_on_a_quadratic_the_curvature_is_the_same_everywhere() -> None:
    model = random_quadratic()
    end = gradient_flow_sharpness(model.objective())
    assert end.converged
    assert float(end.sharpness) == pytest.approx(float(torch.linalg.eigvalsh(model.hessian)[-1]), rel=1e-6)


def test_too_few_gradients_are_no_result() -> None:
    end = gradient_flow_sharpness(Chain([2.0, 1.0, 0.2]).objective(), max_gradients=75)
    assert not end.converged
    assert end.sharpness.error == math.inf
    assert "NOT CONVERGED" in str(end)
    assert "was asked for" in end.sharpness.how
    assert end.gradients <= 75


def test_where_there_is_no_minimum_the_error_is_as_large_as_the_value() -> None:
    """Cross-entropy on separable data: curvature goes to zero with the loss, for ever."""
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    objective = Objective(nn.Linear(1, 2, bias=False).double(), nn.CrossEntropyLoss(), (x, torch.tensor([0, 1])))
    end = gradient_flow_sharpness(objective)
    assert end.sharpness.error > 0.9 * float(end.sharpness)


def test_at_a_minimum_the_flow_stays() -> None:
    end = gradient_flow_sharpness(Chain([2.0, 0.5]).objective())
    assert float(end.sharpness) == pytest.approx(4.25)
    assert (end.converged, end.distance, end.gradients) == (True, 0.0, 0)
    assert "gradient is zero" in end.sharpness.how


@pytest.mark.parametrize("settings", [{"fall": 0.0}, {"fall": 0.5}, {"rtol": -1.0}, {"max_gradients": 3}])
def test_bad_arguments_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(DiagnosticsError, match=next(iter(settings))):
        gradient_flow_sharpness(Chain([2.0, 1.0]).objective(), **settings)


def test_a_diverged_model_is_refused() -> None:
    with pytest.raises(DiagnosticsError, match="not finite"):
        gradient_flow_sharpness(Chain([math.nan, 1.0]).objective())


def test_a_small_network_in_single_precision_keeps_its_parameters() -> None:
    model, data = network(torch.float32, norm=False)
    targets = torch.nn.functional.one_hot(data[1], 3).float()
    objective = Objective(model, nn.MSELoss(), (data[0], targets))
    before = [parameter.clone() for parameter in model.parameters()]
    end = gradient_flow_sharpness(objective, fall=3e-2, rtol=1e-2, max_gradients=3000)
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
    assert float(end.start) == pytest.approx(float(sharpness(objective).values[0]), rel=1e-4)
    assert end.loss < objective.loss()
    assert end.distance > 0


def test_the_hessian_elsewhere_is_the_one_of_a_model_that_was_moved_there() -> None:
    model, data = network()
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    elsewhere = [value + 0.3 * torch.randn_like(value) for value in objective.space.values()]
    there, here = HessianAt(objective, elsewhere), Hessian(objective)
    vector = torch.randn(objective.num_parameters, dtype=torch.float64)
    product, unmoved = there @ vector, here @ vector
    assert torch.equal(unmoved, Hessian(objective) @ vector)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), elsewhere, strict=True):
            parameter.copy_(value)
    dense = dense_hessian(model, lambda: nn.functional.cross_entropy(model(data[0]), data[1]))
    assert torch.allclose(product, dense @ vector, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(product, unmoved, rtol=1e-2)
