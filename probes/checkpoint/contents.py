"""What a checkpoint holds: which of its entries is the model, which the optimizer, and how far the run had come.

PyTorch prescribes no layout, so every training script has its own. The model is looked for in this order: an entry
with a usual name (`model`, `state_dict`, ...), the checkpoint itself when it maps names to tensors, and last any
other entries that do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from probes.checkpoint.errors import CheckpointError, listed, printable
from probes.checkpoint.formats import Format
from probes.checkpoint.names import unwrapped
from probes.checkpoint.progress import find_epoch, find_optimizer, find_step, is_optimizer

_MODEL = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "module",
    "params",
    "weights",
    "ema",
    "ema_state_dict",
    "model_ema",
)
_EXPECTED = "a state dict (parameter names to tensors), bare or in a dict under a name like 'model' or 'state_dict'"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        path: the file or the folder.
        format: what kind it is.
        files: the file itself, or those of the folder that were opened.
        raw: everything that was loaded, as the user's `build(checkpoint)` is handed it.
        parameters: the model's tensors (parameters and buffers) by name, without wrapper prefixes.
        optimizer: the optimizer's state dict, with `state` and `param_groups`, when there is one.
        step: optimizer steps taken, when the file says so.
        epoch: the epoch as the script counted it, when the file says so.
        notes: what a reader should know: names changed, entries left out, choices made.
    """

    path: Path
    format: Format
    files: tuple[Path, ...]
    raw: Mapping[str, Any]
    parameters: Mapping[str, Tensor]
    optimizer: Mapping[str, Any] | None
    step: int | None
    epoch: int | None
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes in the files that were opened."""
        return sum(file.stat().st_size for file in self.files)


def find_contents(
    path: Path, format: Format, loaded: object, notes: tuple[str, ...] = (), files: tuple[Path, ...] = ()
) -> Checkpoint:
    """Find the model, the optimizer, the step and the epoch in what was loaded.

    Args:
        path: where it was loaded from.
        format: what kind of file that is.
        loaded: what torch or safetensors returned.
        notes: what is already known and worth saying.
        files: those that were opened, if not that one.

    Raises:
        CheckpointError: there are no named tensors in it; the message says what there is.

    >>> import torch
    >>> weights = {"module.weight": torch.ones(2)}
    >>> found = find_contents(Path("last.pt"), Format.TORCH_ZIP, {"net": weights, "epoch": 2})
    >>> list(found.parameters), found.epoch, found.notes
    (['weight'], 2, ("'module.' taken off the names",))
    """
    raw: Mapping[Any, Any] | None = {"model": loaded} if isinstance(loaded, nn.Module) else None
    if isinstance(loaded, Mapping):
        raw = loaded
    model = None if raw is None or is_optimizer(raw) else _find_model(raw, set())
    if raw is None or model is None:
        raise CheckpointError(
            f"{path.name} has no named tensors in it",
            given="an optimizer's state dict, without its model" if is_optimizer(loaded) else _describe(loaded),
            expected=_EXPECTED,
            attempt="torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict()}, path)",
        )
    tensors, model_notes = model
    parameters, name_notes = unwrapped(tensors)
    optimizer, optimizer_notes = find_optimizer(raw)
    step, step_notes = find_step(raw, optimizer)
    return Checkpoint(
        path=path,
        format=format,
        files=files or (path,),
        raw=raw,
        parameters=parameters,
        optimizer=optimizer,
        step=step,
        epoch=find_epoch(raw),
        notes=(*notes, *model_notes, *name_notes, *optimizer_notes, *step_notes),
    )


_Model = tuple[dict[str, Tensor], tuple[str, ...]]


def _find_model(raw: Mapping[Any, Any], seen: set[int]) -> _Model | None:
    # A pickle can hold a dict that contains itself; each is looked into once.
    seen.add(id(raw))
    usual = [(key, found) for key in _MODEL if (found := _as_model(raw.get(key), seen)) is not None]
    if usual:
        (key, (tensors, notes)), *others = usual
        if others:
            names = ", ".join(repr(name) for name, _ in others)
            notes = (f"the model is {key!r}; also there: {names}", *notes)
        return tensors, notes
    own, parts = _own_tensors(raw), _joined_parts(raw, seen)
    # A bare state dict has its tensors at hand; a GAN's checkpoint has at most a few beside its networks.
    return max((own, parts), key=lambda found: len(found[0]) if found else 0)


def _joined_parts(raw: Mapping[Any, Any], seen: set[int]) -> _Model | None:
    parts = {
        str(key): found
        for key, value in raw.items()
        if "rng" not in str(key).lower() and (found := _as_model(value, seen)) is not None
    }
    if not parts:
        return None
    if len(parts) == 1:
        [(key, (tensors, notes))] = parts.items()
        return tensors, (f"the model is {printable(key)!r}", *notes)
    joined = {f"{key}.{name}": tensor for key, (tensors, _) in parts.items() for name, tensor in tensors.items()}
    note = f"several models, told apart by the beginning of their names: {listed(tuple(parts))}"
    return joined, (note, *(note for _, notes in parts.values() for note in notes))


def _as_model(value: object, seen: set[int]) -> _Model | None:
    if isinstance(value, nn.Module):
        return _own_tensors(value.state_dict())
    if not isinstance(value, Mapping) or is_optimizer(value) or id(value) in seen:
        return None
    return _find_model(value, seen)


def _own_tensors(mapping: Mapping[Any, Any]) -> _Model | None:
    tensors = {
        # One that is nobody's leaf stays the same object: others may know it by that.
        name: value.detach() if value.requires_grad else value
        for name, value in mapping.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        return None
    left = tuple(str(name) for name in mapping if name not in tensors)
    return tensors, (f"left out of the model, being no named tensors: {listed(left)}",) if left else ()


def _describe(loaded: object) -> str:
    if isinstance(loaded, Tensor):
        return f"one tensor of shape {tuple(loaded.shape)}, without a name"
    if isinstance(loaded, Mapping):
        entries = tuple(f"{key!r}: {type(value).__name__}" for key, value in loaded.items())
        return f"a {type(loaded).__name__} of {{{listed(entries)}}}"
    if isinstance(loaded, list | tuple):
        kinds = tuple(sorted({type(item).__name__ for item in loaded}))
        return f"a {type(loaded).__name__} of {len(loaded)}: {listed(kinds)}"
    return f"a {type(loaded).__name__}"
