"""Scale-invariant tensors are found where they are, with the identities they obey, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW

from diagnostics import Objective, TensorRate, effective_learning_rates


class Directions(nn.Linear):
    """A linear layer that uses only the direction of each weight row."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight), self.bias)


class KeyBias(nn.Module):
    """Attention whose keys have a bias, which softmax cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        return self.head((torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ v).mean(1))


def _normed(norm: nn.Module, bias: bool = False) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16, bias=bias), norm, nn.GELU(), nn.Linear(16, 3))


def _data(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(64, *shape), torch.randint(3, (64,))


def _found(model: nn.Module, mode: str = "eval", data: tuple[Tensor, Tensor] | None = None) -> set[str]:
    objective = Objective(model, nn.CrossEntropyLoss(), data or _data(8), mode=mode)
    rates = effective_learning_rates(model, SGD(model.parameters(), lr=0.1), objective)
    for row in rates.rows:
        assert row.scale_invariant == (row.effective is not None)
    return {row.tensor for row in rates.rows if row.scale_invariant}


class QueryKeyNorm(nn.Module):
    """Attention that normalises queries and keys over all their features before they meet."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.norm = nn.RMSNorm(6, eps=0.0)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.norm(self.query(x)), self.norm(self.key(x))
        return self.head((torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ self.value(x)).mean(1))


class HalfNormed(nn.Module):
    """One matrix, of which two thirds of the outputs are normalised by themselves and the rest not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 12, bias=False), nn.BatchNorm1d(8), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(F.gelu(torch.cat([self.norm(h[:, :8]), h[:, 8:]], 1)))


SEEDS = range(8)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_before_a_normalisation_are_found(seed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    x, y = _data(8)
    for norm, mode in (
        (nn.LayerNorm(16, eps=0.0), "eval"),
        (nn.LayerNorm(16), "eval"),
        (nn.RMSNorm(16), "eval"),
        (nn.BatchNorm1d(16), "train"),
    ):
        assert _found(_normed(norm).to(dtype), mode, (x.to(dtype), y)) == {"0.weight"}, norm
    assert _found(nn.Sequential(Directions(8, 16), nn.GELU(), nn.Linear(16, 3)).to(dtype), data=(x.to(dtype), y)) == {
        "0.weight"
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_controls_in_which_nothing_is_scale_invariant_stay_quiet(seed: int) -> None:
    torch.manual_seed(seed)
    plain = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3))
    small_head = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3))
    with torch.no_grad():
        small_head[4].weight.mul_(0.02)
    for model in (plain, small_head, nn.Linear(8, 3), _normed(nn.LayerNorm(16), bias=True), _normed(nn.Identity())):
        assert _found(model) == set()
    moved = nn.BatchNorm1d(16)
    moved.running_var.fill_(3.0)
    assert _found(_normed(moved), "eval") == set(), "in eval mode the statistics are constants"


@pytest.mark.parametrize("seed", SEEDS)
def test_what_the_loss_does_not_see_at_all_has_no_effective_rate(seed: int) -> None:
    """A bias before batch normalisation, or on attention keys: gradients of pure rounding, in random directions."""
    torch.manual_seed(seed)
    assert _found(_normed(nn.BatchNorm1d(16), bias=True), "train") == {"0.weight"}
    assert _found(KeyBias(), data=_data(5, 6)) == set()


def test_a_language_model_at_initialisation_has_no_false_alarm() -> None:
    """Its logits are small, so the loss is near log V whatever any one matrix does."""
    from transformers import GPT2Config, GPT2LMHeadModel

    for seed in range(3):
        torch.manual_seed(seed)
        config = GPT2Config(
            n_layer=2, n_head=2, n_embd=32, vocab_size=97, n_positions=16, bos_token_id=0, eos_token_id=0
        )
        config.loss_type = "ForCausalLM"
        model, tokens = GPT2LMHeadModel(config), torch.randint(97, (8, 16))
        objective = Objective.huggingface(model, {"input_ids": tokens, "labels": tokens})
        rows = effective_learning_rates(model, SGD(model.parameters(), lr=0.1), objective).rows
        assert [row.tensor for row in rows if row.scale_invariant] == []


def test_euler_and_the_inverse_law_of_the_gradient() -> None:
    """⟨w, ∇L⟩ = 0 and ∇L(cw) = ∇L(w)/c, and a step grows the norm: ‖w − ηg‖² = ‖w‖² + η²‖g‖²."""
    model = nn.Sequential(Directions(8, 16), nn.GELU(), nn.Linear(16, 3)).double()
    x, y = _data(8)
    objective = Objective(model, nn.CrossEntropyLoss(), (x.double(), y), params="0.weight")
    w, g = model[0].weight.detach().clone().reshape(-1), objective.gradient()
    assert abs(float(w @ g)) < 1e-14
    assert float((w - 0.3 * g).norm() ** 2) == pytest.approx(float(w.norm() ** 2 + 0.09 * g.norm() ** 2), rel=1e-14)
    with torch.no_grad():
        model[0].weight.mul_(5.0)
    torch.testing.assert_close(objective.gradient(), g / 5, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("kind", "power"), [(SGD, 2), (Adam, 1), (AdamW, 1)])
def test_the_effective_rate_and_how_it_falls_with_the_norm(kind: type[torch.optim.Optimizer], power: int) -> None:
    model = _normed(nn.LayerNorm(16, eps=0.0)).double()
    x, y = _data(8)
    objective = Objective(model, nn.CrossEntropyLoss(), (x.double(), y))
    optimizer = kind(model.parameters(), lr=0.01)
    F.cross_entropy(model(x.double()), y).backward()
    optimizer.step()

    def rate() -> float:
        rows = {row.tensor: row for row in effective_learning_rates(model, optimizer, objective).rows}
        assert rows["0.weight"].effective is not None
        return rows["0.weight"].effective.value

    first = rate()
    assert first == pytest.approx(0.01 / float(model[0].weight.detach().norm()) ** power, rel=1e-12)
    with torch.no_grad():
        model[0].weight.mul_(3.0)
    assert rate() == pytest.approx(first / 3**power, rel=1e-9)


def _rows(model: nn.Module, mode: str = "train", data: tuple[Tensor, Tensor] | None = None) -> dict[str, TensorRate]:
    objective = Objective(model, nn.CrossEntropyLoss(), data or _data(8), mode=mode)
    rates = effective_learning_rates(model, SGD(model.parameters(), lr=0.1), objective)
    return {row.tensor: row for row in rates.rows if row.invariant_rows is not None}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_normalises_channels_one_by_one_makes_every_row_invariant(seed: int, dtype: torch.dtype) -> None:
    """BatchNorm, GroupNorm of one channel each, rows divided by their norm; LayerNorm and wider groups do not."""
    torch.manual_seed(seed)
    images = torch.randn(64, 3, 5, 5, dtype=dtype), torch.randint(3, (64,))
    x, y = _data(8)
    flat = x.to(dtype), y

    def convolved(norm: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm, nn.GELU(), nn.Flatten(), nn.Linear(72, 3)).to(dtype)

    by_row = [
        (_normed(nn.BatchNorm1d(16)).to(dtype), flat),
        (_normed(nn.BatchNorm1d(16), bias=True).to(dtype), flat),
        (nn.Sequential(Directions(8, 16), nn.GELU(), nn.Linear(16, 3)).to(dtype), flat),
        (convolved(nn.BatchNorm2d(8)), images),
        (convolved(nn.GroupNorm(8, 8)), images),
    ]
    for model, data in by_row:
        found = _rows(model, data=data)
        first, last = list(found)
        assert found[first].invariant_rows.value == 1.0, model
        assert found[first].scale_invariant
        assert found[last].invariant_rows.value == 0.0
        assert found[last].row_effective is None
    whole = [
        (_normed(nn.LayerNorm(16, eps=0.0)).to(dtype), flat),
        (_normed(nn.RMSNorm(16)).to(dtype), flat),
        (convolved(nn.GroupNorm(2, 8)), images),
    ]
    for model, data in whole:
        found = _rows(model, data=data)
        first = next(iter(found))
        assert found[first].scale_invariant, model
        assert found[first].invariant_rows.value == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_queries_and_keys_before_their_norm_are_invariant_and_values_are_not(seed: int) -> None:
    torch.manual_seed(seed)
    found = _rows(QueryKeyNorm().double(), data=(torch.randn(64, 5, 6).double(), torch.randint(3, (64,))))
    assert {name for name, row in found.items() if row.scale_invariant} == {"query.weight", "key.weight"}
    assert all(row.invariant_rows.value == 0.0 for row in found.values()), "the norm is over all features"


def test_rows_of_one_tensor_may_differ() -> None:
    torch.manual_seed(3)
    model = HalfNormed().double()
    x, y = _data(8)
    found = _rows(model, data=(x.double(), y))["first.weight"]
    assert not found.scale_invariant
    assert found.effective is None
    assert found.row_rates.isfinite().tolist() == [True] * 8 + [False] * 4
    assert found.invariant_rows.value == pytest.approx(8 / 12)
    assert found.invariant_rows.how.startswith("8 of 12 rows with a gradient")


@pytest.mark.parametrize("seed", SEEDS)
def test_controls_without_a_normalisation_have_no_invariant_row(seed: int) -> None:
    torch.manual_seed(seed)
    plain = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3))
    for model, mode in ((plain, "train"), (_normed(nn.BatchNorm1d(16)), "eval"), (_normed(nn.Identity()), "train")):
        if mode == "eval":
            model[1].running_var.fill_(3.0)
        assert [row.invariant_rows.value for row in _rows(model, mode).values()] == [0.0] * (3 if model is plain else 2)


def test_dead_rows_are_not_judged() -> None:
    """A row that no example activates has no gradient: neither invariant nor not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[1].bias[:2] = -100.0
    x, y = _data(8)
    found = _rows(model, data=(x.double(), y))["0.weight"]
    assert found.invariant_rows.value == 1.0
    assert found.invariant_rows.how.startswith("4 of 4 rows")
    assert found.row_rates.isfinite().tolist() == [False] * 2 + [True] * 4


@pytest.mark.parametrize(("kind", "power"), [(SGD, 2), (AdamW, 1)])
def test_the_rate_of_each_row_follows_its_own_norm(kind: type[torch.optim.Optimizer], power: int) -> None:
    model = _normed(nn.BatchNorm1d(16)).double()
    x, y = _data(8)
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
    x, y = _data(8)

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
