"""Language models from transformers: randomly initialised, a few hundred parameters, nothing downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from diagnostics import Objective
from tests.cases.case import Batch, Case, Terms

MASKED = -100


class _InDouble(TorchFunctionMode):
    """Keeps in float64 what transformers computes in float32, whatever the dtype of the model."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function = Tensor.double if function is Tensor.float else function
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return function(*args, **kwargs)


class _Double:
    """Before a class of transformers: the same model, its norms, attention weights and loss in float64."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _InDouble():
            return super().forward(*args, **kwargs)


def in_double(model: type[nn.Module]) -> type[nn.Module]:
    return type(f"Double{model.__name__}", (_Double, model), {})


def gpt2(double: bool = False) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=1,
        n_head=2,
        n_embd=4,
        vocab_size=9,
        n_positions=6,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.5,
    )
    config.loss_type = "ForCausalLM"
    return (in_double(GPT2LMHeadModel) if double else GPT2LMHeadModel)(config)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=9,
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=6,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    return in_double(LlamaForCausalLM)(config)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=9,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=6,
        max_position_embeddings=6,
        initializer_range=0.5,
    )
    return BertForMaskedLM(config)


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=9,
        d_model=4,
        d_kv=2,
        d_ff=6,
        num_layers=1,
        num_heads=2,
        relative_attention_num_buckets=4,
        relative_attention_max_distance=6,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    return in_double(T5ForConditionalGeneration)(config)


def language(mask: int, examples: int = 8, tokens: int = 6) -> Callable[[], Batch]:
    def draw() -> Batch:
        # Never BERT's padding token 0: its row gets no gradient, so the gradient is not that of the loss.
        ids = torch.randint(1, 9, (examples, tokens))
        labels = ids.clone()
        # Masks differ in number from example to example, so batches differ in terms per example.
        for row in range(examples):
            labels[row, : row % mask + 1] = MASKED
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    return draw


def huggingface(
    name: str, model: Callable[[], nn.Module], data: Callable[[], Batch], digits: int, *, causal: bool
) -> Case:
    def scored(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        logits, labels = (logits[:, :-1], labels[:, 1:]) if causal else (logits, labels)
        return logits.flatten(0, 1), labels.flatten()

    def terms(logits: Tensor, batch: Batch) -> Terms:
        logits, labels = scored(logits, batch)
        losses = F.cross_entropy(logits[labels != MASKED], labels[labels != MASKED], reduction="none")
        return losses, torch.full_like(losses, 1.0 / len(losses))

    return Case(
        name,
        model,
        data,
        Objective.huggingface,
        lambda module, batch: module(**batch).loss,
        digits=digits,
        outputs=lambda module, batch: module(**batch).logits,
        of_outputs=lambda logits, batch: F.cross_entropy(*scored(logits, batch)),
        terms=terms,
    )
