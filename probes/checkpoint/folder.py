"""A checkpoint that is a folder: what people and libraries save beside the weights, told by the names of the files.

Hugging Face writes `config.json` and one or several weight files with an index; its Trainer and accelerate put the
optimizer and the progress beside them; torch.distributed.checkpoint and DeepSpeed write a file for each rank.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.checkpoint.distributed import INDEX
from probes.checkpoint.errors import CheckpointError, UnsafeCheckpointError, listed, printable
from probes.checkpoint.formats import Format

_WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
_INDEX = ".index.json"
_OPTIMIZER = ("optimizer.bin", "optimizer.pt")
_LEFT_ALONE = (
    "scheduler.bin",
    "scheduler.pt",
    "random_states_*.pkl",
    "rng_state*.pth",
    "scaler.pt",
    "training_args.bin",
)
_ENDINGS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")
_LONGEST_JSON = 1 << 26
_EXPECTED = "a file from torch.save, a .safetensors file, or a folder with weights under the names that libraries use"


@dataclass(frozen=True)
class Contents:
    """What a folder holds.

    Attributes:
        raw: `model`, and `optimizer`, `step` and `epoch` where they are there.
        files: those that were opened.
        notes: what a reader should know.
    """

    raw: dict[str, Any]
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def sniff_folder(folder: Path) -> Format:
    """Say which kind of checkpoint a folder is, by the names of its files alone.

    Args:
        folder: the folder.

    Raises:
        CheckpointError: none that can be opened; the message says what to do with one that has to be merged first.
    """
    if (folder / INDEX).is_file():
        return Format.DISTRIBUTED
    if _weights(folder) is not None:
        return Format.FOLDER
    kind, attempt = _foreign(folder)
    raise CheckpointError(
        f"{folder} is {kind}" if kind else f"{folder} is a folder",
        given="a folder",
        expected=_EXPECTED,
        attempt=attempt,
    )


def load_folder(folder: Path, load: Callable[[Path], Any]) -> Contents:
    """Open the weights in a folder, and the optimizer and the progress beside them.

    Args:
        folder: one that `sniff_folder` calls a folder with weights, or an index file in it.
        load: opens one file, without executing anything in it.

    Raises:
        CheckpointError: a file that an index names is missing, or one cannot be opened.
    """
    index = folder if folder.is_file() else _weights(folder)
    folder = folder.parent if folder.is_file() else folder
    assert index is not None
    files = [index] if not index.name.endswith(_INDEX) else _shards(index)
    weights: dict[str, Any] = {}
    for file in files:
        part = load(file)
        if not isinstance(part, Mapping):
            raise CheckpointError(
                f"{file.name} holds no weights by name", given=type(part).__name__, expected="names and tensors"
            )
        weights.update(part)
    raw: dict[str, Any] = {"model": weights}
    notes = [f"{len(files)} files, which {index.name} lists"] if len(files) > 1 else [f"the weights are {index.name}"]
    notes += _architecture(folder)
    for file in (folder / name for name in _OPTIMIZER):
        if file.is_file() and "optimizer" not in raw:
            try:
                raw["optimizer"] = load(file)
                files.append(file)
            except UnsafeCheckpointError as problem:
                notes.append(f"{file.name} was left out: it asks for {listed(problem.globals)}")
    raw |= _progress(folder)
    left = tuple(sorted(file.name for name in _LEFT_ALONE for file in folder.glob(name)))
    if left:
        notes.append(f"not opened, as nothing in it is measured: {listed(left)}")
    return Contents(raw, tuple(files), tuple(notes))


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints that lie in a folder which is none itself: files with the usual endings, and folders.

    Args:
        folder: any folder.
    """
    if not folder.is_dir() or (folder / INDEX).is_file() or _weights(folder) is not None:
        return []
    entries = sorted(folder.iterdir())
    return [one for one in entries if _is_checkpoint(one) or (one.is_file() and one.suffix in _ENDINGS)]


def is_index(path: Path) -> bool:
    """Say whether a file is the list of the files that a model is kept in, by its name.

    >>> is_index(Path("model.safetensors.index.json"))
    True
    """
    return path.name.endswith(_INDEX)


def read_json(path: Path) -> dict[str, Any]:
    """What a small JSON file beside the weights holds; nothing, where it is not there or holds no names.

    Args:
        path: the file.

    Raises:
        CheckpointError: it is damaged.
    """
    if not path.is_file():
        return {}
    if path.stat().st_size > _LONGEST_JSON:
        raise CheckpointError(f"{path.name} is too large for what it should be", given=f"{path.stat().st_size:,} bytes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(f"{path.name} is damaged", given=printable(problem), expected="JSON") from problem
    return content if isinstance(content, dict) else {}


def _weights(folder: Path) -> Path | None:
    """The file with the weights, or the list of several."""
    for name in _WEIGHTS:
        for file in (folder / name, folder / f"{name}{_INDEX}"):
            if file.is_file():
                return file
    return None


def _is_checkpoint(entry: Path) -> bool:
    return entry.is_dir() and ((entry / INDEX).is_file() or _weights(entry) is not None)


def _shards(index: Path) -> list[Path]:
    named = read_json(index).get("weight_map")
    names = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
    if not names:
        raise CheckpointError(
            f"{index.name} is no list of weight files", given="no weight_map", expected="a weight_map, name to file"
        )
    # Names come from the file: one with a folder in it would lead out of this one.
    missing = tuple(name for name in names if Path(name).name != name or not (index.parent / name).is_file())
    if missing:
        raise CheckpointError(
            f"{index.parent.name} is a sharded checkpoint of which files are missing",
            given=f"no file {listed(missing)}, which {index.name} names",
            expected=f"all {len(names)} files beside {index.name}",
            attempt="download or copy them again",
        )
    return [index.parent / name for name in names]


def _architecture(folder: Path) -> Iterator[str]:
    config = read_json(folder / "config.json")
    names = config.get("architectures")
    if isinstance(names, list) and names:
        yield f"config.json says {listed(tuple(str(name) for name in names))}"


def _progress(folder: Path) -> dict[str, Any]:
    state = read_json(folder / "trainer_state.json")
    known = {"step": state.get("global_step"), "epoch": state.get("epoch")}
    return {key: value for key, value in known.items() if isinstance(value, int | float)}


def _foreign(folder: Path) -> tuple[str, str]:
    """What a folder is that has to be merged or entered first, and how."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as problem:
        return f"a folder that cannot be read: {problem}", f"chmod u+rx {folder}"
    deepspeed = [*folder.glob("*_model_states.pt"), *folder.glob("global_step*/*_model_states.pt")]
    if "zero_to_fp32.py" in names or deepspeed:
        return (
            "a DeepSpeed checkpoint, whose tensors are shared out among ranks",
            "python zero_to_fp32.py . merged, in that folder, and pass merged; with ZeRO stage 0 to 2, also "
            "mp_rank_00_model_states.pt itself, with --trust",
        )
    if "latest_checkpointed_iteration.txt" in names or any(name.startswith("mp_rank_") for name in names):
        return (
            "a Megatron checkpoint, whose tensors are shared out among ranks",
            "convert it with Megatron's tools/checkpoint/convert.py, and pass the result",
        )
    inside = [entry for entry in folder.iterdir() if _is_checkpoint(entry)]
    if inside:
        return "", "pass one of the checkpoints inside: " + listed(tuple(sorted(str(entry) for entry in inside)))
    files = tuple(name for name in names if Path(name).suffix in _ENDINGS)
    if files:
        return "", f"pass one of the files inside: {listed(files)}"
    return "", "pass the weights file inside it, or a run folder to `diagnose`"
