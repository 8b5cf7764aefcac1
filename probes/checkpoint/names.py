"""Parameter names without the marks that wrappers leave on them.

DistributedDataParallel puts `module.` before every name, a LightningModule `model.`. torch.compile, FSDP and activation
checkpointing put a segment wherever a wrapped module stands. A name without them is the name in the user's model.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_PREFIXES = ("module.", "model.")
_SEGMENTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def unwrapped(parameters: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Take wrapper marks off the names.

    `module.` (DistributedDataParallel, DeepSpeed) and `model.` (a LightningModule around the model) are taken off only
    when every name carries them, since a model may well have such an attribute; the other marks are no names a person
    chooses and go wherever they stand.

    Args:
        parameters: tensors by the names in the checkpoint.

    Returns:
        tensors by the names in the model, and a note for each kind of mark that was taken off. When two names would
            become one, all are left as they are and the note says so.

    >>> import torch
    >>> unwrapped({"module._orig_mod.weight": torch.ones(1)})
    ({'weight': tensor([1.])}, ("'_orig_mod.' taken off the names", "'module.' taken off the names"))
    """
    names = list(parameters)
    notes = []
    for segment in _SEGMENTS:
        bare = [".".join(part for part in name.split(".") if part != segment) for name in names]
        if bare != names:
            notes.append(f"'{segment}.' taken off the names")
            names = bare
    while prefix := next((one for one in _PREFIXES if names and all(name.startswith(one) for name in names)), ""):
        note = f"'{prefix}' taken off the names"
        notes += [] if note in notes else [note]
        names = [name.removeprefix(prefix) for name in names]
    if len(set(names)) < len(names):
        return dict(parameters), ("names left as they are: without wrapper prefixes, two would be the same",)
    return dict(zip(names, parameters.values(), strict=True)), tuple(notes)
