"""What a file is, decided from its first bytes and, for a zip, from its table of contents.

Nothing is unpickled, imported or executed, so this is safe on any file. The file's name is not asked: a checkpoint
called `model.bin` may be of any format. Of a folder it is the names of the files in it that tell.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

from probes.checkpoint.archive import members
from probes.checkpoint.errors import CheckpointError, listed
from probes.checkpoint.folder import is_index, sniff_folder
from probes.checkpoint.formats import Format
from probes.checkpoint.scan import scan_pickle
from probes.checkpoint.signatures import foreign

_HEAD = 512  # enough for every signature; the last one is tar's, at 257
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
# 0x1950a86a20f9469cfc6c, torch.serialization.MAGIC_NUMBER, as a binary pickle and as a text pickle write it
_LEGACY_MAGIC = (b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"L119547037146038801333356L\n.")
_PICKLE_STARTS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_TEXT_PICKLE_STARTS = frozenset(b"(]}lcdiVSIFLNpgKMJUTX)")
_SAFETENSORS_LONGEST_HEADER = 100_000_000  # the library's own limit


def sniff(path: Path) -> Format:
    """Say which kind of checkpoint a file or a folder is, without executing anything in it.

    Args:
        path: the file or the folder.

    Returns:
        one of the formats that hold PyTorch weights.

    Raises:
        CheckpointError: the file is missing, unreadable, empty, truncated, or something else; the message says what it
            is.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "model.bin"
    ...     torch.save({"weight": torch.ones(2)}, path)
    ...     sniff(path)
    <Format.TORCH_ZIP: 'a torch.save archive'>
    """
    if os.path.isdir(path):
        return sniff_folder(path)
    head, size = _first_bytes(path)
    if is_index(path) and head.lstrip()[:1] == b"{":
        return Format.FOLDER
    if head.startswith(_ZIP):
        return _sniff_zip(path)
    if any(magic in head[:64] for magic in _LEGACY_MAGIC):
        return Format.TORCH_LEGACY
    if _begins_as_safetensors(head, size):
        return Format.SAFETENSORS
    if head.startswith(_PICKLE_STARTS) or _is_text_pickle(path, head):
        return Format.PICKLE
    kind, attempt = foreign(head)
    raise CheckpointError(
        f"{path.name} is {kind}" if kind else f"{path.name} is not a checkpoint",
        given=f"{size:,} bytes that begin with {head[:16]!r}",
        expected="a file from torch.save or a .safetensors file",
        attempt=attempt or "pass the file your training script saved",
    )


def _first_bytes(path: Path) -> tuple[bytes, int]:
    expected = "a file from torch.save or a .safetensors file"
    try:
        status = path.stat()
        # Opening a pipe waits for a writer, perhaps for ever.
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a regular file", given="a device, pipe or socket", expected=expected)
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", expected=expected, attempt="check the path") from error
    except PermissionError as error:
        raise CheckpointError(
            f"{path} may not be read", given=str(error), expected="read permission", attempt=f"chmod u+r {path}"
        ) from error
    except (OSError, UnicodeError) as error:
        raise CheckpointError(f"{path} cannot be opened", given=str(error), expected=expected) from error
    if not head:
        raise CheckpointError(
            f"{path.name} is empty",
            given="0 bytes",
            expected=expected,
            attempt="a run that was killed while saving leaves such a file; take the checkpoint before it",
        )
    return head, status.st_size


def _sniff_zip(path: Path) -> Format:
    if path.suffix == ".distcp":
        raise CheckpointError(
            f"{path.name} is a part of a distributed checkpoint",
            given="the file of one rank",
            expected="the folder, with the files of every rank and .metadata",
            attempt=f"pass {path.parent}",
        )
    names = tuple(entry.filename for entry in members(path))
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside:
        return Format.TORCHSCRIPT
    if "archive_format" in inside or "serialized_exported_program.json" in {*inside, *names}:
        return Format.EXPORTED
    if "data.pkl" in inside:
        return Format.TORCH_ZIP
    kind = "a zip archive, but not one from torch.save"
    if names and all(name.endswith(".npy") for name in names):
        kind = "a numpy .npz archive"
    elif "model.weights.h5" in names:
        kind = "a Keras archive"
    raise CheckpointError(
        f"{path.name} is {kind}",
        given=f"a zip archive of {listed(names)}" if names else "a zip archive with nothing in it",
        expected="a record `data.pkl` in one folder, as torch.save writes it",
        attempt="unpack it and pass the checkpoint inside, if there is one",
    )


def _begins_as_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= min(_SAFETENSORS_LONGEST_HEADER, max(size, 1 << 24))


def _is_text_pickle(path: Path, head: bytes) -> bool:
    # Protocols 0 and 1 have no header; a file is one only when every byte of it is a valid instruction up to the STOP.
    if head[0] not in _TEXT_PICKLE_STARTS or len(head) < 2:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[-1:] != b".":
            return False
        try:
            scan_pickle(data)
        except ValueError:
            return False
        return data.tell() == len(data)
