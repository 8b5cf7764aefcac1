"""The rise of the loss nearby: one step in closed form, several against the true maximum in the ball."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, Objective, ascent_sharpness
from tests.reference.edge_measures import largest_in_ball, network, random_quadratic


def test_one_step_on_a_quadratic() -> None:
    model = random_quadratic()
    gradient, H = model.objective().gradient(), model.hessian
    measured = ascent_sharpness(model.objective(), rho=0.3)
    unit = gradient / gradient.norm()
    assert float(measured.value) == pytest.approx(float(0.3 * gradient.norm() + 0.045 * unit @ H @ unit), rel=1e-10)
    assert float(measured.first_order) == pytest.approx(0.3 * float(gradient.norm()), rel=1e-12)
    assert measured.gradients == 1
    assert "lower bound" in measured.value.how


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("definite", [True, False])
def test_several_steps_climb_towards_the_maximum_and_never_above(seed: int, definite: bool) -> None:
    model = random_quadratic(6, seed, definite)
    objective, rho = model.objective(), 2.0
    truth = largest_in_ball(model.hessian, objective.gradient(), rho)
    one, many = (float(ascent_sharpness(objective, rho, steps=steps).value) for steps in (1, 40))
    assert one <= many + 1e-12
    assert many <= truth + 1e-9
    assert many >= 0.99 * truth


def test_more_steps_are_never_worse_on_a_network() -> None:
    model, data = network()
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    rises = [float(ascent_sharpness(objective, 0.5, steps=steps).value) for steps in (1, 2, 4, 8)]
    assert rises == sorted(rises)
    assert rises[-1] > rises[0]


def test_adaptive_does_not_see_the_scale_of_layers_and_plain_does() -> None:
    """Multiplying one layer of a linear network and dividing the next leaves the function, and ASAM, as they are."""
    x, y = torch.randn(10, 3, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)
    seen = {}
    for scale in (1.0, 7.0):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
        with torch.no_grad():
            model[0].weight.mul_(scale)
            model[2].weight.div_(scale)
        objective = Objective(model, nn.MSELoss(), (x, y))
        for adaptive in (True, False):
            for steps in (1, 3):
                seen[scale, adaptive, steps] = float(
                    ascent_sharpness(objective, 0.1, steps=steps, adaptive=adaptive).value
                )
    for steps in (1, 3):
        assert seen[1.0, True, steps] == pytest.approx(seen[7.0, True, steps], rel=1e-9)
        assert abs(seen[1.0, False, steps] / seen[7.0, False, steps] - 1) > 0.1


def test_adaptive_first_step_in_closed_form() -> None:
    model = random_quadratic()
    gradient, theta = model.objective().gradient(), model.theta.detach()
    measured = ascent_sharpness(model.objective(), 0.2, adaptive=True)
    step = 0.2 * theta.square() * gradient / (theta.abs() * gradient).norm()
    expected = float(gradient @ step + 0.5 * step @ model.hessian @ step)
    assert float(measured.value) == pytest.approx(expected, rel=1e-10)


def test_nothing_to_climb_is_undetermined() -> None:
    model = random_quadratic()
    with torch.no_grad():
        model.theta.zero_()
    for adaptive in (False, True):
        measured = ascent_sharpness(model.objective(), adaptive=adaptive)
        assert not measured.value.determined
        assert "gradient is zero" in measured.value.how
        assert "undetermined" in str(measured)


def test_losses_that_are_not_finite_are_undetermined() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.9)
    one = [torch.ones(1, 1, dtype=torch.float64)]
    objective = Objective.from_loss(model, lambda m, x: -torch.log(1 - m(x).square()).mean(), one)
    assert ascent_sharpness(objective, 0.05).value.determined
    beyond = ascent_sharpness(objective, 0.5)
    assert not beyond.value.determined
    assert "at distance ρ" in beyond.value.how
    assert "not finite after 1 steps" in ascent_sharpness(objective, 0.5, steps=3).value.how
    nn.init.constant_(model.weight, math.nan)
    assert not ascent_sharpness(objective).value.determined


@pytest.mark.parametrize("settings", [{"rho": 0.0}, {"rho": -1.0}, {"rho": math.nan}, {"steps": 0}, {"steps": 1.5}])
def test_bad_arguments_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(DiagnosticsError, match=next(iter(settings))):
        ascent_sharpness(random_quadratic().objective(), **settings)


def test_frozen_layers_stay_where_they_are() -> None:
    model, data = network()
    model[0].requires_grad_(False)
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    measured = ascent_sharpness(objective, 0.1)
    assert float(measured.first_order) == pytest.approx(0.1 * float(objective.gradient().norm()))
