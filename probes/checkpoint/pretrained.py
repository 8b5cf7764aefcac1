"""A model and its tokenizer from a folder of Hugging Face, by transformers and without running code from the folder.

The weights are those that ``load_checkpoint`` has opened, so no file is opened in another way. What ``config.json``
says is used where it names a class that transformers has itself; code that it names (``auto_map``) is refused, and
nothing is looked up outside the folder.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError
from probes.checkpoint.contents import Checkpoint
from probes.checkpoint.errors import CheckpointError, UnsafeCheckpointError, listed, printable
from probes.checkpoint.folder import read_json
from probes.checkpoint.streamed import whole
from probes.checkpoint.task import named_device

Kind = Literal["causal", "masked"]

TASK = "--task task.py, whose build(checkpoint) returns an Objective"

_CONFIG = "config.json"
_WITH_CODE = (_CONFIG, "tokenizer_config.json")
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_EXPECTED = (
    "a causal language model, such as GPT2LMHeadModel or LlamaForCausalLM, or a masked one, such as BertForMaskedLM"
)


@dataclass(frozen=True)
class Pretrained:
    """A language model as it was saved.

    Attributes:
        model: with float32 parameters, or float64 where they were saved so.
        tokenizer: the folder's own.
        kind: whether each token is predicted from those before it, or from all around it.
        architecture: the name of the class.
        notes: what a reader should know.
    """

    model: nn.Module
    tokenizer: Any
    kind: Kind
    architecture: str
    notes: tuple[str, ...]


def open_pretrained(checkpoint: Checkpoint, device: str | None = None) -> Pretrained:
    """Build the model that a folder holds.

    Args:
        checkpoint: the opened folder.
        device: where the model is put; the CPU by default.

    Raises:
        UnsafeCheckpointError: the folder asks for code of its own to be run.
        DiagnosticsError: it is no folder of a language model with all its weights and a tokenizer, or transformers is
            not installed.
    """
    folder = _folder(checkpoint)
    _refuse_code(folder)
    config = read_json(folder / _CONFIG)
    if config.get("quantization_config"):
        raise DiagnosticsError(
            "quantised weights have no gradient",
            given=f"quantization_config in {_CONFIG}",
            expected="weights in float32, bfloat16 or float16",
            attempt="the folder that they were quantised from",
        )
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        # Bytes in the place of tokens would be other words to the model: a loss, but of nonsense.
        raise DiagnosticsError(
            f"{folder.name} has no tokenizer",
            given=f"none of {', '.join(_VOCABULARIES)}",
            expected="the tokenizer that the model was trained with: no other gives it the same words",
            attempt=f"tokenizer.save_pretrained(folder), or {TASK}",
        )
    transformers = _transformers()
    with silent():
        kind, found = _class(config)
        model, notes = _model(transformers, found, folder, checkpoint, device)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder.resolve()), local_files_only=True, trust_remote_code=False
            )
        # Whatever is in the folder, and whichever library a tokenizer needs.
        except Exception as problem:
            raise DiagnosticsError(
                f"the tokenizer in {folder.name} cannot be opened", given=raised(problem), attempt=TASK
            ) from problem
    return Pretrained(model, tokenizer, kind, found.__name__, notes)


def _folder(checkpoint: Checkpoint) -> Path:
    path = checkpoint.path
    folder = path if path.is_dir() else path.parent
    # A file alone may be of any model; a list of shards is the folder by another name.
    if (path.is_dir() or len(checkpoint.files) > 1) and (folder / _CONFIG).is_file():
        return folder
    has_config = (folder / _CONFIG).is_file()
    raise DiagnosticsError(
        "a text needs a folder of Hugging Face",
        given=f"the file {path.name}" if not path.is_dir() else f"{path.name}, without {_CONFIG}",
        expected=f"a folder with {_CONFIG}, the weights and a tokenizer, as model.save_pretrained(folder) and "
        "tokenizer.save_pretrained(folder) write it",
        attempt=f"the folder it lies in, {folder}" if has_config and not path.is_dir() else TASK,
    )


def _refuse_code(folder: Path) -> None:
    for name in _WITH_CODE:
        asked = read_json(folder / name).get("auto_map")
        if asked:
            named = tuple(sorted({str(value) for value in _leaves(asked)}))
            raise UnsafeCheckpointError(
                f"{name} asks for code of the folder to be run",
                globals=named,
                given=f"auto_map: {listed(named)}",
                expected="a model that transformers has itself: nothing in a folder is run, with --trust neither",
                attempt=f"{TASK} and imports that code, if you know it",
            )


def _leaves(value: Any) -> Iterator[Any]:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else None
    if parts is None:
        yield value
        return
    for part in parts:
        if part is not None:
            yield from _leaves(part)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as problem:
        raise DiagnosticsError(
            "a text needs the library transformers, which builds the model from config.json",
            given=printable(problem),
            attempt="pip install 'transformers>=4.56'",
        ) from problem
    return transformers


def _class(config: Mapping[str, Any]) -> tuple[Kind, Any]:
    """The kind of language model, and its class: one of those that transformers lists, and no other name."""
    import transformers
    from transformers.models.auto import modeling_auto

    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    causal, masked, translating = (
        {*getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").values()}
        for kind in ("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM")
    )
    if name in causal - masked - translating:
        return "causal", getattr(transformers, name)
    if name in masked - causal - translating:
        return "masked", getattr(transformers, name)
    given = f"{_CONFIG} says {printable(name)}" if name else f"{_CONFIG} names no architecture"
    raise DiagnosticsError(
        "a text alone is no task for this model",
        given=given + (", a sequence-to-sequence model" if name in translating else ""),
        expected=_EXPECTED,
        attempt=f"{TASK} on pairs of your data" if name in translating else f"{TASK} on data of yours",
    )


def _model(
    transformers: Any, found: Any, folder: Path, checkpoint: Checkpoint, device: str | None
) -> tuple[nn.Module, tuple[str, ...]]:
    weights: dict[str, Tensor] = dict(whole(checkpoint.raw)["model"])
    kept = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    dtype = torch.float64 if kept == {torch.float64} else torch.float32
    where = None if device is None else named_device(device)
    try:
        config = transformers.AutoConfig.from_pretrained(
            str(folder.resolve()), local_files_only=True, trust_remote_code=False
        )
        config.use_cache = False
        # Named here, since a config may name one that would be fetched.
        attention = "sdpa" if getattr(found, "_supports_sdpa", False) else "eager"
        model, info = found.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
        )
        model = model if where is None else model.to(where)
    # Sizes that do not fit, settings that are unknown: transformers raises what it likes.
    except Exception as problem:
        raise DiagnosticsError(
            f"transformers cannot build {found.__name__} from {folder.name}",
            given=raised(problem),
            expected=f"a {_CONFIG} that fits the weights beside it",
            attempt=TASK,
        ) from problem
    missing = tuple(sorted(info["missing_keys"]))
    if missing:
        raise CheckpointError(
            f"{folder.name} does not hold all weights of {found.__name__}: they would be drawn at random",
            given=f"no {listed(missing)}",
            expected="the weights of the whole model",
            attempt="save it with its head, or copy the missing files",
        )
    notes = [f"weights kept in {_names(kept - {dtype})} were measured in {_names({dtype})}"] if kept - {dtype} else []
    unused = tuple(sorted(info["unexpected_keys"]))
    if unused:
        notes.append(f"tensors that {found.__name__} has no use for: {listed(unused)}")
    return model, tuple(notes)


def _names(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


@contextmanager
def silent() -> Iterator[None]:
    """A context without bars and warnings of transformers: what matters in them is said here."""
    speaks: Any = importlib.import_module("transformers.utils.logging")
    level, bars = speaks.get_verbosity(), speaks.is_progress_bar_enabled()
    speaks.set_verbosity(logging.CRITICAL)
    speaks.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        speaks.set_verbosity(level)
        if bars:
            speaks.enable_progress_bar()


def raised(problem: BaseException) -> str:
    """What another library raised, in one line."""
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
