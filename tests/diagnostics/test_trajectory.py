"""A path through weight space against everything as one long vector, and against paths whose answers are known."""

import math

import numpy
import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, spectral_drift, weight_trajectory
from tests.reference import trajectory_loops as slow


def _walk(count=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (30, 7), "a.bias": (30,), "conv": (4, 3, 3, 3)}
    states = [{name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}]
    for _ in range(count - 1):
        states.append(
            {
                name: old + 0.1 * torch.randn(old.shape, generator=generator).to(dtype)
                for name, old in states[-1].items()
            }
        )
    return states


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_everything_equals_the_slow_twin(count, dtype):
    states = _walk(count, dtype=dtype)
    path, points = weight_trajectory(states), slow.vectors(states, list(states[0]))
    moved, steps = numpy.linalg.norm(points - points[0], axis=1), numpy.linalg.norm(numpy.diff(points, axis=0), axis=1)
    assert [float(one) for one in path.displacement] == pytest.approx(moved.tolist(), rel=1e-12)
    assert [float(one) for one in path.steps] == pytest.approx(steps.tolist(), rel=1e-12)
    assert [float(one) for one in path.cosines] == pytest.approx(slow.cosines(points), abs=1e-12)
    if count > 2:
        assert float(path.back) == pytest.approx(
            slow.cosine(points[-1] - points[-2], points[-2] - points[0]), abs=1e-12
        )
        coordinates, shares = slow.principal(points)
        assert numpy.abs(path.coordinates.numpy()) == pytest.approx(numpy.abs(coordinates), abs=1e-7)
        assert [float(share) for share in path.explained] == pytest.approx(shares.tolist(), abs=1e-12)
    for row in path.rows:
        own = slow.vectors(states, [row.name])
        assert row.displacement == pytest.approx(numpy.linalg.norm(own - own[0], axis=1).tolist(), rel=1e-12)


def test_a_straight_line_has_cosine_one_and_one_direction():
    start, direction = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    path = weight_trajectory([{"w": start + place * direction} for place in (0.0, 1.0, 1.5, 4.0)])
    assert [float(cosine) for cosine in path.cosines] == pytest.approx([1.0, 1.0])
    assert float(path.back) == pytest.approx(1.0)
    assert [float(share) for share in path.explained] == pytest.approx([1.0, 0.0], abs=1e-12)
    assert path.coordinates[:, 0].diff().tolist() == pytest.approx(
        [float(direction.norm()) * step for step in (1.0, 0.5, 2.5)]
    )


def test_a_circle_has_two_equal_directions():
    one, two = torch.linalg.qr(torch.randn(40, 2, dtype=torch.float64)).Q.mT
    angles = [2 * math.pi * place / 12 for place in range(12)]
    path = weight_trajectory([{"w": math.cos(angle) * one + math.sin(angle) * two} for angle in angles])
    assert [float(share) for share in path.explained] == pytest.approx([0.5, 0.5])
    assert path.coordinates.norm(dim=1).tolist() == pytest.approx([1.0] * 12)
    assert [float(cosine) for cosine in path.cosines] == pytest.approx([math.cos(math.pi / 6)] * 10)


def test_there_and_back_again():
    states = [{"w": torch.full((9,), value, dtype=torch.float64)} for value in (0.1, 1e8, 0.1)]
    path = weight_trajectory(states)
    assert [float(one) for one in path.cosines] == pytest.approx([-1.0])
    assert float(path.back) == pytest.approx(-1.0)
    assert float(path.displacement[2]) == 0.0


def test_what_cannot_be_compared_says_why():
    norm = nn.BatchNorm1d(3)
    base = {
        **norm.state_dict(),
        "fine": torch.ones(2),
        "shape": torch.ones(2),
        "nan": torch.ones(1),
        "gone": torch.ones(1),
    }
    other = {**base, "shape": torch.ones(3), "nan": torch.tensor([float("nan")])}
    del other["gone"]
    path = weight_trajectory([base, other])
    notes = {row.name: row.note for row in path.rows}
    assert notes["weight"] == notes["fine"] == ""
    assert "statistic" in notes["running_mean"]
    assert "shape" in notes["shape"]
    assert notes["nan"] == "not finite in every checkpoint"
    assert notes["gone"] == "not in every checkpoint"


def test_nothing_moved_is_undetermined_and_not_a_direction():
    path = weight_trajectory([{"w": torch.ones(3)}] * 3)
    assert not path.explained[0].determined
    assert not path.cosines[0].determined
    assert "3 checkpoints" in str(path)


@pytest.mark.parametrize(
    "bad", [[], [{"w": torch.ones(1)}], 3, [torch.ones(1)] * 2, [{"a": torch.ones(1)}, {"b": torch.ones(1)}]]
)
def test_what_is_no_trajectory_is_one_error(bad):
    with pytest.raises(DiagnosticsError):
        weight_trajectory(bad)


def test_spectral_drift_equals_the_slow_twin_and_is_bounded_by_the_displacement():
    states = _walk()
    rows = {row.name: row for row in spectral_drift(states)}
    assert set(rows) == {"a.weight", "conv"}
    for name, row in rows.items():
        for drift, state in zip(row.drift, states, strict=True):
            first = states[0][name]
            assert float(drift) == pytest.approx(slow.drift(first, state[name]), abs=1e-10)
            assert float(drift) <= float((state[name] - first).norm() / first.norm()) + 1e-12


def test_a_rotation_has_no_drift_and_a_multiple_has_its_own():
    weight = torch.randn(6, 9, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    [row] = spectral_drift([{"w": weight}, {"w": turn @ weight}, {"w": 1.5 * weight}])
    assert [float(one) for one in row.drift] == pytest.approx([0.0, 0.0, 0.5], abs=1e-12)
    [left_out] = spectral_drift([{"w": weight}, {"w": torch.zeros(6, 9)}])
    assert left_out.note
    [left_out] = spectral_drift([{"w": weight}] * 2, max_side=5)
    assert "above 5" in left_out.note
