"""Non-linearities are seen however they are written, once each, on the right axis, and nothing stays behind."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import UnitActivity, unit_activity
from tests.cases import CASES

DEAD = 3


class Written(nn.Module):
    """A linear layer with three dead units and a non-linearity given as a function."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 8)
        self.function = function
        with torch.no_grad():
            self.linear.weight[:DEAD] = 0.0
            self.linear.bias[:DEAD] = -20.0

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


def _into(buffer_function: object) -> object:
    def call(z: Tensor) -> Tensor:
        out = torch.empty_like(z)
        buffer_function(z, out=out)
        return out

    return call


def _names(table: UnitActivity) -> list[str]:
    return [row.layer for row in table.rows]


@pytest.mark.parametrize(
    ("function", "place", "flat"),
    [
        (nn.ReLU(), "function", "dead"),
        (nn.ReLU(inplace=True), "function", "dead"),
        (F.relu, "relu", "dead"),
        (lambda z: F.relu(z, inplace=True), "relu", "dead"),
        (lambda z: F.relu(input=z), "relu", "dead"),
        (torch.relu, "relu", "dead"),
        (torch.relu_, "relu", "dead"),
        (lambda z: z.relu(), "relu", "dead"),
        (lambda z: z.relu_(), "relu", "dead"),
        (F.gelu, "gelu", "dead"),
        (lambda z: F.gelu(z, approximate="tanh"), "gelu", "dead"),
        (F.silu, "silu", "dead"),
        (lambda z: F.silu(z, inplace=True), "silu", "dead"),
        (F.mish, "mish", "dead"),
        (F.softplus, "softplus", "dead"),
        (F.hardswish, "hardswish", "dead"),
        (lambda z: F.elu(z, 0.7, True), "elu", "saturated"),
        (lambda z: F.leaky_relu(z, negative_slope=0.01), "leaky relu", "saturated"),
        (torch.tanh, "tanh", "saturated"),
        (lambda z: z.tanh(), "tanh", "saturated"),
        (lambda z: z.tanh_(), "tanh", "saturated"),
        (_into(torch.tanh), "tanh", "saturated"),
        (torch.sigmoid, "sigmoid", "saturated"),
        (lambda z: z.sigmoid(), "sigmoid", "saturated"),
        (nn.Sigmoid(), "function", "saturated"),
        (nn.PReLU(8, init=0.01), "function", "saturated"),
    ],
)
def test_every_spelling_is_one_row_with_the_planted_units(function: object, place: str, flat: str) -> None:
    (row,) = unit_activity(Written(function), torch.randn(40, 5)).rows
    assert row.layer == place
    assert getattr(row, flat) == DEAD
    assert {row.dead, row.saturated} == {0, DEAD}


@pytest.mark.parametrize(
    ("layer", "shape", "samples"),
    [
        (nn.Conv1d(4, 6, 3), (5, 4, 9), 5 * 7),
        (nn.Conv2d(4, 6, 3), (5, 4, 9, 8), 5 * 7 * 6),
        (nn.Conv3d(4, 6, 2), (2, 4, 3, 4, 5), 2 * 2 * 3 * 4),
        (nn.ConvTranspose2d(4, 6, 2), (2, 4, 3, 4), 2 * 4 * 5),
        (nn.Conv1d(4, 6, 3), (4, 9), 7),
        (nn.Conv2d(4, 6, 3), (4, 9, 8), 7 * 6),
        (nn.Linear(4, 6), (5, 4), 5),
        (nn.Linear(4, 6), (5, 9, 4), 5 * 9),
        (nn.Linear(4, 6), (5, 9, 2, 4), 5 * 9 * 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_units_are_channels_after_convolutions_and_features_after_linear_layers(
    layer: nn.Module, shape: tuple[int, ...], samples: int
) -> None:
    """Sizes differ on every axis, so the wrong one would show."""
    with torch.no_grad():
        (layer.weight[:, :2] if isinstance(layer, nn.ConvTranspose2d) else layer.weight[:2]).zero_()
        layer.bias.copy_(torch.tensor([-1.0, -1.0, 5.0, 5.0, 5.0, 5.0]))
    (row,) = unit_activity(nn.Sequential(layer, nn.ReLU()), torch.randn(shape)).rows
    assert (row.units, row.samples, row.dead) == (6, samples, 2)


class SpeechLike(nn.Module):
    """Convolution over time, then layers that put the features last."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.middle = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), middle

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv(x))).transpose(1, 2)
        h = self.middle(h, h, h) if isinstance(self.middle, nn.MultiheadAttention) else self.middle(h)
        return torch.tanh(h[0] if isinstance(h, tuple) else h)


@pytest.mark.parametrize(
    "middle",
    [
        nn.LSTM(4, 4, batch_first=True),
        nn.GRU(4, 4, batch_first=True),
        nn.MultiheadAttention(4, 2, batch_first=True),
        nn.LayerNorm(4),
        nn.Linear(4, 4),
    ],
    ids=lambda middle: type(middle).__name__,
)
def test_the_axis_follows_the_last_layer_that_set_it(middle: nn.Module) -> None:
    first, second = unit_activity(SpeechLike(middle), torch.randn(2, 3, 13)).rows
    assert (first.units, first.samples) == (second.units, second.samples) == (4, 22)


def test_a_module_used_twice_is_two_sites_and_nested_ones_have_their_path() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.block(self.act(self.block(x)))) + F.relu(x) + F.relu(-x)

    table = unit_activity(Twice(), torch.randn(7, 4))
    assert _names(table) == ["block.1.1", "act", "block.1.1#2", "act#2", "relu", "relu#2"]
    assert all(row.samples == 7 for row in table.rows)


def test_gpt2_counts_its_written_out_gelu_once_per_block() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=9, n_positions=6, bos_token_id=0, eos_token_id=0)
    config.loss_type = "ForCausalLM"
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[:, :5] = 0.0
        model.transformer.h[1].mlp.c_fc.bias[:5] = -20.0
    table = unit_activity(model, {"input_ids": torch.randint(9, (4, 6))})
    assert [(row.layer, row.nonlinearity, row.units, row.samples, row.dead) for row in table.rows] == [
        ("transformer.h.0.mlp.act", "gelu", 32, 24, 0),
        ("transformer.h.1.mlp.act", "gelu", 32, 24, 5),
    ]


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_fused_path_of_the_transformer_encoder_hides_nothing(batch_first: bool) -> None:
    """In eval mode without gradients torch runs the whole layer as one kernel: no non-linearity would be seen."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    with torch.no_grad():
        model.layers[1].linear1.weight[:4] = 0.0
        model.layers[1].linear1.bias[:4] = -1.0
    x = torch.randn(3, 5, 8)
    rows = unit_activity(model, x).rows
    assert [(row.layer, row.units, row.samples) for row in rows] == [
        ("layers.0.relu", 16, 15),
        ("layers.1.relu", 16, 15),
    ]
    assert rows[1].dead == 4


def test_a_compiled_model_and_a_compiled_part_are_seen_through() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(9, 4)
    (plain,) = unit_activity(model, x).rows
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)
    assert unit_activity(compiled, x).rows == [plain]
    model[1] = torch.compile(nn.ReLU(), backend="aot_eager")
    with torch.no_grad():
        model(x)
    (part,) = unit_activity(model, x).rows
    assert (part.nonlinearity, part.dormant, part.dead) == ("relu", plain.dormant, plain.dead)


class Counting(nn.Module):
    """Begins in place, counts its calls in a buffer, and has dropout and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.norm, self.drop, self.linear = nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.relu(self.linear(self.drop(self.norm(x.relu_()))))


def _traces(model: nn.Module) -> list[object]:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
    numbers = torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()
    return [hooks, numbers, [buffer.tolist() for buffer in model.buffers()], [p.grad for p in model.parameters()]]


@pytest.mark.parametrize("wrong", [False, True])
def test_nothing_is_left_behind_on_model_or_batch_also_after_an_error(wrong: bool) -> None:
    model, x = Counting().train(), torch.randn(6, 3 if wrong else 4)
    model.norm.eval()
    model.linear.register_forward_hook(lambda *_: None)
    before, kept = _traces(model), x.clone()
    if wrong:
        with pytest.raises(RuntimeError):
            unit_activity(model, x)
    else:
        assert len(unit_activity(model, x).rows) == 2
    assert _traces(model) == before
    assert torch.equal(x, kept)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_model_of_the_cases_can_be_watched(case: object) -> None:
    """A tensor, a pair, a mapping and an Objective of the same data give the same table."""
    objective = case.objective()
    table = unit_activity(objective.model, objective)
    expected = 0 if case.name == "lstm" else 1
    assert len(table.rows) >= expected
    assert not table.without_gradients
    batch = objective.batches[0]
    forward = [replace(row, gradient_dormant=None, frozen=None) for row in table.rows]
    if case.name != "from_loss with dicts":
        assert unit_activity(objective.model, batch).rows == forward
    if isinstance(batch, tuple):
        assert unit_activity(objective.model, batch[0]).rows == forward
