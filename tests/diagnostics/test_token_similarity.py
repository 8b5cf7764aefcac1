"""Token similarity: planted tokens, a loop over pairs, axes and masks; deep attention collapses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Objective, token_similarity
from tests.cases import CASES


class Block(nn.Module):
    """Attention of one head, alone or as half of a transformer block."""

    def __init__(self, width: int, whole: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 1, bias=False, batch_first=True)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        if not self.whole:
            return self.attention(x, x, x, need_weights=False)[0]
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.second(x))


class Pass(nn.Module):
    """Puts out what it is given; its part makes it a block."""

    def __init__(self, part: nn.Module | None = None) -> None:
        super().__init__()
        self.part = part or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x


def passing(part: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(Pass(part), Pass(part))


def pairwise(tokens: Tensor) -> float:
    """The mean cosine, pair by pair."""
    count = len(tokens)
    cosines = [
        float(tokens[i] @ tokens[j] / (tokens[i].norm() * tokens[j].norm()))
        for i in range(count)
        for j in range(count)
        if i != j
    ]
    return sum(cosines) / len(cosines)


@pytest.mark.parametrize("tokens", [2, 5])
def test_against_a_loop_over_pairs(tokens: int) -> None:
    x = torch.randn(4, tokens, 6, dtype=torch.float64) + 0.5
    row = token_similarity(passing(), x).rows[0]
    expected = torch.tensor([pairwise(sequence) for sequence in x], dtype=torch.float64)
    assert row.similarity.value == pytest.approx(float(expected.mean()), rel=1e-12)
    assert float(expected.std()) / 2 <= row.similarity.error <= float(expected.std()), "four draws, Student's interval"
    residuals = [float((one - one.mean(0)).norm() / one.norm()) for one in x]
    assert row.residual.value == pytest.approx(sum(residuals) / 4, rel=1e-12)
    assert (row.layer, row.sequences, row.tokens) == ("0", 4, 4 * tokens)


def test_planted_tokens() -> None:
    """All the same, all orthogonal, and in two opposite ways."""
    same = torch.ones(3, 4, 8) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    row = token_similarity(passing(), same).rows[0]
    assert (row.similarity.value, row.residual.value) == pytest.approx((1.0, 0.0))
    orthogonal = token_similarity(passing(), torch.eye(4).repeat(2, 1, 1)).rows[0]
    assert (orthogonal.similarity.value, orthogonal.residual.value) == pytest.approx((0.0, math.sqrt(3 / 4)))
    opposite = torch.tensor([[[1.0], [-1.0]]]).repeat(3, 1, 1)
    assert token_similarity(passing(), opposite).rows[0].similarity.value == pytest.approx(-1.0)


def test_one_sequence_is_exact_and_one_token_says_nothing() -> None:
    assert token_similarity(passing(), torch.randn(1, 5, 3)).rows[0].similarity.kind == "exact"
    row = token_similarity(passing(), torch.randn(4, 1, 3)).rows[0]
    assert not row.similarity.determined
    assert "no sequence has two tokens" in row.similarity.how
    assert (row.sequences, row.tokens) == (0, 0)


def test_axes_of_channels_and_of_batches_that_come_second() -> None:
    images = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    row = token_similarity(passing(nn.Conv2d(4, 4, 1)), images).rows[0]
    flat = token_similarity(passing(), images.flatten(2).transpose(1, 2)).rows[0]
    assert row.similarity.value == pytest.approx(flat.similarity.value)
    assert (row.sequences, row.tokens) == (3, 90)
    x = torch.randn(7, 3, 8, dtype=torch.float64)
    second = token_similarity(passing(nn.MultiheadAttention(8, 2)), x).rows[0]
    first = token_similarity(passing(nn.MultiheadAttention(8, 2, batch_first=True)), x.transpose(0, 1)).rows[0]
    assert (second.similarity, second.sequences) == (first.similarity, 3)
    channels_last = token_similarity(passing(nn.Linear(6, 6)), images).rows[0]
    assert channels_last.tokens == 3 * 4 * 5


def test_padding_and_zero_tokens_do_not_count() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Pass()])

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.layers[0](x)

    x = torch.randn(2, 6, 3, dtype=torch.float64)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, 4:] = 0
    expected = (pairwise(x[0, :4]) + pairwise(x[1])) / 2
    row = token_similarity(Masked(), {"x": x, "attention_mask": mask}).rows[0]
    assert row.similarity.value == pytest.approx(expected)
    assert row.tokens == 10
    x[0, 4:] = 0.0
    assert token_similarity(passing(), x).rows[0].similarity.value == pytest.approx(expected)


def test_deep_attention_collapses_and_whole_blocks_do_not() -> None:
    """The healthy control has residual connections, MLPs and normalisation around the same attention."""
    x = torch.randn(8, 16, 32)
    alone, whole = (nn.Sequential(*[Block(32, kind) for _ in range(12)]) for kind in (False, True))
    collapsed, healthy = (token_similarity(model, x).rows for model in (alone, whole))
    assert [row.layer for row in collapsed] == [str(index) for index in range(12)]
    assert collapsed[-1].similarity.value > 0.999
    assert collapsed[-1].residual.value < 1e-3
    residuals = [row.residual.value for row in collapsed]
    assert residuals == sorted(residuals, reverse=True), "every layer brings tokens closer"
    assert healthy[-1].similarity.value < 0.5
    assert healthy[-1].residual.value > 0.5


def test_an_objective_over_ragged_batches_is_like_one_whole_batch() -> None:
    x = torch.randn(9, 4, 8)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)
    pieces = token_similarity(model, Objective(model, nn.MSELoss(), [(part, part) for part in x.split([1, 5, 3])]))
    for one, other in zip(token_similarity(model, x).rows, pieces.rows, strict=True):
        assert one.similarity.value == pytest.approx(other.similarity.value, rel=1e-5)
        assert (one.sequences, one.tokens) == (other.sequences, other.tokens)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_model_of_the_cases_can_be_watched_and_nothing_is_left_behind(case: object) -> None:
    objective = case.objective()
    model = objective.model.train()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    buffers, state = [buffer.clone() for buffer in model.buffers()], torch.get_rng_state()
    token_similarity(model, objective)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert all(module.training for module in model.modules())
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(tensor.grad is None for tensor in model.parameters())


def test_the_table_prints_and_turns_into_pandas() -> None:
    pytest.importorskip("pandas")
    table = token_similarity(passing(), torch.randn(3, 4, 5))
    assert table.to_pandas()["layer"].tolist() == ["0", "1"]
    assert str(table).splitlines()[0].split() == ["layer", "similarity", "residual", "sequences", "tokens"]
    assert repr(table) == str(table)
    assert str(token_similarity(nn.Linear(2, 2), torch.randn(3, 2))) == "no block that puts out sequences was seen"
    assert token_similarity(passing(), torch.randn(3, 4)).rows == [], "no sequences"


def test_refusals() -> None:
    x = torch.randn(3, 4, 5)
    x[0, 0, 0] = math.nan
    with pytest.raises(DiagnosticsError, match="the values at '0' are not finite; given: 1 of 60 values"):
        token_similarity(passing(), x)
    with pytest.raises(DiagnosticsError, match="batch cannot be run"):
        token_similarity(passing(), 3)
