"""Slices of the loss: the quadratic's own parabola, scale symmetry under filter normalisation, and nothing touched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from diagnostics import (
    DiagnosticsError,
    Hessian,
    Objective,
    filter_normalised,
    loss_slice,
    random_direction,
    top_eigenpairs,
)


def regression(seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    model = nn.Linear(4, 2).double()
    return Objective(model, nn.MSELoss(), [(torch.randn(n, 4).double(), torch.randn(n, 2).double()) for n in (5, 8)])


def relu(seed: int = 0) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    return model, (torch.randn(20, 6).double(), torch.randint(3, (20,)))


def test_on_a_quadratic_the_line_is_its_taylor_polynomial() -> None:
    objective = regression()
    u = torch.randn(objective.num_parameters, dtype=torch.float64)
    found = loss_slice(objective, u, span=3.0, points=9)
    slope = objective.gradient() @ u
    curvature = u @ (Hessian(objective) @ u)
    expected = objective.loss() + found.alphas * slope + 0.5 * found.alphas**2 * curvature
    torch.testing.assert_close(found.losses, expected, rtol=1e-10, atol=1e-12)


def test_a_plane_is_lines_and_has_the_bilinear_term() -> None:
    objective = regression()
    u, v = torch.randn(2, objective.num_parameters, dtype=torch.float64)
    plane = loss_slice(objective, u, v, span=2.0, points=5)
    assert plane.betas is not None
    torch.testing.assert_close(plane.losses[:, 2], loss_slice(objective, u, span=2.0, points=5).losses)
    torch.testing.assert_close(plane.losses[2], loss_slice(objective, v, span=2.0, points=5).losses)
    mixed = plane.losses[4, 4] - plane.losses[4, 2] - plane.losses[2, 4] + plane.losses[2, 2]
    torch.testing.assert_close(mixed, 4.0 * (u @ (Hessian(objective) @ v)), rtol=1e-9, atol=1e-11)


def test_along_the_sharpest_direction_the_loss_rises_as_its_eigenvalue_says() -> None:
    model, data = relu()
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    pairs = top_eigenpairs(Hessian(objective), k=1, tol=1e-8)
    found = loss_slice(objective, pairs.vectors[:, 0], span=1e-5, points=3)
    second = (found.losses[0] - 2 * found.losses[1] + found.losses[2]) / 1e-10
    assert float(second) == pytest.approx(float(pairs.values[0]), rel=1e-3)


def test_filter_normalisation_undoes_the_scales_that_a_relu_network_does_not_see() -> None:
    model, data = relu()
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[0].weight.mul_(7.0)
        scaled[0].bias.mul_(7.0)
        scaled[2].weight.div_(7.0)
    slices = [
        loss_slice(Objective(each, nn.CrossEntropyLoss(), data), span=1.0, points=7).losses for each in (model, scaled)
    ]
    torch.testing.assert_close(slices[0], slices[1], rtol=1e-12, atol=1e-12)
    plain = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    apart = [loss_slice(Objective(each, nn.CrossEntropyLoss(), data), plain).losses for each in (model, scaled)]
    assert float((apart[0] - apart[1]).abs().max()) > 0.1


def test_filters_are_as_long_as_the_weights_and_vectors_are_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    objective = Objective(model, nn.CrossEntropyLoss(), (torch.randn(4, 2, 4, 4), torch.randint(2, (4,))))
    parts = objective.space.unflatten(random_direction(objective, seed=3))
    for part, (name, weight) in zip(parts, objective.space.items(), strict=True):
        if weight.ndim == 1:
            assert not part.any(), name
        else:
            lengths = weight.detach().double().flatten(1).norm(dim=1)
            torch.testing.assert_close(part.double().flatten(1).norm(dim=1), lengths, rtol=1e-6, atol=0.0)
    assert not torch.equal(random_direction(objective, seed=3), random_direction(objective, seed=4))
    assert torch.equal(random_direction(objective, seed=3), random_direction(objective, seed=3))


def test_a_dead_filter_stays_where_it_is() -> None:
    model, data = relu()
    with torch.no_grad():
        model[0].weight[2] = 0.0
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    assert not random_direction(objective)[: 8 * 6].view(8, 6)[2].any()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_nothing_is_touched_and_batch_normalisation_is_said(mode) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    objective = Objective(model, nn.MSELoss(), (torch.randn(6, 3), torch.randn(6, 2)), mode=mode)
    state = torch.get_rng_state()
    found = loss_slice(objective, points=5)
    assert ("kept at the centre" if mode == "eval" else "each batch itself") in found.how
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_points_without_a_finite_loss_are_kept_and_counted() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    objective = Objective(model, lambda out, y: (out.log() - y).square().mean(), (torch.ones(3, 1), torch.zeros(3, 1)))
    found = loss_slice(objective, torch.ones(1), span=2.0, points=5)
    assert found.losses.isfinite().tolist() == [False, False, True, True, True]
    assert found.lowest == (0.0,)
    assert "not finite at 2 of 5 points" in str(found)


def test_progress_is_told_and_even_points_get_a_centre() -> None:
    seen: list[float] = []
    found = loss_slice(regression(), points=4, progress=seen.append)
    assert len(found.alphas) == 5
    assert float(found.alphas[2]) == 0.0
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"direction": torch.ones(3)}, "direction"),
        ({"direction": torch.zeros(10)}, "zero"),
        ({"direction": torch.full((10,), float("nan"))}, "finite"),
        ({"direction": torch.ones(10), "second": -2 * torch.ones(10)}, "parallel"),
        ({"second": torch.ones(10)}, "first direction"),
        ({"span": 0.0}, "span"),
        ({"span": float("inf")}, "span"),
        ({"points": 2}, "points"),
    ],
    ids=["shape", "zero", "nan", "parallel", "alone", "span", "inf", "points"],
)
def test_bad_input_is_one_clear_error(arguments, words) -> None:
    with pytest.raises(DiagnosticsError, match=words):
        loss_slice(regression(), **arguments)


def test_a_model_of_vectors_alone_has_no_filters() -> None:
    norm = nn.LayerNorm(3)
    objective = Objective(norm, nn.MSELoss(), (torch.randn(4, 3), torch.randn(4, 3)))
    with pytest.raises(DiagnosticsError, match="filter-normalised direction is zero"):
        random_direction(objective)
    with pytest.raises(DiagnosticsError, match="direction is zero"):
        filter_normalised(objective, torch.zeros(6))
