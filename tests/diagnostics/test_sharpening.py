"""The slope of the sharpness, against dense eigenvalues of moved models and against short gradient flows."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from diagnostics import DiagnosticsError, Objective, sharpening_rate, sharpness
from tests.reference.edge_measures import Chain, Quadratic, dense_at, network, random_quadratic, sharpness_gradient


@pytest.mark.parametrize("u", [2.0, 3.0, 1.2])
def test_two_layers_at_a_minimum(u: float) -> None:
    """S = u² + v² along uv = 1, and no drift there."""
    v = 1 / u
    rate = sharpening_rate(Chain([u, v]).objective())
    S = u**2 + v**2
    assert float(rate.sharpness) == pytest.approx(S)
    assert float(rate.beta) == pytest.approx((2 * (u**2 - v**2)) ** 2 / S, rel=1e-6)
    assert abs(float(rate.alpha)) <= rate.alpha.error + 1e-12
    assert rate.gradient is not None
    along = torch.tensor([u, -v], dtype=torch.float64) / S**0.5
    assert float(rate.gradient @ along) == pytest.approx(2 * (u**2 - v**2) / S**0.5, rel=1e-6)


@pytest.mark.parametrize("norm", [True, False], ids=["layer norm", "plain"])
def test_against_the_dense_twin(norm: bool) -> None:
    """Where autograd's third derivative is wrong without a word, and where it is not."""
    model, data = network(norm=norm)
    loss = nn.CrossEntropyLoss()
    objective = Objective(model, loss, data)
    expected = sharpness_gradient(objective, model, loss, data)
    gradient, H = dense_at(model, loss, data)
    top = torch.linalg.eigh(H).eigenvectors[:, -1]
    across = expected - (expected @ top) * top
    rate = sharpening_rate(objective)
    assert rate.gradient is not None
    assert torch.allclose(rate.gradient, expected, rtol=1e-4, atol=1e-5)
    assert abs(float(rate.alpha) + float(gradient @ expected)) <= rate.alpha.error + 1e-6
    assert abs(float(rate.beta) - float(across @ across)) <= rate.beta.error + 1e-6 * float(rate.beta)
    assert rate.alpha.error < 1e-4 * float(gradient.norm() * expected.norm())


def test_in_single_precision_the_errors_cover() -> None:
    model, data = network()
    exact = sharpening_rate(Objective(model, nn.CrossEntropyLoss(), data))
    rounded = sharpening_rate(Objective(model.float(), nn.CrossEntropyLoss(), (data[0].float(), data[1])))
    for name in ("alpha", "beta"):
        one, other = getattr(exact, name), getattr(rounded, name)
        assert abs(one.value - other.value) <= other.error + one.error, name
    assert rounded.beta.error < 0.2 * float(rounded.beta)


def test_alpha_is_how_fast_the_sharpness_moves_under_a_small_step() -> None:
    model, data = network()
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    rate, before, gradient = sharpening_rate(objective), float(sharpness(objective, tol=1e-9).values[0]), None
    gradient = objective.gradient()
    lr = 1e-4
    with torch.no_grad():
        for tensor, part in zip(objective.space.tensors, objective.space.unflatten(gradient), strict=True):
            tensor -= lr * part
    after = float(sharpness(objective, tol=1e-9).values[0])
    assert (after - before) / lr == pytest.approx(float(rate.alpha), rel=2e-2)


def test_steps_to_the_edge_are_distance_over_speed() -> None:
    """With momentum the flow is ten times as fast, and its edge 1.9 times as far."""
    model = Chain([0.7, 0.8, 0.9])
    objective = model.objective()
    plain = sharpening_rate(objective)
    assert float(plain.alpha) > plain.alpha.error, "a product below one sharpens"
    S = float(plain.sharpness)
    lr = 2 / (S * 1.002)
    rate = sharpening_rate(objective, SGD(model.parameters(), lr=lr))
    assert rate.steps_to_edge is not None
    assert float(rate.steps_to_edge) == pytest.approx((2 / lr - S) / (lr * float(plain.alpha)), rel=1e-5)
    heavy = SGD(model.parameters(), lr=3.8 / (S * 1.002), momentum=0.9)
    with_momentum = sharpening_rate(objective, heavy).steps_to_edge
    assert with_momentum is not None
    assert float(with_momentum) == pytest.approx(float(rate.steps_to_edge) * (2 / 3.8) / 10, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda ps, S: Adam(ps, lr=0.1), "only for SGD"),
        (lambda ps, S: SGD(ps, lr=2.5 / S), "at or beyond"),
        (lambda ps, S: SGD(ps, lr=0.0), "learning rate is zero"),
        (lambda ps, S: SGD([{"params": ps, "lr": 0.1}, {"params": [nn.Parameter(torch.ones(1))]}], lr=0.2), "differ"),
    ],
)
def test_steps_that_cannot_be_told_say_why(make: object, said: str) -> None:
    objective = Chain([2.0, 0.6]).objective()
    S = float(sharpness(objective).values[0])
    rate = sharpening_rate(objective, make(list(objective.model.parameters()), S))
    assert rate.steps_to_edge is not None
    assert not rate.steps_to_edge.determined
    assert said in rate.steps_to_edge.how


def test_a_flattening_flow_never_reaches_the_edge() -> None:
    model = Chain([2.0, 0.6])
    objective = model.objective()
    rate = sharpening_rate(objective, SGD(model.parameters(), lr=0.01))
    assert float(rate.alpha) < 0
    assert rate.steps_to_edge is not None
    assert "does not rise" in rate.steps_to_edge.how


def test_two_equal_eigenvalues_have_no_slope() -> None:
    model = Quadratic(torch.diag(torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64)), torch.ones(3).double())
    rate = sharpening_rate(model.objective(), SGD(model.parameters(), lr=0.1))
    assert not rate.alpha.determined
    assert not rate.beta.determined
    assert rate.gradient is None
    assert "not simple" in rate.alpha.how
    assert "undetermined" in str(rate)


def test_a_quadratic_does_not_sharpen() -> None:
    rate = sharpening_rate(random_quadratic().objective())
    assert abs(float(rate.alpha)) <= rate.alpha.error + 1e-6
    assert abs(float(rate.beta)) < 1e-9


def test_one_parameter() -> None:
    """¼ w⁴: S = 3w², S' = 6w, and nothing across."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 2.0)
    objective = Objective.from_loss(model, lambda m, x: 0.25 * m(x).pow(4).mean(), [torch.ones(1, 1).double()])
    rate = sharpening_rate(objective)
    assert float(rate.sharpness) == pytest.approx(12.0)
    assert float(rate.alpha) == pytest.approx(-8 * 12.0, rel=1e-6)
    assert float(rate.beta) == pytest.approx(0.0, abs=1e-12)


def test_a_diverged_model_is_refused_and_the_healthy_one_is_left_alone() -> None:
    model, data = network()
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    before = [parameter.clone() for parameter in model.parameters()]
    sharpening_rate(objective)
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    with pytest.raises(DiagnosticsError, match="not finite"):
        sharpening_rate(objective)


def test_frozen_layers_are_left_out() -> None:
    model, data = network(norm=False)
    model[0].requires_grad_(False)
    loss = nn.CrossEntropyLoss()
    objective = Objective(model, loss, data)
    rate = sharpening_rate(objective)
    assert rate.gradient is not None
    assert torch.allclose(rate.gradient, sharpness_gradient(objective, model, loss, data), rtol=1e-4, atol=1e-5)
