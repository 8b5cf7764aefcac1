"""Ranks along depth: planted ranks are found where they are, blocks as well as non-linearities, and nothing stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Objective, feature_rank, layer_ranks
from diagnostics.blocks import blocks
from tests.cases import CASES
from tests.cases.language import gpt2, t5


def deep(bottleneck: int | None = None) -> nn.Sequential:
    """Four linear layers with leaky units, of which the second may be of low rank."""
    parts = [part for _ in range(4) for part in (nn.Linear(24, 24, bias=False), nn.LeakyReLU(0.9))]
    model = nn.Sequential(*parts)
    for layer in model[::2]:
        nn.init.orthogonal_(layer.weight)
    if bottleneck is not None:
        with torch.no_grad():
            model[2].weight[bottleneck:] = 0.0
    return model


def test_a_bottleneck_shows_where_it_is_and_a_healthy_network_keeps_its_rank() -> None:
    x = torch.randn(1000, 24)
    for row in layer_ranks(deep(), x).rows:
        assert row.rank.srank.value >= 22
        assert row.rank.effective_rank.value > 20
    ranks = [row.rank.srank.value for row in layer_ranks(deep(3), x).rows]
    assert ranks[0] >= 22
    assert ranks[1] == 3
    assert max(ranks[2:]) <= 12, "a non-linearity wins a little of it back"


def test_rows_are_the_ranks_of_what_the_network_puts_out() -> None:
    model, x = deep(), torch.randn(50, 24)
    table = layer_ranks(model, x, centred=True)
    assert [(row.layer, row.kind) for row in table.rows] == [(place, "leaky relu") for place in "1357"]
    expected = feature_rank(model(x), centred=True)
    torch.testing.assert_close(table.rows[-1].rank.singular_values, expected.singular_values)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.norm(self.conv(x)))


class Numbered(nn.Module):
    """Blocks as attributes, each with heads that run side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2 = Heads(), Heads()
        self.first, self.second = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.block2(self.block1(x))))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return sum(head(x) for head in self.heads), None


def test_blocks_are_what_repeats_in_depth() -> None:
    stages = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(Residual(4), Residual(4)), nn.Sequential(Residual(4), Residual(4))
    )
    assert list(blocks(stages)) == ["1.0", "1.1", "2.0", "2.1"]
    assert list(blocks(nn.Sequential(Residual(4), Residual(4)))) == ["0", "1"]
    assert list(blocks(Numbered())) == ["block1", "block2"]
    assert list(blocks(t5())) == ["encoder.block.0", "decoder.block.0"], "stacks hold blocks, and are none"
    assert list(blocks(gpt2())) == ["transformer.h.0"]
    assert list(blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))) == []


def test_units_of_blocks_are_channels_after_convolutions_and_features_of_tokens() -> None:
    image = nn.Sequential(nn.Conv2d(3, 4, 3), Residual(4), Residual(4))
    rows = layer_ranks(image, torch.randn(5, 3, 9, 8)).rows
    assert [(row.layer, row.kind, row.rank.units, row.positions) for row in rows] == [
        *[("1.tanh", "tanh", 4, 5 * 7 * 6), ("1", "block", 4, 5 * 7 * 6)],
        *[("2.tanh", "tanh", 4, 5 * 7 * 6), ("2", "block", 4, 5 * 7 * 6)],
    ]
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
    found = [row for row in layer_ranks(encoder, torch.randn(5, 3, 8)).rows if row.kind == "block"]
    assert [(row.layer, row.rank.units, row.positions) for row in found] == [("layers.0", 8, 15), ("layers.1", 8, 15)]


def test_a_block_that_ends_in_a_non_linearity_is_one_place_and_one_used_twice_is_two() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for layer in (*self.layers, *self.layers):
                x = layer(x)
            return x

    rows = layer_ranks(Twice(), torch.randn(9, 4)).rows
    assert [(row.layer, row.kind) for row in rows] == [
        (name, "relu") for name in ("layers.0.1", "layers.1.1", "layers.0.1#2", "layers.1.1#2")
    ]


def test_many_positions_are_drawn_alike_every_time_and_few_are_all_taken() -> None:
    model, x = deep(), torch.randn(500, 24)
    first, again = (layer_ranks(model, x, samples=100) for _ in range(2))
    assert [row.rank.samples for row in first.rows] == [100] * 4
    assert [row.positions for row in first.rows] == [500] * 4
    assert str(first) == str(again)
    assert layer_ranks(model, x).rows[0].rank.samples == 500


def test_an_objective_over_ragged_batches_is_like_one_whole_batch() -> None:
    model, x = deep(3), torch.randn(90, 24)
    whole = layer_ranks(model, x)
    batches = [(part, part) for part in x.split([1, 40, 49])]
    pieces = layer_ranks(model, Objective(model, nn.MSELoss(), batches))
    for one, other in zip(whole.rows, pieces.rows, strict=True):
        torch.testing.assert_close(one.rank.singular_values, other.rank.singular_values, rtol=1e-5, atol=1e-4)


def test_a_dead_layer_has_no_rank_and_its_row_says_so() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Tanh())
    nn.init.constant_(model[0].bias, -100.0)
    first, second = layer_ranks(model, torch.randn(20, 4)).rows
    assert "all zero" in first.rank.srank.how
    assert second.rank.srank.value == 1, "nothing but the bias comes through"
    assert str(layer_ranks(model, torch.randn(20, 4))).splitlines()[1].split()[-6:] == ["-"] * 6


def test_the_table_prints_and_turns_into_pandas() -> None:
    pytest.importorskip("pandas")
    table = layer_ranks(deep(), torch.randn(30, 24), centred=True)
    frame = table.to_pandas()
    assert frame["layer"].tolist() == list("1357")
    assert frame.loc[0, "srank"] == table.rows[0].rank.srank.value
    assert str(table).splitlines()[-1].startswith("(the mean")
    assert repr(table) == str(table)
    empty = layer_ranks(nn.Linear(2, 2), torch.randn(3, 2))
    assert str(empty) == "no non-linearity and no block was seen"
    assert list(empty.to_pandas().columns) == list(frame.columns)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_model_of_the_cases_can_be_watched_and_nothing_is_left_behind(case: object) -> None:
    objective = case.objective()
    model = objective.model.train()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    buffers, state = [buffer.clone() for buffer in model.buffers()], torch.get_rng_state()
    layer_ranks(model, objective)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert all(module.training for module in model.modules())
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(tensor.grad is None for tensor in model.parameters())


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_with_their_place(damage: float) -> None:
    model = deep()
    with torch.no_grad():
        model[2].weight[0, 0] = damage
    with pytest.raises(DiagnosticsError, match="the values at '3' are not finite; given: 20 of 480 values"):
        layer_ranks(model, torch.randn(20, 24))
    assert layer_ranks(deep(), torch.randn(20, 24)).rows


def test_refusals() -> None:
    with pytest.raises(DiagnosticsError, match="samples is out of range; given: 0"):
        layer_ranks(deep(), torch.randn(20, 24), samples=0)
    with pytest.raises(DiagnosticsError, match="batch cannot be run"):
        layer_ranks(deep(), 3)
