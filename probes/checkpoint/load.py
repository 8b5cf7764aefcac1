"""Opening a checkpoint without giving it the right to run code.

A torch.save file is a pickle, and a pickle is a program. The order here is: name the format from its bytes, read the
pickle without executing it, compare what it asks for and claims with what is allowed and there, and only then let
`torch.load(weights_only=True)` build tensors. When that refuses, so do we, and say what the file wants: whether to
trust a file is the user's decision and is never made by falling back.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from probes.checkpoint.archive import read_record, records
from probes.checkpoint.claims import check_expansion, check_records, check_total
from probes.checkpoint.contents import Checkpoint, find_contents
from probes.checkpoint.distributed import load_distributed
from probes.checkpoint.errors import CheckpointError, UnsafeCheckpointError, listed, printable
from probes.checkpoint.folder import load_folder
from probes.checkpoint.formats import Format
from probes.checkpoint.permission import imported, unsafe_names
from probes.checkpoint.program import exported_weights, torchscript_weights
from probes.checkpoint.scan import Name, scan_pickle
from probes.checkpoint.sniff import sniff
from probes.checkpoint.streamed import Sources, Streamed

_STATE_DICT_ONLY = "save the model's state_dict() alone with torch.save"
_TRUST = "for a file you made yourself, --trust (trust=True), which runs any code that is in the file"
_ALLOW = (
    "for names you know, --allow-global NAME (allow=[...]), which imports that one name and lets the file call it with "
    "arguments of its choice"
)


def load_checkpoint(path: str | Path, *, trust: bool = False, allow: Sequence[str] = ()) -> Checkpoint:
    """Open a checkpoint on the CPU and find the model, the optimizer and the step in it.

    Zip archives and safetensors files are memory mapped, and the tensors of a distributed checkpoint read one at a
    time: all are read when they are used, so the files must not be overwritten while they are. Of a program
    (TorchScript, torch.export) the weights are read and nothing else.

    Args:
        path: a file from torch.save, with or without zip, torch.jit.save, torch.export.save or safetensors, whatever
            it is called; or a folder of Hugging Face, accelerate or torch.distributed.checkpoint.
        trust: let the file import and call what it wants (`weights_only=False`). Only for files you made yourself.
        allow: dotted names the file may import and call beside torch's own list; each is imported here. This does not
            help with a bare pickle, whose tensors cannot be built without full trust.

    Raises:
        UnsafeCheckpointError: the file wants more than tensors and containers. Nothing of it was executed.
        CheckpointError: the file is missing, damaged, not a checkpoint, or has no named tensors in it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "last.pt"
    ...     torch.save({"model": {"weight": torch.ones(2)}, "step": 7}, path)
    ...     checkpoint = load_checkpoint(path)
    >>> checkpoint.step, list(checkpoint.parameters)
    (7, ['weight'])
    """
    path = Path(path)
    with _one_clear_error(path), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kind = sniff(path)
        loaded: Any
        sources: Sources = {}
        files: tuple[Path, ...] = (path,)
        notes: list[str] = []
        if kind is Format.DISTRIBUTED:
            loaded, sources, files = load_distributed(path)
        elif kind is Format.FOLDER:
            contents = load_folder(path, lambda file: _load_file(file, sniff(file), trust, allow))
            loaded, files, notes = contents.raw, contents.files, [*contents.notes]
        else:
            loaded = _load_file(path, kind, trust, allow)
        notes += dict.fromkeys(f"torch warned: {printable(warning.message)}" for warning in caught)
        checkpoint = find_contents(path, kind, loaded, tuple(notes), files)
        check_expansion(path, checkpoint.size, checkpoint.parameters)
    clear = {key: partial(_clearly, path, read) for key, read in sources.items()}
    return _streamed(checkpoint, clear) if clear else checkpoint


def _streamed(checkpoint: Checkpoint, sources: Sources) -> Checkpoint:
    optimizer = checkpoint.optimizer
    return replace(
        checkpoint,
        raw=Streamed(checkpoint.raw, sources),
        parameters=Streamed(checkpoint.parameters, sources),
        optimizer=None if optimizer is None else Streamed(optimizer, sources),
    )


def _clearly(path: Path, read: Callable[[], Tensor]) -> Tensor:
    with _one_clear_error(path):
        return read()


def _load_file(path: Path, kind: Format, trust: bool, allow: Sequence[str]) -> Any:
    if kind is Format.SAFETENSORS:
        return _map_safetensors(path)
    if kind is Format.TORCHSCRIPT:
        return torchscript_weights(path)
    return exported_weights(path) if kind is Format.EXPORTED else _load_pickle(path, kind, trust, allow)


def _map_safetensors(path: Path) -> dict[str, Tensor]:
    # The library's own load_file goes through all of the file at once.
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping


def _load_pickle(path: Path, kind: Format, trust: bool, allow: Sequence[str]) -> Any:
    if path.suffix == ".safetensors":
        # torch.load would hand the file to safetensors by its name alone.
        raise CheckpointError(
            f"{path.name} is named like a safetensors file, but is {kind}",
            given=str(kind),
            expected="a name that fits",
            attempt="rename it to .pt, and ask where it comes from",
        )
    names = _check(path, kind)
    if kind is Format.PICKLE:
        return _load_bare(path, names, trust)
    mapped = kind is Format.TORCH_ZIP
    if trust:
        return torch.load(path, map_location="cpu", weights_only=False, mmap=mapped)
    with torch.serialization.safe_globals([*imported(allow)]):
        refused = unsafe_names(names)
        if refused:
            raise _refusal(path, kind, f"it asks for {listed(refused)}", refused)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            reason, wanted = _torch_says(str(error))
            raise _refusal(path, kind, reason, wanted) from error


def _load_bare(path: Path, names: Sequence[Name], trust: bool) -> Any:
    if trust:
        with path.open("rb") as file:
            return pickle.load(file)
    refused = unsafe_names(names)
    if refused:
        raise _refusal(path, Format.PICKLE, f"it asks for {listed(refused)}", refused)
    raise CheckpointError(
        f"{path.name} is a bare pickle without tensors",
        given="numbers, strings, lists and dicts only",
        expected="a file from torch.save or a .safetensors file",
        attempt=_STATE_DICT_ONLY,
    )


def _check(path: Path, kind: Format) -> tuple[Name, ...]:
    if kind is Format.TORCH_ZIP:
        held = records(path)
        scan = scan_pickle(io.BytesIO(read_record(path, held["data.pkl"])))
        check_records(path, held, scan.storages)
        return scan.names
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if kind is Format.PICKLE:
            return scan_pickle(data).names
        # magic number, protocol version, system information, the object, the keys of its storages
        scans = [scan_pickle(data) for _ in range(5)]
        check_total(path, scans[3].storages)
        return tuple(name for scan in scans for name in scan.names)


def _refusal(path: Path, kind: Format, reason: str, wanted: tuple[str, ...]) -> UnsafeCheckpointError:
    # The tensors of a bare pickle come from a function that unpickles again, without limits: allowing it is trust.
    choices = (_STATE_DICT_ONLY, _TRUST) if kind is Format.PICKLE else (_STATE_DICT_ONLY, _ALLOW, _TRUST)
    return UnsafeCheckpointError(
        f"{path.name} was refused before anything that is not allowed could run: {reason}",
        globals=wanted,
        given=str(kind),
        expected="tensors, numbers, strings, lists and dicts only",
        attempt=", or ".join(choices),
    )


def _torch_says(message: str) -> tuple[str, tuple[str, ...]]:
    # torch wraps its reason in advice about its own arguments, with colours; the reason is one sentence of it.
    operand = re.search(r"Unsupported operand (\d+)", message)
    if operand:
        code = chr(int(operand.group(1)))
        name = next(instruction.name for instruction in pickletools.opcodes if instruction.code == code)
        return (
            f"it uses the pickle instruction {name}, which torch reads only with trust; pickle_protocol=2 avoids it",
            (),
        )
    found = re.search(r"but got <class '([\w.]+)'>", message) or re.search(r"GLOBAL ([\w.]+)", message)
    if found:
        never = ", which torch never allows" if "is blocked" in message else ""
        return f"it asks for {found.group(1)}{never}", (found.group(1),)
    sentence = re.search(r"(?:Can only|Trying to|Only|persistent|unsupported)[^\n]*", message)
    return printable(sentence.group() if sentence else message), ()


@contextmanager
def _one_clear_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{path.name} needs code that cannot be imported here, or is damaged",
            given=f"{type(error).__name__}: {printable(error)}",
            expected="a file whose classes can be imported",
            attempt=f"run where your training code can be imported, or {_STATE_DICT_ONLY}",
        ) from error
    # Over damaged bytes torch, pickle and safetensors raise anything at all, and trusted code may too.
    except Exception as error:
        raise CheckpointError(
            f"{path.name} could not be read: it is damaged or cut short",
            given=f"{type(error).__name__}: {printable(error)}",
            expected="the whole file, as it was saved",
            attempt="copy or save the checkpoint again",
        ) from error
