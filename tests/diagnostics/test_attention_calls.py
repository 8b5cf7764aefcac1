"""Attention is seen however it is written, once, with the same numbers, and nothing else is taken for it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import AttentionHeads, attention_heads
from tests.reference.attention_loops import heads_by_loops

HEADS, WIDTH = 2, 4


class SelfAttention(nn.Module):
    """Causal self-attention with projections, in one of many spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8, bias=False)
        self.softmax, self.drop, self.spelling, self.num_heads = nn.Softmax(dim=-1), nn.Dropout(), spelling, HEADS
        self.register_buffer("bias", torch.ones(9, 9).tril().bool())

    def forward(self, x: Tensor) -> Tensor:
        batch, rows, _ = x.shape
        q, k, v = (part.view(batch, rows, HEADS, WIDTH).transpose(1, 2) for part in self.qkv(x).split(8, dim=2))
        y = self.attend(q, k, v, self.bias[:rows, :rows])
        return self.out(y.transpose(1, 2).contiguous().view(batch, rows, 8))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        if self.spelling == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if self.spelling == "sdpa by name":
            return F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mask)
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(WIDTH)
        scores = scores.masked_fill(~mask, float("-inf"))
        if self.spelling == "nanoGPT":
            return self.drop(F.softmax(scores, dim=-1)) @ v
        if self.spelling == "module":
            return torch.matmul(self.softmax(scores), v)
        if self.spelling == "method, cast, head mask":
            return scores.softmax(3).to(torch.float64).to(q.dtype).mul(torch.ones(1, HEADS, 1, 1)) @ v
        if self.spelling == "einsum":
            return torch.einsum("bhts, bhsd -> bhtd", torch.softmax(scores, -1), v)
        if self.spelling == "einsum, tokens first":
            return torch.einsum("bhts,bshd->bthd", torch.softmax(scores, -1), v.transpose(1, 2)).transpose(1, 2)
        if self.spelling == "flat":
            weights = torch.softmax(scores.flatten(0, 1), dim=-1)
            return torch.bmm(weights, v.flatten(0, 1)).unflatten(0, (-1, HEADS))
        assert self.spelling == "reshaped between"
        weights = torch.softmax(scores, dim=-1).flatten(0, 1)
        return torch.bmm(weights, v.flatten(0, 1)).unflatten(0, (-1, HEADS))


SPELLINGS = (
    "sdpa",
    "sdpa by name",
    "nanoGPT",
    "module",
    "method, cast, head mask",
    "einsum",
    "einsum, tokens first",
    "flat",
    "reshaped between",
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_one_attention_with_the_numbers_of_a_loop(spelling: str) -> None:
    model, x = SelfAttention(spelling).double().train(), torch.randn(3, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = (part.view(3, 6, HEADS, WIDTH).transpose(1, 2) for part in model.qkv(x).split(8, dim=2))
    bias = torch.zeros(3, HEADS, 6, 6).masked_fill(~torch.ones(6, 6).tril().bool(), float("-inf"))
    expected = heads_by_loops(q, k, v, bias, 0.5, model.out.weight.detach())
    rows = attention_heads(nn.Sequential(model), x).rows
    assert [(row.layer, row.head) for row in rows] == [("0", 0), ("0", 1)]
    for row, head in zip(rows, expected, strict=True):
        assert row.entropy.value == pytest.approx(head.entropy, rel=1e-9)
        assert row.max_logit.value == pytest.approx(head.max_logit, rel=1e-9)
        assert row.sink_share.value == pytest.approx(head.sink, rel=1e-9)
        assert row.output_share.value == pytest.approx(head.output, rel=1e-9)
        assert "after the output projection" in row.output_share.how
        assert row.max_product.determined == spelling.startswith("sdpa")


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("extras", [{}, {"kdim": 8, "vdim": 8}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_multihead_attention_is_opened_up(batch_first: bool, weights: bool, extras: dict[str, Any]) -> None:
    """With padding, in evaluation mode without gradients, where torch would run one kernel for all of it."""
    attention = nn.MultiheadAttention(8, HEADS, batch_first=batch_first, **extras).double().eval()
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            x = x if batch_first else x.transpose(0, 1)
            return self.attention(x, x, x, key_padding_mask=padding, need_weights=weights, average_attn_weights=False)

    x = torch.randn(3, 5, 8, dtype=torch.float64)
    model = Model()
    rows = attention_heads(model, x).rows
    assert [row.layer for row in rows] == ["attention"] * HEADS
    turned = x if batch_first else x.transpose(0, 1)
    with torch.no_grad():
        _, a = attention(turned, turned, turned, key_padding_mask=padding, average_attn_weights=False)
    entropy = -torch.xlogy(a, a).sum(-1).mean((0, 2))
    assert [row.entropy.value for row in rows] == pytest.approx(entropy.tolist(), rel=1e-9)
    assert [row.sink_share.value for row in rows] == pytest.approx(a.mean((0, 2)).amax(-1).tolist(), rel=1e-9)
    assert all("after the output projection" in row.output_share.how for row in rows)


@pytest.mark.parametrize("padding", [False, True])
def test_the_fused_path_of_the_transformer_encoder_hides_nothing(padding: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    model = nn.Sequential(encoder)
    if padding:
        mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5])
        model.forward = lambda x: encoder(x, src_key_padding_mask=mask)
    table = attention_heads(model, torch.randn(3, 5, 8))
    assert [row.layer for row in table.rows] == [f"0.layers.{n}.self_attn" for n in (0, 0, 1, 1)]


def _language_models(implementation: str) -> dict[str, Any]:
    from transformers import (
        BertConfig,
        BertModel,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        ViTConfig,
        ViTModel,
    )

    small = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 20}
    gpt2 = {"n_layer": 2, "n_head": 4, "n_embd": 16, "n_positions": 12, "bos_token_id": 0, "eos_token_id": 0}
    how = {"attn_implementation": implementation}
    return {
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=11, **gpt2, **how)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=11, num_key_value_heads=2, **small, **how)),
        "bert": lambda: BertModel(BertConfig(vocab_size=11, **small, **how)),
        "vit": lambda: ViTModel(ViTConfig(image_size=8, patch_size=2, num_channels=1, **small, **how)),
    }


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit"])
def test_models_of_hugging_face_give_the_same_eager_and_fused(name: str) -> None:
    """Padding included; the numbers are those of the attention that eager models return."""
    tables: dict[str, AttentionHeads] = {}
    ids = torch.randint(11, (3, 10))
    keep = torch.ones(3, 10, dtype=torch.long)
    keep[1, 7:] = 0
    batch = {"input_ids": ids, "attention_mask": keep} if name != "vit" else {"pixel_values": torch.randn(3, 1, 8, 8)}
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = _language_models(implementation)[name]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(6.0)
        tables[implementation] = attention_heads(model, batch)
        if implementation == "eager":
            with torch.no_grad():
                returned = model(**batch, output_attentions=True).attentions
    eager, fused = (tables[how].rows for how in ("eager", "sdpa"))
    assert len(eager) == len(fused) == 8
    for row, other in zip(eager, fused, strict=True):
        assert (row.layer, row.head, row.verdict) == (other.layer, other.head, other.verdict)
        for number in ("entropy", "relative_entropy", "sink_share", "max_logit", "output_share"):
            assert getattr(row, number).value == pytest.approx(getattr(other, number).value, rel=1e-3), number
        assert "after the output projection" in row.output_share.how
    for layer, attention in enumerate(returned):
        entropy = -torch.xlogy(attention, attention).sum(-1).mean((0, 2))
        assert [row.entropy.value for row in eager[4 * layer : 4 * layer + 4]] == pytest.approx(
            entropy.tolist(), rel=1e-4
        )


class Experts(nn.Module):
    """A softmax over experts for each token, followed by a matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1) @ torch.ones(3, x.shape[-1], 2)


@pytest.mark.parametrize(
    "function",
    [
        Experts(),
        lambda x: F.softmax(x, dim=1) @ torch.ones(5, 2),
        lambda x: F.softmax(x[:, None], dim=-1).sum(2),
        lambda x: F.softmax(x[:, None], dim=2) @ torch.ones(5, 2),
        lambda x: F.log_softmax(x[:, None], dim=-1) @ torch.ones(5, 2),
    ],
    ids=["experts", "not the keys", "no product", "over queries", "logarithm"],
)
def test_other_softmaxes_are_no_attention(function: Any) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    assert attention_heads(Model(), torch.randn(3, 4, 5)).rows == []


class Alone(nn.Module):
    """One head over tokens, without an axis for heads; called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = SingleHeadAttention()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x))


class SingleHeadAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1) @ x


def test_three_axes_inside_an_attention_module_are_one_head_and_a_second_use_has_its_number() -> None:
    rows = attention_heads(Alone(), torch.randn(3, 4, 5)).rows
    assert [(row.layer, row.head) for row in rows] == [("inner", 0), ("inner#2", 0)]
    assert [row.output_share.value for row in rows] == [1.0, 1.0]


def test_a_residual_and_what_follows_it_are_no_output_projection() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            q = x.unflatten(-1, (2, 4)).transpose(1, 2)
            return self.mlp(x + F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2))

    row, _ = attention_heads(Model(), torch.randn(3, 4, 8)).rows
    assert "before any output projection" in row.output_share.how


def test_compiled_models_are_seen_through() -> None:
    model, x = nn.Sequential(SelfAttention("sdpa"), SelfAttention("nanoGPT")), torch.randn(3, 6, 8)
    plain = attention_heads(model, x)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    assert attention_heads(compiled, x).rows == plain.rows


@pytest.mark.parametrize("wrong", [False, True])
def test_nothing_is_left_behind_also_after_an_error(wrong: bool) -> None:
    model = nn.Sequential(SelfAttention("nanoGPT"), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).train()
    model[0].eval()
    x = torch.randn(3, 6, 7 if wrong else 8)
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
    state = torch.get_rng_state().tolist()
    if wrong:
        with pytest.raises(RuntimeError):
            attention_heads(model, x)
    else:
        assert len(attention_heads(model, x).rows) == 4
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()] == before
    assert torch.get_rng_state().tolist() == state
    assert all(parameter.grad is None for parameter in model.parameters())
