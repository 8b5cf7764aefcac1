"""The built-in task: a folder of Hugging Face and a text make an Objective, the language model's own loss on the text.

A causal model predicts each token of a sequence from those before it; a masked one predicts tokens that were replaced
by the mask. Which ones is drawn once, with a seed, so that the loss is one function. Dropout is off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Objective
from diagnostics.quiet import quiet
from probes.checkpoint.contents import Checkpoint
from probes.checkpoint.pretrained import TASK, Pretrained, open_pretrained, raised, silent
from probes.checkpoint.text import PASSAGE, SEQUENCES, Passages, Sequences, cut, read_passages

LENGTH = 128
"""Tokens in a sequence, or the model's context where that is shorter."""

BATCH = 4
"""Sequences that go through the model at once: memory is for their logits, over the whole vocabulary."""

MASKED = 0.15
"""Share of the tokens of each sequence that a masked model has to find; each is replaced by the mask."""

_IGNORED = -100
_FOREIGN = 0.5
_SAMPLE = 200
_TOLERANCE = 1e-5


def language_model(
    checkpoint: Checkpoint, text: Path, *, device: str | None = None, seed: int = 0
) -> tuple[Objective, tuple[str, ...]]:
    """Build the Objective of a language model on a text.

    Args:
        checkpoint: the opened folder, with ``config.json`` and a tokenizer.
        text: a file in UTF-8.
        device: where the model is put.
        seed: of which sequences are measured on, and which tokens are masked.

    Returns:
        the Objective, and notes on what it is.

    Raises:
        UnsafeCheckpointError: the folder asks for code of its own to be run.
        DiagnosticsError: the folder holds no language model with its tokenizer, or the text is none.
    """
    passages = read_passages(text, seed)
    opened = open_pretrained(checkpoint, device)
    before, after = _frame(opened, passages.parts[0][:_SAMPLE])
    length = _length(opened) - len(before) - len(after)
    drawn = cut(passages, lambda part: _ids(opened.tokenizer, part), length, seed)
    notes = [_described(opened, text, passages, drawn, seed), *opened.notes, *_unknown(opened, drawn.tokens)]
    notes.append("a text says nothing of an optimizer: what needs one was not measured")
    ids = torch.cat([_rows(before, drawn), drawn.tokens, _rows(after, drawn)], dim=1)
    embedding = opened.model.get_input_embeddings()  # type: ignore[operator]
    known = embedding.weight.shape[0]
    if int(ids.max()) >= known:
        raise DiagnosticsError(
            "the tokenizer is not that of the model",
            given=f"token {int(ids.max()):,}, of a model that knows {known:,}",
            expected="the tokenizer that the model was trained with",
        )
    labels = ids.clone()
    if opened.kind == "masked":
        ids, labels = _hidden(opened, ids, len(before), length, seed)
    _tried(opened, ids[:1].to(embedding.weight.device), known)
    batches = [
        {"input_ids": ids[start : start + BATCH], "labels": labels[start : start + BATCH]}
        for start in range(0, len(ids), BATCH)
    ]
    return Objective.huggingface(opened.model, batches), tuple(notes)


def _ids(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def _frame(opened: Pretrained, text: str) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before and after a text; none after it for a causal model: it goes on."""
    bare, framed = (_ids(opened.tokenizer, text, special) for special in (False, True))
    for start in range(len(framed) - len(bare) + 1 if bare else 0):
        if framed[start : start + len(bare)] == bare:
            after = framed[start + len(bare) :]
            return framed[:start], after if opened.kind == "masked" else []
    return [], []


def _length(opened: Pretrained) -> int:
    config: Any = opened.model.config
    known = (getattr(config, "max_position_embeddings", None), opened.tokenizer.model_max_length)
    # Models without an end to their context say so by a number below 1, or none.
    return min([LENGTH, *(int(one) for one in known if isinstance(one, int | float) and one > 0)])


def _rows(ids: list[int], drawn: Sequences) -> Tensor:
    return torch.tensor(ids, dtype=torch.long).expand(len(drawn.tokens), len(ids))


def _hidden(opened: Pretrained, ids: Tensor, start: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens with some replaced by the mask, and labels for these alone: equally many in every sequence."""
    mask = opened.tokenizer.mask_token_id
    if mask is None:
        raise DiagnosticsError(
            "the tokenizer has no mask token",
            given=type(opened.tokenizer).__name__,
            expected=f"one, for {opened.architecture}",
            attempt=f"the tokenizer that the model was trained with, or {TASK}",
        )
    generator = torch.Generator().manual_seed(seed)
    count = max(1, round(MASKED * length))
    places = start + torch.rand(len(ids), length, generator=generator).argsort(1)[:, :count]
    labels = torch.full_like(ids, _IGNORED).scatter(1, places, ids.gather(1, places))
    return ids.scatter(1, places, mask), labels


def _unknown(opened: Pretrained, tokens: Tensor) -> list[str]:
    """A note where the tokenizer does not know all that is in the text.

    Raises:
        DiagnosticsError: it knows next to nothing.
    """
    unknown = opened.tokenizer.unk_token_id
    share = 0.0 if unknown is None else float((tokens == unknown).double().mean())
    if share > _FOREIGN:
        raise DiagnosticsError(
            "the text is not of the kind that the tokenizer knows",
            given=f"{share:.0%} of its tokens are unknown",
            expected="text in the language, and writing, that the model was trained on",
        )
    return [f"{share:.2g} of the text's tokens are unknown to the tokenizer"] if share else []


def _tried(opened: Pretrained, ids: Tensor, known: int) -> None:
    """Run the model once.

    Raises:
        DiagnosticsError: it fails, or one that is called causal looks ahead.
    """
    later = ids.clone()
    later[:, -1] = (later[:, -1] + 1) % known
    try:
        logits, other = (_logits(opened.model, one) for one in (ids, later))
    # The model may raise anything.
    except Exception as problem:
        raise DiagnosticsError(
            f"{opened.architecture} fails on the text",
            given=raised(problem),
            attempt=TASK,
        ) from problem
    scale = float(logits.nan_to_num().abs().max())
    if opened.kind == "causal" and not torch.allclose(logits, other, rtol=0, atol=_TOLERANCE * scale, equal_nan=True):
        raise DiagnosticsError(
            f"{opened.architecture} sees the tokens that it is to predict",
            given="outputs that change with a later token",
            expected='a causal model; a decoder that was made of an encoder needs "is_decoder": true in config.json',
        )


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Of every position but the last, shape (1, tokens - 1, vocabulary)."""
    # With labels, for what transformers warns of once, and in the loss.
    with quiet(model, "eval"), torch.no_grad(), silent():
        logits: Tensor = model(input_ids=ids, labels=ids).logits
    return logits[:, :-1]


def _described(opened: Pretrained, text: Path, passages: Passages, drawn: Sequences, seed: int) -> str:
    count, length = drawn.tokens.shape
    task = f"task: the {opened.kind} language-model loss of {opened.architecture} on {text.name}"
    hidden = f", {MASKED:.0%} of them masked" if opened.kind == "masked" else ""
    of = f"{count} of {drawn.of}" if count < drawn.of else f"all {count}"
    if len(passages.parts) > 1:
        of = f"{count}"
        where = f" from {len(passages.parts)} passages of {PASSAGE >> 10} KiB, spread over {passages.size:,} bytes"
    else:
        where = ", spread over the file" if count < drawn.of else ""
    few = "" if count == SEQUENCES else f"; the text is short: {SEQUENCES} would be taken"
    return f"{task}, {of} sequences of {length} tokens{hidden}{where}, drawn with seed {seed}{few}"
