"""Rows that are scale-invariant each by itself, told from tensors that are so only as a whole; and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW

from diagnostics import Objective, TensorRate, effective_learning_rates
from tests.reference.normed_networks import Directions, HalfNormed, QueryKeyNorm, data, normed

SEEDS = range(8)


def _rows(model: nn.Module, mode: str = "train", pair: tuple[Tensor, Tensor] | None = None) -> dict[str, TensorRate]:
    objective = Objective(model, nn.CrossEntropyLoss(), pair or data(8), mode=mode)
    rates = effective_learning_rates(model, SGD(model.parameters(), lr=0.1), objective)
    return {row.tensor: row for row in rates.rows if row.invariant_rows is not None}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_normalises_channels_one_by_one_makes_every_row_invariant(seed: int, dtype: torch.dtype) -> None:
    """BatchNorm, GroupNorm of one channel each, rows divided by their norm; LayerNorm and wider groups do not."""
    torch.manual_seed(seed)
    images = torch.randn(64, 3, 5, 5, dtype=dtype), torch.randint(3, (64,))
    x, y = data(8)
    flat = x.to(dtype), y

    def convolved(norm: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm, nn.GELU(), nn.Flatten(), nn.Linear(72, 3)).to(dtype)

    by_row = [
        (normed(nn.BatchNorm1d(16)).to(dtype), flat),
        (normed(nn.BatchNorm1d(16), bias=True).to(dtype), flat),
        (nn.Sequential(Directions(8, 16), nn.GELU(), nn.Linear(16, 3)).to(dtype), flat),
        (convolved(nn.BatchNorm2d(8)), images),
        (convolved(nn.GroupNorm(8, 8)), images),
    ]
    for model, pair in by_row:
        found = _rows(model, pair=pair)
        first, last = list(found)
        assert found[first].invariant_rows.value == 1.0, model
        assert found[first].scale_invariant
        assert found[last].invariant_rows.value == 0.0
        assert found[last].row_effective is None
    whole = [
        (normed(nn.LayerNorm(16, eps=0.0)).to(dtype), flat),
        (normed(nn.RMSNorm(16)).to(dtype), flat),
        (convolved(nn.GroupNorm(2, 8)), images),
    ]
    for model, pair in whole:
        found = _rows(model, pair=pair)
        first = next(iter(found))
        assert found[first].scale_invariant, model
        assert found[first].invariant_rows.value == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_queries_and_keys_before_their_norm_are_invariant_and_values_are_not(seed: int) -> None:
    torch.manual_seed(seed)
    found = _rows(QueryKeyNorm().double(), pair=(torch.randn(64, 5, 6).double(), torch.randint(3, (64,))))
    assert {name for name, row in found.items() if row.scale_invariant} == {"query.weight", "key.weight"}
    assert all(row.invariant_rows.value == 0.0 for row in found.values()), "the norm is over all features"


def test_rows_of_one_tensor_may_differ() -> None:
    torch.manual_seed(3)
    model = HalfNormed().double()
    x, y = data(8)
    found = _rows(model, pair=(x.double(), y))["first.weight"]
    assert not found.scale_invariant
    assert found.effective is None
    assert found.row_rates.isfinite().tolist() == [True] * 8 + [False] * 4
    assert found.invariant_rows.value == pytest.approx(8 / 12)
    assert found.invariant_rows.how.startswith("8 of 12 rows with a gradient")


@pytest.mark.parametrize("seed", SEEDS)
def test_controls_without_a_normalisation_have_no_invariant_row(seed: int) -> None:
    torch.manual_seed(seed)
    plain = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3))
    for model, mode in ((plain, "train"), (normed(nn.BatchNorm1d(16)), "eval"), (normed(nn.Identity()), "train")):
        if mode == "eval":
            model[1].running_var.fill_(3.0)
        assert [row.invariant_rows.value for row in _rows(model, mode).values()] == [0.0] * (3 if model is plain else 2)


def test_dead_rows_are_not_judged() -> None:
    """A row that no example activates has no gradient: neither invariant nor not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[1].bias[:2] = -100.0
    x, y = data(8)
    found = _rows(model, pair=(x.double(), y))["0.weight"]
    assert found.invariant_rows.value == 1.0
    assert found.invariant_rows.how.startswith("4 of 4 rows")
    assert found.row_rates.isfinite().tolist() == [False] * 2 + [True] * 4


@pytest.mark.parametrize(("kind", "power"), [(SGD, 2), (AdamW, 1)])
def test_the_rate_of_each_row_follows_its_own_norm(kind: type[torch.optim.Optimizer], power: int) -> None:
    model = normed(nn.BatchNorm1d(16)).double()
    x, y = data(8)
    optimizer = kind(model.parameters(), lr=0.01)
    F.cross_entropy(model(x.double()), y).backward()
    optimizer.step()
    with torch.no_grad():
        model[0].weight[3] *= 10
    objective = Objective(model, nn.CrossEntropyLoss(), (x.double(), y), mode="train")
    row = effective_learning_rates(model, optimizer, objective).rows[0]
    expected = [0.01 / float(w.norm()) ** power for w in model[0].weight.detach()]
    assert row.row_rates.tolist() == pytest.approx(expected, rel=1e-12)
    assert min(expected) < row.row_effective.value < max(expected)
    assert row.row_effective.value in row.row_rates.tolist()
    assert row.row_effective.kind == "spread"


def test_a_loss_that_changes_is_no_invariance_whatever_the_gradient_says() -> None:
    """⟨w, ∇L⟩ = 0 and ∇L(cw) = ∇L(w)/c leave room for a term that jumps with ‖w‖; L(cw) = L(w) does not."""
    model = nn.Sequential(Directions(8, 16), nn.GELU(), nn.Linear(16, 3)).double()
    x, y = data(8)

    def jumps(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        steps = module[0].weight.detach().norm().mul(2).floor()
        return F.cross_entropy(module(batch[0]), batch[1]) + steps

    def found(loss: object) -> list[bool]:
        objective = Objective.from_loss(model, loss, [(x.double(), y)])
        table = effective_learning_rates(model, SGD(model.parameters(), lr=0.1), objective)
        return [row.scale_invariant for row in table.rows if row.tensor == "0.weight"]

    assert found(lambda module, batch: F.cross_entropy(module(batch[0]), batch[1])) == [True]
    assert found(jumps) == [False]


def test_one_more_gradient_is_enough_for_all_rows_of_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [layer for _ in range(5) for layer in (nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16), nn.GELU())]
    model = nn.Sequential(*layers, nn.Linear(16, 3)).double()
    x, y = torch.randn(64, 16).double(), torch.randint(3, (64,))
    objective = Objective(model, nn.CrossEntropyLoss(), (x, y), mode="train")
    taken, plain = [], objective.loss_and_gradient
    monkeypatch.setattr(objective, "loss_and_gradient", lambda values: taken.append(1) or plain(values))
    rows = effective_learning_rates(model, SGD(model.parameters(), lr=0.1), objective).rows
    assert sum(row.scale_invariant for row in rows) == 5
    assert [row.invariant_rows.value for row in rows if row.scale_invariant] == [1.0] * 5
    assert len(taken) == 2


def test_a_head_at_its_best_size_neither_passes_nor_spoils_the_others() -> None:
    """Its one row is orthogonal to its gradient, as an invariant one is; scaling it changes all other gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 1, bias=False)
    ).double()
    x, y = torch.randn(64, 8).double(), torch.randn(64, 1).double()
    with torch.no_grad():
        outputs = model(x)
        model[3].weight *= (outputs * y).sum() / outputs.square().sum()
    objective = Objective(model, nn.MSELoss(), (x, y), mode="train")
    rows = {row.tensor: row for row in effective_learning_rates(model, SGD(model.parameters(), lr=0.1), objective).rows}
    assert abs(rows["3.weight"].alignment.value) < 1e-9
    assert {name for name, row in rows.items() if row.scale_invariant} == {"0.weight"}
    assert rows["0.weight"].invariant_rows.value == 1.0
    assert rows["3.weight"].invariant_rows.value == 0.0


def test_a_well_fitted_network_with_kinks_keeps_its_invariant_weight() -> None:
    """ε moves one activation over a kink of ReLU, and the gradient is 5 % off half of what it was."""
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.randint(3, (16,), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    first = nn.ConvTranspose2d(3, 8, 3, bias=False)
    model = nn.Sequential(
        first, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)
    ).double()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    found = _rows(model, pair=(images, labels))
    assert found["0.weight"].scale_invariant
    assert found["0.weight"].invariant_rows.value == 0.0, "its output channels are the second axis"
    assert found["0.weight"].effective.error == pytest.approx(0.1 * found["0.weight"].effective.value)
    assert not found["5.weight"].scale_invariant
