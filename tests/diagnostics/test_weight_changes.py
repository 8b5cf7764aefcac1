"""Which tensors moved between checkpoints: frozen ones are found, and healthy ones are not accused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, weight_changes

State = dict[str, Tensor]


def _trained(frozen: tuple[str, ...] = (), checkpoints: int = 3) -> list[State]:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    held = [parameter for name, parameter in model.named_parameters() if name not in frozen]
    optimizer = torch.optim.SGD(held, lr=0.1)
    states = []
    for _ in range(checkpoints):
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
    return states


def test_tensors_that_the_optimizer_does_not_hold_are_unchanged() -> None:
    frozen = ("0.weight", "3.bias")
    found = weight_changes(_trained(frozen))
    assert {row.name for row in found.rows if row.unchanged} == set(frozen)
    assert {row.changed for row in found.rows if row.name not in frozen} == {2}


def test_a_healthy_run_has_none() -> None:
    assert not any(row.unchanged for row in weight_changes(_trained()).rows)


def test_relative_changes_and_counts_by_hand() -> None:
    first = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor(2.0), "zero": torch.zeros(2), "back": torch.ones(1)}
    second = {**first, "a": torch.tensor([3.0, 5.0]), "back": torch.zeros(1)}
    third = {**second, "a": torch.tensor([3.0, 5.0]), "b": torch.tensor(3.0), "back": torch.ones(1)}
    rows = {row.name: row for row in weight_changes([first, second, third]).rows}
    assert {name: row.changed for name, row in rows.items()} == {"a": 1, "b": 1, "zero": 0, "back": 2}
    values = {name: row.relative.value for name, row in rows.items()}
    assert values == {"a": pytest.approx(0.2), "b": 0.5, "zero": 0.0, "back": 0.0}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e5m2, torch.int64, torch.complex64])
def test_every_dtype_and_layout(dtype: torch.dtype) -> None:
    before = torch.ones(6, 5).to(dtype)
    after = before.clone()
    after.view(torch.uint8).view(-1)[7] ^= 3
    assert weight_changes([{"w": before}, {"w": before.clone()}]).rows[0].unchanged
    assert not weight_changes([{"w": before}, {"w": after}]).rows[0].unchanged
    assert weight_changes([{"w": before.t()}, {"w": before.clone().t().contiguous()}]).rows[0].unchanged


def test_the_pieces_of_a_large_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diagnostics.weights.blocks.BLOCK", 7)
    before, after = torch.randn(5, 17), torch.randn(5, 17)
    row = weight_changes([{"w": before}, {"w": after}]).rows[0]
    assert row.relative.value == pytest.approx(float((after - before).double().norm() / before.double().norm()))


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200])
def test_a_change_is_relative_at_every_scale(scale: float) -> None:
    before = scale * torch.tensor([3.0, 4.0], dtype=torch.float64)
    row = weight_changes([{"w": before}, {"w": 1.5 * before}]).rows[0]
    assert row.relative.value == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3), (0, 0)])
def test_tensors_without_entries_stay_what_they_are(shape: tuple[int, ...]) -> None:
    row = weight_changes([{"w": torch.zeros(shape)}, {"w": torch.zeros(shape)}]).rows[0]
    assert (row.unchanged, row.relative.value) == (True, 0.0)


def test_views_are_compared_by_what_they_say() -> None:
    """A conjugate and a negative are flags on a tensor whose memory holds something else."""
    z = torch.randn(3, 4, dtype=torch.complex64)
    assert weight_changes([{"w": z.conj()}, {"w": z.conj().resolve_conj()}]).rows[0].unchanged
    assert not weight_changes([{"w": z.conj()}, {"w": z}]).rows[0].unchanged
    assert weight_changes([{"w": z.conj().imag}, {"w": z.conj().imag.resolve_neg()}]).rows[0].unchanged


def test_bits_that_are_no_numbers_are_compared_and_have_no_size() -> None:
    packed = torch.arange(16, dtype=torch.uint8).view(4, 4)
    rows = weight_changes(
        [{"w": packed.view(torch.float4_e2m1fn_x2)}, {"w": (packed + 1).view(torch.float4_e2m1fn_x2)}]
    )
    assert rows.rows[0].changed == 1
    assert rows.rows[0].relative.how.startswith("could not be read as numbers")


def test_nan_is_the_same_as_itself_and_has_no_size() -> None:
    state = {"w": torch.tensor([1.0, math.nan])}
    row = weight_changes([state, {"w": state["w"].clone()}]).rows[0]
    assert row.unchanged
    assert (row.relative.determined, row.relative.how) == (False, "not finite")


def test_what_cannot_be_compared_says_why() -> None:
    first = {"gone": torch.ones(2), "grown": torch.ones(2), "sparse": torch.eye(2).to_sparse(), "born": torch.zeros(2)}
    second = {"grown": torch.ones(3), "sparse": torch.eye(2).to_sparse(), "new": torch.ones(1), "born": torch.ones(2)}
    rows = {row.name: row for row in weight_changes([first, second]).rows}
    assert {name: row.note for name, row in rows.items()} == {
        "gone": "not in every checkpoint",
        "grown": "its shape or dtype changes",
        "sparse": "no dense tensor with values",
        "born": "",
    }
    assert rows["born"].relative.how == "it was all zero at first"
    assert not any(row.unchanged for row in rows.values())
    assert "its shape or dtype changes" in str(weight_changes([first, second]))
    assert weight_changes([{"w": torch.zeros(0)}, {"w": torch.zeros(0)}]).rows[0].unchanged


@pytest.mark.parametrize("given", [[], [{}], {}, [{}, 3], None])
def test_refusals(given: Any) -> None:
    with pytest.raises(DiagnosticsError, match="state_dicts cannot be compared"):
        weight_changes(given)


def test_the_table_turns_into_pandas() -> None:
    pytest.importorskip("pandas")
    frame = weight_changes(_trained(("3.bias",))).to_pandas()
    assert frame.set_index("name").loc["3.bias", "changed"] == 0
