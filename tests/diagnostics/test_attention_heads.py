"""Heads of attention: closed forms, a loop over every mask, planted heads, and what does not count."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import DiagnosticsError, HeadAttention, Objective, attention_heads
from diagnostics.units import attention_tally
from tests.reference.attention_loops import heads_by_loops

BATCH, HEADS, ROWS, WIDTH = 3, 4, 6, 5
FAR = float("-inf")


class Fused(nn.Module):
    """Scaled dot-product attention of what it is handed, with settings."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        k, v = q if k is None else k, q if v is None else v
        return F.scaled_dot_product_attention(q, k, v, **self.settings)


def _zeros(rows: int = 16) -> Tensor:
    return torch.zeros(2, 3, rows, 4)


def _lower(rows: int, keys: int) -> Tensor:
    return torch.ones(rows, keys).tril().bool()


@pytest.mark.parametrize(
    ("settings", "entropy"),
    [
        ({}, 2.77259),
        ({"is_causal": True}, 1.91699),
        ({"attn_mask": _lower(16, 16)}, 1.91699),
        ({"attn_mask": torch.zeros(16, 16).masked_fill(~_lower(16, 16), FAR)}, 1.91699),
        ({"attn_mask": torch.zeros(16, 16).masked_fill(~_lower(16, 16), torch.finfo(torch.float32).min)}, 1.91699),
        ({"attn_mask": torch.zeros(16, 16).masked_fill(~_lower(16, 16), -10_000.0)}, 1.91699),
    ],
)
def test_closed_forms_of_uniform_attention(settings: dict[str, Any], entropy: float) -> None:
    for row in attention_heads(Fused(**settings), _zeros()).rows:
        assert row.entropy.value == pytest.approx(entropy, abs=1e-5)
        assert row.relative_entropy.value == pytest.approx(1.0)
        assert (row.verdict, row.max_logit.value, row.sink_key) == ("uniform", 0.0, 0)


def test_attention_to_one_key_has_no_entropy_and_is_called_collapsed() -> None:
    q = torch.ones(2, 3, 16, 4)
    k = torch.zeros(2, 3, 16, 4)
    k[:, :, 5] = 100.0
    row, *_ = attention_heads(Fused(), {"q": q, "k": k, "v": q}).rows
    assert row.entropy.value == pytest.approx(0.0, abs=1e-12)
    assert (row.sink_share.value, row.sink_key, row.verdict) == (1.0, 5, "collapsed")
    assert (row.max_logit.value, row.max_product.value) == (200.0, 400.0)


def test_each_query_on_a_key_of_its_own_is_sharp_and_not_collapsed() -> None:
    """As of heads that look at the token before."""
    q = 20 * torch.eye(16).expand(2, 3, 16, 16)
    row, *_ = attention_heads(Fused(), q).rows
    assert row.entropy.value == pytest.approx(0.0, abs=1e-6)
    assert (row.sink_share.value, row.verdict) == (pytest.approx(1 / 16), "")


def _masks() -> dict[str, tuple[dict[str, Any], Tensor]]:
    """Settings, and the bias (B, H, T, S) that they stand for."""
    none = torch.zeros(BATCH, HEADS, ROWS, ROWS, dtype=torch.float64)
    causal = none.masked_fill(~_lower(ROWS, ROWS), FAR)
    padding = torch.ones(BATCH, 1, 1, ROWS, dtype=torch.bool)
    padding[0, ..., 4:], padding[1, ..., :2] = False, False
    random = torch.randn(BATCH, HEADS, ROWS, ROWS, dtype=torch.float64)
    some = torch.rand(BATCH, 1, ROWS, ROWS) < 0.5
    some[..., 3, :] = False
    return {
        "none": ({}, none),
        "causal": ({"is_causal": True}, causal),
        "padding": ({"attn_mask": padding}, none.masked_fill(~padding, FAR)),
        "causal and padding": (
            {"attn_mask": padding & _lower(ROWS, ROWS)},
            none.masked_fill(~(padding & _lower(ROWS, ROWS)), FAR),
        ),
        "bias": ({"attn_mask": random}, random),
        "bias with holes": ({"attn_mask": random.masked_fill(~padding, FAR)}, random.masked_fill(~padding, FAR)),
        "queries without keys": ({"attn_mask": some}, none.masked_fill(~some, FAR)),
    }


def _compare(rows: list[HeadAttention], expected: list[Any]) -> None:
    assert len(rows) == len(expected)
    for row, head in zip(rows, expected, strict=True):
        assert row.entropy.value == pytest.approx(head.entropy, rel=1e-10)
        assert row.relative_entropy.value == pytest.approx(head.relative, rel=1e-10)
        assert (row.sink_share.value, row.sink_key) == (pytest.approx(head.sink, rel=1e-10), head.key)
        assert row.max_logit.value == pytest.approx(head.max_logit, rel=1e-10)
        if row.max_product.determined:
            assert row.max_product.value == pytest.approx(head.max_product, rel=1e-10)
        assert row.output_share.value == pytest.approx(head.output, rel=1e-10)


@pytest.mark.parametrize("name", _masks())
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("chunk", [1, 10**9])
def test_every_mask_against_a_loop(name: str, groups: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with one query at a time, and with key heads that are shared; queries without keys make no NaN."""
    monkeypatch.setattr(attention_tally, "_CHUNK", chunk)
    settings, bias = _masks()[name]
    q = 2 * torch.randn(BATCH, HEADS, ROWS, WIDTH, dtype=torch.float64)
    k, v = torch.randn(2, BATCH, HEADS // groups, ROWS, WIDTH, dtype=torch.float64)
    model = Fused(**settings, scale=0.7, enable_gqa=groups > 1)
    _compare(attention_heads(model, {"q": q, "k": k, "v": v}).rows, heads_by_loops(q, k, v, bias, 0.7))


def test_more_keys_than_queries_and_a_causal_mask_from_the_top_left() -> None:
    q = torch.randn(BATCH, HEADS, 3, WIDTH, dtype=torch.float64)
    k, v = torch.randn(2, BATCH, HEADS, 7, WIDTH, dtype=torch.float64)
    bias = torch.zeros(BATCH, HEADS, 3, 7).masked_fill(~_lower(3, 7), FAR)
    rows = attention_heads(Fused(is_causal=True), {"q": q, "k": k, "v": v}).rows
    _compare(rows, heads_by_loops(q, k, v, bias, WIDTH**-0.5))


def test_half_precision_is_worked_out_in_float32() -> None:
    q = torch.randn(2, 2, 8, 4, dtype=torch.bfloat16)
    row, other = attention_heads(Fused(), q).rows
    bias = torch.zeros(2, 2, 8, 8)
    expected = heads_by_loops(q.double(), q.double(), q.double(), bias, 0.5)
    assert row.entropy.value == pytest.approx(expected[0].entropy, rel=1e-5)
    assert other.max_logit.value == pytest.approx(expected[1].max_logit, rel=1e-5)


def test_long_sequences_are_sampled_and_say_so() -> None:
    q = torch.randn(1, 1, 2500, 4)
    (row,) = attention_heads(Fused(), q).rows
    assert "1,024 queries of 1 sequences, at most 1,024 evenly spaced ones of each" in row.entropy.how
    chosen = torch.linspace(0, 2499, 1024, dtype=torch.float64).round().long()
    attention = (q[0, 0, chosen] @ q[0, 0].T / 2).softmax(-1)
    assert row.entropy.value == pytest.approx(float(-(attention * attention.log()).sum(-1).mean()), rel=1e-4)


def test_the_error_is_that_of_a_mean_over_sequences() -> None:
    q = torch.randn(40, 1, 8, 4, dtype=torch.float64)
    (row,) = attention_heads(Fused(), q).rows
    each = [attention_heads(Fused(), one[None]).rows[0].entropy.value for one in q]
    assert row.entropy.error == pytest.approx(
        float(torch.tensor(each, dtype=torch.float64).std()) / math.sqrt(40), rel=1e-9
    )
    assert math.isnan(attention_heads(Fused(), q[:1]).rows[0].entropy.error), "one sequence knows no spread"


def test_batches_of_an_objective_are_taken_together() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.3)
    x, y = torch.randn(6, 5, 8), torch.randn(6, 5, 8)
    whole = attention_heads(model, x).rows
    cut = [(x[:1], y[:1]), (x[1:], y[1:])]
    for row, other in zip(attention_heads(model, Objective(model, nn.MSELoss(), cut)).rows, whole, strict=True):
        assert row.entropy.value == pytest.approx(other.entropy.value, rel=1e-6)
        assert row.entropy.error == pytest.approx(other.entropy.error, rel=1e-5)
        assert row.output_share.value == pytest.approx(other.output_share.value, rel=1e-6)


def test_a_head_whose_output_is_not_used_is_dead_and_a_layer_without_any_output_is_undetermined() -> None:
    model = nn.MultiheadAttention(12, 4, batch_first=True)

    def run() -> list[HeadAttention]:
        return attention_heads(Self(model), torch.randn(3, 7, 12)).rows

    with torch.no_grad():
        model.out_proj.weight[:, 3:6] = 0.0
    rows = run()
    assert [row.verdict == "dead" for row in rows] == [False, True, False, False]
    assert "after the output projection" in rows[1].output_share.how
    assert sum(row.output_share.value for row in rows) == pytest.approx(1.0)
    with torch.no_grad():
        model.out_proj.weight.zero_()
    rows = run()
    assert {row.verdict == "dead" for row in rows} == {False}, "as at a start with zeros: no head is behind the others"
    assert not rows[0].output_share.determined


class Self(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
@pytest.mark.parametrize("weights", [True, False])
def test_scores_that_are_not_finite_are_refused(damage: float, weights: bool) -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    x[0, 1, 2] = damage
    inner = Self(model)
    inner.forward = lambda x: model(x, x, x, need_weights=weights)[0]
    with pytest.raises(DiagnosticsError, match=r"the attention scores at 'attention' are not finite; given: .* NaN or"):
        attention_heads(inner, x)


def test_one_key_for_every_query_leaves_the_share_undetermined() -> None:
    (row,) = attention_heads(Fused(), torch.randn(2, 1, 1, 4)).rows
    assert row.entropy.value == 0.0
    assert not row.relative_entropy.determined
    assert row.verdict == ""
    hidden = Fused(attn_mask=torch.zeros(1, 1, 3, 3, dtype=torch.bool))
    (row,) = attention_heads(hidden, torch.randn(2, 1, 3, 4)).rows
    assert (row.entropy.how, row.verdict) == ("no query had a key", "")


def test_the_table_prints_and_turns_into_pandas() -> None:
    pytest.importorskip("pandas")
    table = attention_heads(Fused(), _zeros())
    frame = table.to_pandas()
    assert frame.loc[0, "entropy"] == pytest.approx(2.77259, abs=1e-5)
    assert str(table).splitlines()[1].split() == [
        *("attention", "0", "2.773", "1.000", "0.062", "0", "0", "nan", "uniform"),
    ]
    assert str(attention_heads(nn.Linear(2, 2), torch.randn(3, 2))) == "no attention was seen"
    assert repr(table) == str(table)


def test_refusals() -> None:
    with pytest.raises(DiagnosticsError, match="batch cannot be run; given: int"):
        attention_heads(Fused(), 3)
    data = (torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(DiagnosticsError, match="the objective was built on another model"):
        attention_heads(Fused(), Objective(nn.Linear(2, 2), nn.MSELoss(), data))
