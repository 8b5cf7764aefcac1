"""The critical learning rate is found from losses alone, within its bracket, and never made up."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Objective, critical_sharpness
from tests.reference.edge_measures import Quadratic, network, random_quadratic


@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_on_a_quadratic_it_is_the_curvature_over_the_slope(seed: int, scale: float) -> None:
    """Whatever the length of the direction: uᵀHu / (−g·u)."""
    model = random_quadratic(5, seed)
    objective, H = model.objective(), model.hessian
    gradient = objective.gradient()
    noise = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    u = scale * (-gradient + 0.3 * gradient.norm() * noise / noise.norm())
    critical = critical_sharpness(objective, u)
    expected = float(u @ H @ u / -(gradient @ u))
    assert abs(float(critical.value) - expected) <= critical.value.error
    assert critical.value.error <= 0.04 * expected
    assert abs(float(critical.lr) - 2 / expected) <= critical.lr.error
    assert critical.evaluations <= 14


def test_minus_the_gradient_is_the_default_direction() -> None:
    objective = random_quadratic().objective()
    ours, given_direction = critical_sharpness(objective), critical_sharpness(objective, -objective.gradient())
    assert ours.value.value == given_direction.value.value
    assert "−∇L" in ours.value.how


@pytest.mark.parametrize("lr", [None, 1e-9, 1e-4, 1.0, 1e5])
def test_any_first_guess_ends_in_the_same_place(lr: float | None) -> None:
    """Where a step is so short that the loss does not move in this dtype, it is made longer."""
    objective = random_quadratic(seed=3).objective()
    reference = critical_sharpness(objective, tol=1e-6)
    critical = critical_sharpness(objective, lr=lr, max_evaluations=80)
    assert abs(float(critical.value) - float(reference.value)) <= critical.value.error + reference.value.error


def test_usual_cost_on_a_network_against_a_fine_scan() -> None:
    model, data = network()
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    critical = critical_sharpness(objective, lr=0.5)
    gradient, start = objective.gradient(), objective.loss()
    theta = objective.space.flatten(objective.space.values())

    def rises(lr: float) -> bool:
        return objective.loss_at(objective.space.unflatten(theta - lr * gradient)) >= start

    scan = next(lr for lr in torch.arange(0.01, 100, 0.01).tolist() if rises(lr))
    assert abs(float(critical.lr) - scan) <= critical.lr.error + 0.01
    assert critical.lr.error <= 0.04 * scan
    assert critical.evaluations <= 14


def test_in_single_precision_the_error_grows_with_the_rounding_of_the_loss() -> None:
    """A large constant in the loss drowns its changes: the bracket says so, or nothing is claimed at all."""
    exact = random_quadratic(seed=2)
    truth = float(critical_sharpness(exact.objective(), tol=1e-6).value)
    model = Quadratic(exact.hessian.float(), exact.theta.detach().float())
    measured = {offset: critical_sharpness(model.objective(offset)) for offset in (0.0, 1e4, 1e6, 3e6, 1e8)}
    for offset, critical in measured.items():
        if critical.value.determined:
            assert abs(float(critical.value) - truth) <= critical.value.error * 1.001
            assert (critical.value.error > 0.04 * truth) == (offset >= 1e6)
            assert ("wider than" in critical.value.how) == (offset >= 1e6)
    assert measured[1e6].value.determined
    assert not measured[1e8].value.determined


@pytest.mark.parametrize("seed", range(4))
def test_after_a_perfect_fit_the_rounding_of_the_outputs_counts_and_not_that_of_the_loss(seed: int) -> None:
    """In single precision a squared error of 1e-11 is known to no digit, though its own last digit is 1e-18."""
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 60, generator=stream)
    model = nn.Linear(60, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 60, generator=stream))
    nearly = model.weight.detach().double() + 1e-7 * torch.randn(1, 60, dtype=torch.float64, generator=stream)
    y = (x.double() @ nearly.T).float()
    exact = nn.Linear(60, 1, bias=False).double()
    exact.weight.data.copy_(model.weight.data)
    reference = Objective(exact, nn.MSELoss(), (x.double(), y.double()))
    assert reference.loss() < 1e-9
    direction = -reference.gradient()
    truth = critical_sharpness(reference, direction).value
    critical = critical_sharpness(Objective(model, nn.MSELoss(), (x, y)), direction)
    if critical.value.determined:
        assert abs(critical.value.value - truth.value) <= critical.value.error + truth.error


def test_a_loss_that_does_not_move_is_undetermined() -> None:
    exact = random_quadratic()
    model = Quadratic(exact.hessian.float() * 1e-9, exact.theta.detach().float() * 1e-3)
    critical = critical_sharpness(model.objective(offset=1.0))
    assert not critical.value.determined
    assert "rounding" in critical.value.how
    assert math.isnan(float(critical.lr))


def test_a_direction_that_climbs_is_undetermined() -> None:
    objective = random_quadratic().objective()
    critical = critical_sharpness(objective, objective.gradient())
    assert not critical.value.determined
    assert "does not fall along the direction given" in critical.value.how
    assert "undetermined" in str(critical)


def test_a_loss_that_falls_for_ever_gives_a_bound_in_words() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    data = [torch.ones(3, 2, dtype=torch.float64)]
    objective = Objective.from_loss(model, lambda m, x: m(x).mean(), data)
    critical = critical_sharpness(objective)
    assert not critical.value.determined
    assert "still falls" in critical.value.how
    assert "below" in critical.value.how
    assert critical.evaluations == 30


def test_overflow_beyond_the_minimum_counts_as_a_rise() -> None:
    """−log(1 − w²) has a wall at 1, beyond which it is not a number."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, -0.9)

    def walled(m: nn.Module, x: Tensor) -> Tensor:
        weight = m(x).mean()
        return torch.where(weight.abs() < 1, -torch.log(1 - weight**2), torch.full_like(weight, torch.nan))

    objective = Objective.from_loss(model, walled, [torch.ones(1, 1, dtype=torch.float64)])
    critical = critical_sharpness(objective, torch.ones(1, dtype=torch.float64))
    assert abs(float(critical.lr) - 1.8) <= critical.lr.error + 1e-12


def test_no_gradient_and_no_loss_are_undetermined() -> None:
    model = random_quadratic()
    with torch.no_grad():
        model.theta.zero_()
    assert "gradient is zero" in critical_sharpness(model.objective()).value.how
    with torch.no_grad():
        model.theta.fill_(torch.inf)
    assert "loss is" in critical_sharpness(model.objective()).value.how


def test_relative_critical_sharpness_takes_the_direction_of_another_objective() -> None:
    model = random_quadratic()
    one = model.objective()
    weights = torch.diag(torch.linspace(0.5, 2.0, 6, dtype=torch.float64))
    two = Objective.from_loss(
        model, lambda m, scale: scale.mean() * 0.5 * m.theta @ weights @ m.theta, [torch.ones(1).double()]
    )
    u = -one.gradient()
    expected = float(u @ weights @ u / -(two.gradient() @ u))
    critical = critical_sharpness(two, u)
    assert abs(float(critical.value) - expected) <= critical.value.error


def test_works_where_nothing_can_be_differentiated_twice() -> None:
    """Fused attention without the math backend's help, through an operation without a second derivative."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.square()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            raise NotImplementedError

    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    one = torch.ones(1, 1, dtype=torch.float64)
    objective = Objective.from_loss(model, lambda m, x: Once.apply(m(x)).mean(), [one])
    critical = critical_sharpness(objective, -torch.ones(1, dtype=torch.float64))
    assert abs(float(critical.lr) - 2.0) <= critical.lr.error


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"direction": torch.ones(4)}, "direction does not fit"),
        ({"direction": torch.zeros(6)}, "direction is zero"),
        ({"direction": torch.full((6,), torch.inf)}, "direction is not finite"),
        ({"lr": 0.0}, "lr is not positive"),
        ({"lr": math.nan}, "lr is not positive"),
        ({"tol": 0.0}, "tol is out of range"),
        ({"max_evaluations": 2}, "max_evaluations is too small"),
    ],
)
def test_bad_arguments_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(DiagnosticsError, match=said):
        critical_sharpness(random_quadratic().objective(), **settings)
