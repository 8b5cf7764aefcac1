"""The formats of checkpoints that can be opened, or at least told apart."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    """The kinds of file and folder that hold PyTorch weights, by the words a message uses for them."""

    TORCH_ZIP = "a torch.save archive"
    TORCH_LEGACY = "a torch.save stream from before torch 1.6"
    PICKLE = "a bare pickle"
    TORCHSCRIPT = "a TorchScript archive"
    EXPORTED = "a torch.export archive"
    SAFETENSORS = "a safetensors file"
    FOLDER = "a folder with weights"
    DISTRIBUTED = "a torch.distributed.checkpoint folder"
