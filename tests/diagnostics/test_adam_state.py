"""The saved state of Adam against the live optimizer, and closed forms for steady gradients and for pure noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import AdamTensor, DiagnosticsError, Objective, adam_state, effective_learning_rates


def _stepped(gradients: Tensor, **settings: Any) -> AdamTensor:
    weight = nn.Parameter(torch.zeros(gradients.shape[1:], dtype=torch.float64))
    adam = torch.optim.Adam([weight], **{"lr": 0.01, **settings})
    for gradient in gradients.double():
        weight.grad = gradient
        adam.step()
    (row,) = adam_state(adam.state_dict()).rows
    return row


@pytest.mark.parametrize("build", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam])
def test_steady_gradients_are_all_signal(build: Any) -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = build([weight], lr=0.01)
    for _ in range(7):
        weight.grad = torch.tensor([1.0, -2.0, 4.0])
        optimizer.step()
    (row,) = adam_state(optimizer.state_dict()).rows
    assert row.signal.value == pytest.approx(1.0, rel=1e-5)
    assert row.rates[2] == pytest.approx(0.01 / 2, rel=0.01)
    assert (row.step, row.lr, row.epsilon_share.value, row.untouched.value) == (7, 0.01, 0.0, 0.0)


@pytest.mark.parametrize("beta1", [0.0, 0.9, 0.95])
def test_gradients_of_pure_noise_have_the_signal_of_noise_alone(beta1: float) -> None:
    row = _stepped(torch.randn(800, 4000), betas=(beta1, 0.999))
    assert row.noise_alone == (1 - beta1) / (1 + beta1)
    assert row.signal.value == pytest.approx(row.noise_alone, rel=0.1)


def test_rates_are_those_of_the_live_optimizer() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    x, y = torch.randn(20, 5), torch.randn(20, 2)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(10):
        adam.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        adam.step()
    live = effective_learning_rates(model, adam, Objective(model, nn.MSELoss(), (x, y))).rows
    for row, other in zip(adam_state(adam.state_dict()).rows, live, strict=True):
        assert other.coordinate_rate is not None
        assert row.rates[2] == pytest.approx(other.coordinate_rate.value, rel=0.01)
        assert other.epsilon_share is not None
        assert row.epsilon_share.value == other.epsilon_share.value


def test_coordinates_without_gradient_and_below_epsilon_are_counted() -> None:
    gradients = torch.tensor([[0.0, 1e-10, 1e-3, 1.0]]).repeat(20, 1)
    row = _stepped(gradients)
    assert (row.untouched.value, row.epsilon_share.value) == (0.25, 0.5)
    nothing = _stepped(torch.zeros(3, 4))
    assert nothing.signal.how == "v is zero throughout: no gradient ever came"
    assert nothing.rates[2] == pytest.approx(0.01 / 1e-8)


def test_amsgrad_takes_the_largest_second_moment() -> None:
    gradients = torch.cat([10 * torch.ones(1, 2), torch.ones(50, 2)])
    quick = _stepped(gradients, betas=(0.9, 0.9))
    assert _stepped(gradients, betas=(0.9, 0.9), amsgrad=True).rates[2] < quick.rates[2] / 2


def test_groups_names_and_optimizers_of_another_kind() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = [
        {"params": [(f"0.{name}", p) for name, p in model[0].named_parameters()]},
        {"params": [(f"1.{name}", p) for name, p in model[1].named_parameters()], "lr": 0.5},
    ]
    adam = torch.optim.Adam(groups, lr=0.1)
    model(torch.randn(3, 2)).sum().backward()
    adam.step()
    rows = adam_state(adam.state_dict()).rows
    assert [(row.parameter, row.lr) for row in rows] == [
        ("0.weight", 0.1),
        ("0.bias", 0.1),
        ("1.weight", 0.5),
        ("1.bias", 0.5),
    ]
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sgd.step()
    assert adam_state(sgd.state_dict()).rows == []
    assert str(adam_state(sgd.state_dict())) == "no moments of Adam's kind"
    assert adam_state(torch.optim.Adam(model.parameters()).state_dict()).rows == [], "before the first step"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exp_avg": torch.tensor([math.nan, 1.0])}, "moments that are not finite"),
        ({"exp_avg_sq": torch.tensor([-1.0, 1.0])}, "a negative second moment"),
        ({"exp_avg_sq": torch.ones(3)}, "no pair of moments of one shape"),
        ({"exp_avg": "text"}, "no pair of moments of one shape"),
        ({"step": torch.tensor(0.0)}, "no step was taken"),
        ({"exp_avg": torch.ones(2, device="meta")}, "moments without values"),
    ],
)
def test_damaged_moments_say_so(changes: dict[str, Any], words: str) -> None:
    entry = {"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2), "step": torch.tensor(3.0)} | changes
    group = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "params": [0]}
    (row,) = adam_state({"state": {0: entry}, "param_groups": [group]}).rows
    assert row.note == words
    assert not row.signal.determined
    assert words in str(adam_state({"state": {0: entry}, "param_groups": [group]}))


@pytest.mark.parametrize("given", [None, {}, {"state": {}}, {"state": 3, "param_groups": []}])
def test_refusals(given: Any) -> None:
    with pytest.raises(DiagnosticsError, match="optimizer_state is no optimizer's state dict"):
        adam_state(given)


@pytest.mark.parametrize("settings", [{"betas": None}, {"lr": "fast"}, {"params": 3}])
def test_groups_that_hold_something_else(settings: dict[str, Any]) -> None:
    entry = {"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2), "step": torch.tensor(3.0)}
    group = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "params": [0]} | settings
    with pytest.raises(DiagnosticsError, match="optimizer_state cannot be read; given: "):
        adam_state({"state": {0: entry}, "param_groups": [group]})


def test_the_table_prints_and_turns_into_pandas() -> None:
    pytest.importorskip("pandas")
    weight = nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([weight])
    weight.grad = torch.ones(3)
    adam.step()
    table = adam_state(adam.state_dict())
    assert {"rate_05", "rate_50", "signal", "epsilon_share"} <= set(table.to_pandas().columns)
    assert str(table).splitlines()[0].split()[:3] == ["parameter", "step", "rate"]


def test_pieces_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = torch.randn(12, 9, 14)
    whole = _stepped(gradients)
    monkeypatch.setattr("diagnostics.weights.blocks.BLOCK", 5)
    pieces = _stepped(gradients)
    assert pieces.signal.value == pytest.approx(whole.signal.value, rel=1e-12)
    assert (pieces.rates, pieces.epsilon_share, pieces.untouched) == (whole.rates, whole.epsilon_share, whole.untouched)
