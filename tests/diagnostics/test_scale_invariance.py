"""Scale-invariant tensors are found where they are, with the identities they obey, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW

from diagnostics import Objective, effective_learning_rates
from tests.reference.normed_networks import Directions, KeyBias, data, normed


def _found(model: nn.Module, mode: str = "eval", pair: tuple[Tensor, Tensor] | None = None) -> set[str]:
    objective = Objective(model, nn.CrossEntropyLoss(), pair or data(8), mode=mode)
    rates = effective_learning_rates(model, SGD(model.parameters(), lr=0.1), objective)
    for row in rates.rows:
        assert row.scale_invariant == (row.effective is not None)
    return {row.tensor for row in rates.rows if row.scale_invariant}


SEEDS = range(8)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_before_a_normalisation_are_found(seed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    x, y = data(8)
    for norm, mode in (
        (nn.LayerNorm(16, eps=0.0), "eval"),
        (nn.LayerNorm(16), "eval"),
        (nn.RMSNorm(16), "eval"),
        (nn.BatchNorm1d(16), "train"),
    ):
        assert _found(normed(norm).to(dtype), mode, (x.to(dtype), y)) == {"0.weight"}, norm
    assert _found(nn.Sequential(Directions(8, 16), nn.GELU(), nn.Linear(16, 3)).to(dtype), pair=(x.to(dtype), y)) == {
        "0.weight"
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_controls_in_which_nothing_is_scale_invariant_stay_quiet(seed: int) -> None:
    torch.manual_seed(seed)
    plain = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3))
    small_head = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3))
    with torch.no_grad():
        small_head[4].weight.mul_(0.02)
    for model in (plain, small_head, nn.Linear(8, 3), normed(nn.LayerNorm(16), bias=True), normed(nn.Identity())):
        assert _found(model) == set()
    moved = nn.BatchNorm1d(16)
    moved.running_var.fill_(3.0)
    assert _found(normed(moved), "eval") == set(), "in eval mode the statistics are constants"


@pytest.mark.parametrize("seed", SEEDS)
def test_what_the_loss_does_not_see_at_all_has_no_effective_rate(seed: int) -> None:
    """A bias before batch normalisation, or on attention keys: gradients of pure rounding, in random directions."""
    torch.manual_seed(seed)
    assert _found(normed(nn.BatchNorm1d(16), bias=True), "train") == {"0.weight"}
    assert _found(KeyBias(), pair=data(5, 6)) == set()


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
    x, y = data(8)
    objective = Objective(model, nn.CrossEntropyLoss(), (x.double(), y), params="0.weight")
    w, g = model[0].weight.detach().clone().reshape(-1), objective.gradient()
    assert abs(float(w @ g)) < 1e-14
    assert float((w - 0.3 * g).norm() ** 2) == pytest.approx(float(w.norm() ** 2 + 0.09 * g.norm() ** 2), rel=1e-14)
    with torch.no_grad():
        model[0].weight.mul_(5.0)
    torch.testing.assert_close(objective.gradient(), g / 5, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("kind", "power"), [(SGD, 2), (Adam, 1), (AdamW, 1)])
def test_the_effective_rate_and_how_it_falls_with_the_norm(kind: type[torch.optim.Optimizer], power: int) -> None:
    model = normed(nn.LayerNorm(16, eps=0.0)).double()
    x, y = data(8)
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
