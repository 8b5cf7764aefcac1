"""The loss on the plane of a path: where the plane is everything, the loss itself; else that of the path's shadow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Objective, weight_trajectory
from diagnostics.trajectory import plane
from diagnostics.trajectory.plane import path_plane


def bowl(size: int) -> Objective:
    """L(θ) = Σ k θ_k² / size, in float64."""
    model = nn.Linear(size, 1, bias=False).double()
    scales = torch.arange(1.0, size + 1, dtype=torch.float64).sqrt()
    return Objective(model, nn.MSELoss(), (torch.diag(scales), torch.zeros(size, 1, dtype=torch.float64)))


def exact(theta: Tensor) -> float:
    return float((torch.arange(1.0, len(theta) + 1, dtype=torch.float64) * theta**2).sum() / len(theta))


def principal(path: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and the two directions by a singular value decomposition, which forms no Gram matrix."""
    mean = path.mean(0)
    return mean, torch.linalg.svd(path - mean).Vh[:2]


@pytest.mark.parametrize("block", [2, 1 << 20])
def test_it_is_the_loss_at_points_of_the_plane_by_singular_vectors(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plane, "BLOCK", block)
    path = torch.randn(5, 7, dtype=torch.float64)
    found = path_plane(bowl(7), list(path), points=4)
    mean, directions = principal(path)
    # The signs of singular vectors are anybody's.
    signs = torch.sign((found.coordinates * ((path - mean) @ directions.mT)).sum(0))
    directions = signs[:, None] * directions
    torch.testing.assert_close(found.coordinates, (path - mean) @ directions.mT)
    for i, alpha in enumerate(found.alphas.tolist()):
        for j, beta in enumerate(found.betas.tolist()):
            theta = mean + alpha * directions[0] + beta * directions[1]
            assert float(found.losses[i, j]) == pytest.approx(exact(theta), rel=1e-9)
    shadows = mean + found.coordinates @ directions
    assert found.shadows.tolist() == pytest.approx([exact(theta) for theta in shadows], rel=1e-9)
    total = float(((path - mean) ** 2).sum())
    assert found.explained == pytest.approx(float((found.coordinates**2).sum()) / total)


def test_two_parameters_are_a_plane_and_shadows_are_the_checkpoints() -> None:
    path = torch.randn(4, 2, dtype=torch.float64)
    found = path_plane(bowl(2), list(path))
    assert found.explained == pytest.approx(1.0)
    assert found.shadows.tolist() == pytest.approx([exact(theta) for theta in path])
    for axis, values in zip((found.alphas, found.betas), found.coordinates.T, strict=True):
        assert float(axis[0]) < float(values.min())
        assert float(values.max()) < float(axis[-1])


def test_coordinates_are_those_of_the_path_by_its_weights() -> None:
    path = torch.randn(5, 6, dtype=torch.float64)
    trajectory = weight_trajectory([{"weight": theta[None]} for theta in path])
    found = path_plane(bowl(6), list(path), points=2)
    torch.testing.assert_close(found.coordinates, trajectory.coordinates)
    assert found.explained == pytest.approx(sum(float(share) for share in trajectory.explained))


def test_the_model_is_left_as_it_was() -> None:
    objective = bowl(3)
    before = objective.model.weight.detach().clone()
    path_plane(objective, list(torch.randn(3, 3, dtype=torch.float64)), points=3)
    assert torch.equal(objective.model.weight, before)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (torch.randn(2, 3), "three or more"),
        (torch.randn(3, 4), r"shapes \[\(4,\), \(4,\), \(4,\)\]"),
        (torch.outer(torch.arange(4.0), torch.ones(3)), "straight line"),
        (torch.zeros(4, 3), "straight line"),
        (torch.full((3, 3), math.nan), "not finite"),
    ],
)
def test_what_has_no_plane_is_one_clear_error(path: Tensor, words: str) -> None:
    with pytest.raises(DiagnosticsError, match=words):
        path_plane(bowl(3), list(path.double()))
