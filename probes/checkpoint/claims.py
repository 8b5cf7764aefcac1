"""What a checkpoint claims against what it holds.

The pickle in a torch.save file says how long each storage is. Torch believes it: a claim larger than the record reads
the bytes behind it, or allocates whatever number the file names. So claims are compared with the file before torch
sees them, and the shapes of the loaded tensors with their storages after.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from zipfile import ZipInfo

import torch
from torch import Tensor

from probes.checkpoint.errors import CheckpointError, printable
from probes.checkpoint.scan import StorageClaim

# The storage classes that torch writes into pickles. The list is closed: dtypes made since are written as
# UntypedStorage, counted in bytes.
_BYTES_PER_ELEMENT = {
    "UntypedStorage": 1,
    "ByteStorage": 1,
    "CharStorage": 1,
    "BoolStorage": 1,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
    "ShortStorage": 2,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "IntStorage": 4,
    "FloatStorage": 4,
    "QInt32Storage": 4,
    "LongStorage": 8,
    "DoubleStorage": 8,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}
_HARMLESS_EXPANSION = 1 << 30


def check_records(path: Path, records: Mapping[str, ZipInfo], claims: Iterable[StorageClaim]) -> None:
    """Compare each storage that the pickle claims with the record that holds its bytes.

    Args:
        path: the torch.save archive, for the message.
        records: its records by name.
        claims: what its pickle says.

    Raises:
        CheckpointError: a record is missing or is not as long as claimed.
    """
    for claim in claims:
        record = records.get(f"data/{claim.key}")
        if record is None:
            raise CheckpointError(
                f"{path.name} is a torch.save archive with a missing record",
                given=f"no record data/{printable(claim.key)}, which its pickle refers to",
                expected="the bytes of every tensor",
                attempt="copy or save the checkpoint again",
            )
        claimed = _claimed_bytes(claim)
        if claimed is not None and claimed != record.file_size:
            raise CheckpointError(
                f"{path.name} is a torch.save archive that contradicts itself",
                given=f"a tensor that claims {claimed:,} bytes in record data/{printable(claim.key)}, "
                f"which holds {record.file_size:,}",
                expected="records as long as their tensors",
                attempt="copy or save the checkpoint again",
            )


def check_total(path: Path, claims: Iterable[StorageClaim]) -> None:
    """Compare the storages that a legacy stream claims with the size of the file.

    Args:
        path: the legacy torch.save file.
        claims: what its pickle says.

    Raises:
        CheckpointError: the claims are more than the file can hold.
    """
    claimed = sum(abs(_claimed_bytes(claim) or 0) for claim in claims)
    size = path.stat().st_size
    if claimed > size:
        raise CheckpointError(
            f"{path.name} is a truncated or forged torch.save stream",
            given=f"tensors that claim {claimed:,} bytes in a file of {size:,}",
            expected="the bytes of every tensor",
            attempt="copy or save the checkpoint again",
        )


def check_expansion(path: Path, size: int, parameters: Mapping[str, Tensor]) -> None:
    """Refuse tensors that unfold a few stored bytes into billions of elements by a stride of zero.

    An expanded tensor up to 1 GiB is harmless and let through: training code does save them.

    Args:
        path: the checkpoint, for the message.
        size: its bytes.
        parameters: its tensors.

    Raises:
        CheckpointError: a tensor has far more elements than the file has bytes for.
    """
    limit = max(size, _HARMLESS_EXPANSION)
    for name, tensor in parameters.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_nested:
            continue
        claimed = tensor.numel() * tensor.element_size()
        if claimed > limit:
            raise CheckpointError(
                f"{path.name} holds a tensor that is larger than the file",
                given=f"{printable(name)} of shape {tuple(tensor.shape)}, {claimed:,} bytes over a storage of "
                f"{tensor.untyped_storage().nbytes():,}",
                expected="tensors whose elements are all stored",
                attempt="save tensor.contiguous(), or a single copy of the repeated values",
            )


def _claimed_bytes(claim: StorageClaim) -> int | None:
    width = _BYTES_PER_ELEMENT.get(claim.kind)
    return None if width is None else claim.elements * width
