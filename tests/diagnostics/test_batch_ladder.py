"""E λmax(H_B) against its enumeration, that it falls, and the law that is fitted."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Objective, batch_ladder, sharpness
from tests.reference.dense_hessian import dense_hessian
from tests.reference.minibatch_enumeration import rows


def _regression(examples: int, loss: nn.Module | None = None) -> tuple[nn.Module, tuple[Tensor, Tensor], Objective]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(examples, 3, dtype=torch.float64)
    batch = (x, x[:, :1] * x[:, 1:2])
    return model, batch, Objective(model, loss or nn.MSELoss(), [batch])


def _largest(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    H = dense_hessian(model, lambda: nn.functional.mse_loss(model(batch[0]), batch[1]))
    return float(torch.linalg.eigvalsh(H)[-1])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_all_minibatches_give_the_enumeration_and_fall_with_the_batch_size(reduction: str) -> None:
    model, batch, objective = _regression(6, nn.MSELoss(reduction=reduction))
    ladder = batch_ladder(objective, range(1, 7), draws=20, tol=1e-6)
    expected = []
    for size in ladder.sizes:
        found = [_largest(model, rows(batch, list(chosen))) for chosen in combinations(range(6), size)]
        expected.append((6 if reduction == "sum" else 1) * sum(found) / len(found))
    assert [float(value) for value in ladder.values] == pytest.approx(expected, rel=1e-5)
    assert {value.kind for value in ladder.values} == {"residual"}
    assert all(small > large for small, large in pairwise(expected)), "Jensen"
    assert float(ladder.values[-1]) == pytest.approx(float(sharpness(objective, tol=1e-6).values[0]), rel=1e-5)


def test_draws_agree_with_the_enumeration_within_their_errors() -> None:
    model, batch, objective = _regression(8)
    found = [_largest(model, rows(batch, list(chosen))) for chosen in combinations(range(8), 3)]
    inside = 0
    for seed in range(20):
        [value] = batch_ladder(objective, [3], draws=10, tol=1e-4, seed=seed).values
        low, high = value.interval()
        inside += low <= sum(found) / len(found) <= high
    assert inside >= 16


def test_the_ladder_is_halves_of_all_examples_and_falls() -> None:
    _, _, objective = _regression(100)
    ladder = batch_ladder(objective)
    assert ladder.sizes == (3, 6, 12, 25, 50, 100)
    assert float(ladder.values[0]) > float(ladder.values[2]) > float(ladder.values[-1])
    assert ladder.values[-1].kind == "residual"
    assert ladder.slope.value > 0
    assert ladder.whole.value == pytest.approx(float(ladder.values[-1]), rel=0.05)
    lines = str(ladder).splitlines()
    assert len(lines) == 8
    assert lines[0].split() == ["batch", "size", "E", "λmax(H_B)"]
    assert lines[-1].endswith(f"R² {ladder.r_squared:.3f}")
    assert "1/B − 1/100" in lines[-1]
    assert batch_ladder(objective).values == ladder.values, "the same seed, the same ladder"


def test_the_fit_finds_a_law_that_holds() -> None:
    """A spike of 144 among 199 noisy directions: a minibatch tilts it and raises it by 199 (1/B − 1/N), twice in H."""
    torch.manual_seed(3)
    count, dimension = 400, 200
    x = torch.randn(count, dimension, dtype=torch.float64)
    x[:, 0] = 12.0
    model = nn.Linear(dimension, 1, bias=False).double()
    ladder = batch_ladder(Objective(model, nn.MSELoss(), (x, x[:, :1])), [25, 50, 100, 200, 400])
    low, high = ladder.slope.interval()
    assert low <= 2 * (dimension - 1) <= high
    assert ladder.slope.value == pytest.approx(2 * (dimension - 1), rel=0.1)
    assert ladder.whole.value == pytest.approx(2 * 144, rel=0.02)
    assert ladder.r_squared > 0.98


def test_two_sizes_have_no_r_squared_and_one_has_no_law() -> None:
    _, _, objective = _regression(20)
    pair = batch_ladder(objective, [5, 20], draws=3)
    assert math.isnan(pair.r_squared)
    assert pair.slope.determined
    alone = batch_ladder(objective, [20])
    assert not alone.slope.determined
    assert "R²" not in str(alone)


def test_bad_input() -> None:
    _, _, objective = _regression(6)
    with pytest.raises(DiagnosticsError, match="draws is not"):
        batch_ladder(objective, draws=1)
    with pytest.raises(DiagnosticsError, match="sizes is empty"):
        batch_ladder(objective, [])
    with pytest.raises(DiagnosticsError, match="batch_size is larger"):
        batch_ladder(objective, [3, 7])
