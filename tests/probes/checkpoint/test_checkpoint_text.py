"""A folder of Hugging Face and a text: the loss is the model's own, the data is the text's, and no code is run."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import DiagnosticsError, Objective
from probes.checkpoint import UnsafeCheckpointError, load_checkpoint
from probes.checkpoint.examine import examine
from probes.checkpoint.language_model import MASKED, language_model
from probes.checkpoint.rebuild import rebuild
from probes.checkpoint.text import PASSAGE, SEQUENCES, cut, read_passages, spread
from probes.checkpoint.trajectory import follow

WORDS = ["the", "loss", "falls", "and", "then", "it", "stays", "where", "was", "."]
CONTEXT = 16


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*rest: object) -> None:
        raise AssertionError("something was looked up outside the folder")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    numbers = torch.randint(len(WORDS), (3000,)).tolist()
    path.write_text(" ".join(WORDS[number] for number in numbers), encoding="utf-8")
    return path


def tokenizer(mask: bool = True, framed: bool = False, words: list[str] = WORDS) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if framed:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    special = {"mask_token": "[MASK]"} if mask else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", **special)


def model(kind: str) -> nn.Module:
    import transformers

    bert = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    bert |= {"max_position_embeddings": CONTEXT, "vocab_size": 15}
    if kind == "gpt2":
        sizes = {"n_positions": CONTEXT, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=15, **sizes))
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**bert, num_key_value_heads=1))
    if kind == "t5":
        sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
        return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=15, **sizes))
    found: nn.Module = getattr(transformers, kind)(transformers.BertConfig(**bert))
    return found


def saved(folder: Path, kind: str, **settings: Any) -> Path:
    made: Any = model(kind)
    made.save_pretrained(folder)
    tokenizer(**settings).save_pretrained(folder)
    return folder


def changed(folder: Path, name: str, **entries: Any) -> None:
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(content | entries), encoding="utf-8")


def built(folder: Path, text: Path, seed: int = 0) -> tuple[Objective, tuple[str, ...]]:
    return language_model(load_checkpoint(folder), text, seed=seed)


def cross_entropy(objective: Objective, shift: int) -> float:
    """The mean over all labels, one forward pass of everything at once."""
    ids, labels = (torch.cat([batch[key] for batch in objective.batches]) for key in ("input_ids", "labels"))
    with torch.no_grad():
        logits: Tensor = objective.model.eval()(input_ids=ids).logits
    logits, labels = logits[:, : logits.shape[1] - shift], labels[:, shift:]
    return float(F.cross_entropy(logits.flatten(0, 1).double(), labels.flatten()))


@pytest.mark.parametrize(("kind", "shift"), [("gpt2", 1), ("llama", 1), ("BertForMaskedLM", 0)])
def test_the_loss_is_that_of_the_model_on_sequences_of_the_text(
    kind: str, shift: int, tmp_path: Path, text: Path
) -> None:
    objective, notes = built(saved(tmp_path / "model", kind), text)
    assert objective.loss() == pytest.approx(cross_entropy(objective, shift), rel=1e-5)
    ids = torch.cat([batch["input_ids"] for batch in objective.batches])
    assert ids.shape == (SEQUENCES, CONTEXT)
    each = CONTEXT - 1 if shift else round(MASKED * CONTEXT)
    assert sum(objective.terms) == SEQUENCES * each
    assert f"{SEQUENCES} of {3000 // CONTEXT} sequences of {CONTEXT} tokens" in notes[0]
    weights = load_file(tmp_path / "model" / "model.safetensors")
    live = objective.model.state_dict()
    assert all(torch.equal(live[name], tensor) for name, tensor in weights.items())


def test_sequences_are_pieces_of_the_text_from_all_over_it(tmp_path: Path, text: Path) -> None:
    objective, _ = built(saved(tmp_path / "model", "gpt2"), text)
    whole = tokenizer()(text.read_text(encoding="utf-8"))["input_ids"]
    pieces = [whole[start : start + CONTEXT] for start in range(0, 3000 - CONTEXT, CONTEXT)]
    places = [pieces.index(row) for batch in objective.batches for row in batch["input_ids"].tolist()]
    part = len(pieces) / SEQUENCES
    assert all(part * number - 1 <= place < part * (number + 1) + 1 for number, place in enumerate(places))


def test_a_seed_repeats_the_draw_and_moves_nobody_elses(tmp_path: Path, text: Path) -> None:
    folder, state = saved(tmp_path / "model", "BertForMaskedLM"), torch.get_rng_state()
    one, again, other = (rebuild(load_checkpoint(folder), text=text, seed=seed)[0].batches[0] for seed in (0, 0, 1))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["labels"], other["labels"])
    assert torch.equal(torch.get_rng_state(), state)


def test_what_stands_around_a_text_is_never_masked(tmp_path: Path, text: Path) -> None:
    objective, _ = built(saved(tmp_path / "model", "BertForMaskedLM", framed=True), text)
    for batch in objective.batches:
        ids, labels = batch["input_ids"], batch["labels"]
        assert ids.shape[1] == CONTEXT
        assert torch.equal(ids[:, [0, -1]], torch.tensor([[2, 3]]).expand(len(ids), 2))
        assert torch.equal(labels != -100, ids == 4)
        assert ((labels != -100).sum(1) == round(MASKED * (CONTEXT - 2))).all()


def test_a_causal_sequence_begins_as_the_tokenizer_begins_and_has_no_end(tmp_path: Path, text: Path) -> None:
    objective, _ = built(saved(tmp_path / "model", "gpt2", framed=True), text)
    ids = objective.batches[0]["input_ids"]
    assert (ids[:, 0] == 2).all()
    assert not (ids == 3).any()


def test_half_precision_is_measured_in_single_and_shards_are_put_together(tmp_path: Path, text: Path) -> None:
    made: Any = model("gpt2").bfloat16()
    made.save_pretrained(tmp_path / "model", max_shard_size="2KB")
    tokenizer().save_pretrained(tmp_path / "model")
    objective, notes = built(tmp_path / "model", text)
    assert len(load_checkpoint(tmp_path / "model").files) > 1
    assert {tensor.dtype for tensor in objective.model.parameters()} == {torch.float32}
    assert any("kept in bfloat16 were measured in float32" in note for note in notes)
    live = objective.model.state_dict()
    assert all(torch.equal(live[name], tensor.float()) for name, tensor in made.state_dict().items())


def test_a_pickle_of_weights_is_opened_as_any_other(tmp_path: Path, text: Path) -> None:
    folder = saved(tmp_path / "model", "gpt2")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    expected = built(folder, text)[0].loss()
    (folder / "model.safetensors").unlink()
    assert built(folder, text)[0].loss() == expected


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_the_folder_is_refused_and_not_run(name: str, tmp_path: Path, text: Path) -> None:
    folder = saved(tmp_path / "model", "gpt2")
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    changed(folder, name, auto_map={"AutoModelForCausalLM": "theirs.Theirs", "AutoTokenizer": ["theirs.Slow", None]})
    with pytest.raises(UnsafeCheckpointError, match=r"auto_map: theirs.Slow, theirs.Theirs"):
        language_model(load_checkpoint(folder, trust=True), text)
    assert not (tmp_path / "ran").exists()


def test_attention_that_would_be_fetched_is_not(tmp_path: Path, text: Path) -> None:
    folder = saved(tmp_path / "model", "gpt2")
    changed(folder, "config.json", attn_implementation="somebody/attention", _attn_implementation="somebody/attention")
    assert built(folder, text)[0].model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("t5", "T5ForConditionalGeneration, a sequence-to-sequence model"),
        ("BertForSequenceClassification", "says BertForSequenceClassification"),
        ("BertModel", "says BertModel"),
    ],
)
def test_a_model_without_a_language_model_loss_is_refused(kind: str, words: str, tmp_path: Path, text: Path) -> None:
    with pytest.raises(DiagnosticsError, match=words) as caught:
        built(saved(tmp_path / "model", kind), text)
    assert "expected: a causal language model" in str(caught.value)


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _fewer_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if "c_fc" not in name}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without("tokenizer.json"), "model has no tokenizer"),
        (_without("config.json"), "without config.json"),
        (_fewer_weights, "they would be drawn at random; given: no transformer.h.0.mlp.c_fc"),
        (lambda folder: changed(folder, "config.json", n_embd=12), "cannot build GPT2LMHeadModel"),
        (lambda folder: changed(folder, "config.json", architectures=[]), "names no architecture"),
        (lambda folder: changed(folder, "config.json", architectures=["os.system"]), "says os.system"),
        (lambda folder: changed(folder, "config.json", quantization_config={"bits": 4}), "quantised"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "the tokenizer in model cannot be opened"),
        (lambda folder: tokenizer(words=[*WORDS, *"abcdef"]).save_pretrained(folder), None),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_folder_that_is_not_whole_is_one_clear_error(
    damage: Callable[[Path], None], words: str | None, tmp_path: Path, text: Path
) -> None:
    folder = saved(tmp_path / "model", "gpt2")
    damage(folder)
    if words is None:
        # More words than the model knows matter where they are in the text.
        assert built(folder, text)[0].loss() > 0
        text.write_text("a f " * 200, encoding="utf-8")
        words = "the tokenizer is not that of the model"
    with pytest.raises(DiagnosticsError, match=words):
        built(folder, text)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"the loss falls", "shorter than one sequence; given: 3 tokens"),
        (b"the loss \xff falls", "no text in UTF-8; given: byte 0xff"),
        (b"the loss \0 falls", "a byte that is zero"),
        ("the loss falls ".encode("utf-16") * 20, "iconv"),
        (b"quite other words " * 50, "100% of its tokens are unknown"),
    ],
)
def test_what_is_no_text_for_the_model_is_one_clear_error(
    content: bytes, words: str, tmp_path: Path, text: Path
) -> None:
    text.write_bytes(content)
    with pytest.raises(DiagnosticsError, match=words):
        built(saved(tmp_path / "model", "gpt2"), text)


def test_a_text_that_is_not_there_or_a_folder_is_one_clear_error(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.txt", tmp_path):
        with pytest.raises(DiagnosticsError, match="cannot be read"):
            read_passages(path)


def test_a_masked_model_needs_a_mask_and_a_causal_one_must_not_look_ahead(tmp_path: Path, text: Path) -> None:
    with pytest.raises(DiagnosticsError, match="no mask token"):
        built(saved(tmp_path / "masked", "BertForMaskedLM", mask=False), text)
    # An encoder with the head of a decoder: it sees the answer.
    with pytest.raises(DiagnosticsError, match="sees the tokens that it is to predict"):
        built(saved(tmp_path / "causal", "BertLMHeadModel"), text)


def test_a_file_alone_is_not_enough(tmp_path: Path, text: Path) -> None:
    folder = saved(tmp_path / "model", "gpt2")
    with pytest.raises(DiagnosticsError, match=r"the file model.safetensors.*try: the folder it lies in"):
        built(folder / "model.safetensors", text)


def test_a_short_text_gives_what_it_has_and_says_so(tmp_path: Path, text: Path) -> None:
    text.write_text("the loss falls and then it stays . " * 8, encoding="utf-8")
    objective, notes = built(saved(tmp_path / "model", "gpt2"), text)
    assert sum(len(batch["input_ids"]) for batch in objective.batches) == 4
    assert "all 4 sequences" in notes[0]
    assert "the text is short" in notes[0]


def test_a_long_text_is_read_in_passages_cut_between_characters(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    # Three bytes a letter, so that passages begin and end within one.
    path.write_text("λ→ " * (SEQUENCES * PASSAGE // 5), encoding="utf-8")
    passages = read_passages(path)
    assert len(passages.parts) == SEQUENCES
    assert all(set(part) == set("λ→ ") and part.startswith("λ") for part in passages.parts)
    drawn = cut(passages, lambda part: [ord(letter) % 97 for letter in part], 100)
    assert drawn.tokens.shape == (SEQUENCES, 100)


def test_one_is_drawn_from_each_equal_part() -> None:
    for total, count in ((16, 16), (17, 16), (1000, 16), (5, 2)):
        for seed in range(20):
            drawn = spread(total, count, seed)
            assert all(n * total // count <= one < (n + 1) * total // count for n, one in enumerate(drawn))


def test_weights_that_are_not_numbers_are_found_and_not_hidden(tmp_path: Path, text: Path) -> None:
    folder = saved(tmp_path / "model", "gpt2")
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.weight"][0] = torch.nan
    save_file(weights, folder / "model.safetensors")
    run = examine(folder, text=text, only=["sharpness"])
    [loss] = [record for record in run.of("sharpness") if record.name == "loss"]
    assert loss.value is not None
    assert math.isnan(loss.value)
    record = run.last("weights", "non_finite", "transformer.ln_f.weight")
    assert record is not None
    assert record.value == 1


def test_a_text_measures_what_a_task_does_and_says_what_it_was(tmp_path: Path, text: Path) -> None:
    run = examine(saved(tmp_path / "model", "llama"), text=text, only=["sharpness", "units"])
    assert run.last("sharpness", "sharpness") is not None
    assert run.header["model"]["class"] == "LlamaForCausalLM"
    assert run.header["objective"]["loss_terms"] == SEQUENCES * (CONTEXT - 1)
    assert any("causal language-model loss" in note for note in run.header["notes"])
    assert any("nothing of an optimizer" in note for note in run.header["notes"])


def test_folders_of_one_run_are_a_path_with_a_loss_along_it(tmp_path: Path, text: Path) -> None:
    first = saved(tmp_path / "checkpoint-1", "gpt2")
    shutil.copytree(first, tmp_path / "checkpoint-2")
    weights = load_file(first / "model.safetensors")
    save_file({name: tensor * 1.1 for name, tensor in weights.items()}, tmp_path / "checkpoint-2" / "model.safetensors")
    run = follow([first, tmp_path / "checkpoint-2"], text=text, only=["trajectory"])
    losses = [record.value for record in run.of("trajectory") if record.name == "loss"]
    expected = [built(tmp_path / f"checkpoint-{step}", text)[0].loss() for step in (1, 2)]
    assert losses == expected


def test_a_task_and_a_text_are_one_too_many(tmp_path: Path, text: Path) -> None:
    with pytest.raises(DiagnosticsError, match="both given"):
        examine(saved(tmp_path / "model", "gpt2"), task="task.py", text=text)


def test_without_transformers_the_error_says_what_to_install(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model", "gpt2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DiagnosticsError, match="pip install"):
        built(folder, text)


def test_transformers_is_imported_by_those_who_give_a_text_alone() -> None:
    code = "import sys, probes.checkpoint.examine, reports.report; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
