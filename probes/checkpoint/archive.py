"""The zip archive that torch.save writes: its table of contents and its pickle, read without torch.

torch.save stores every record uncompressed, in one folder: `name/data.pkl` is the pickle, `name/data/0` the bytes of
the first storage. A compressed record is therefore not from torch, cannot be memory mapped, and may unfold to far
more than the file's size; a record named twice means that two readers may see two files. Both are refused.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from probes.checkpoint.errors import CheckpointError, listed

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_END_RECORD = b"PK\x05\x06"
_END_RECORD_REACH = 65_557  # the longest comment a zip file may end with, and the end record itself


def members(path: Path) -> tuple[zipfile.ZipInfo, ...]:
    """Read the table of contents of a zip file.

    Args:
        path: the zip file.

    Returns:
        one entry per record, in the order of the table.

    Raises:
        CheckpointError: the file stops before its table of contents, or the table is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError, struct.error) as error:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - _END_RECORD_REACH))
            truncated = _END_RECORD not in file.read()
        raise CheckpointError(
            f"{path.name} is a truncated zip archive"
            if truncated
            else f"{path.name} is a zip archive with a damaged table of contents",
            given=f"{size:,} bytes that begin as a zip archive" + (" and stop before its end" if truncated else ""),
            expected="the whole file, as torch.save wrote it",
            attempt="copy or download it again; a run that was killed while saving leaves such a file, "
            "so take the checkpoint before it",
        ) from error


def read_record(path: Path, member: zipfile.ZipInfo) -> bytes:
    """Return the bytes of one uncompressed record.

    They are read by offset, since `zipfile` would refuse a file that was saved with
    `torch.serialization.set_crc32_options(False)`.

    Args:
        path: the zip file.
        member: the record, one of `members(path)`.

    Raises:
        CheckpointError: the record is not where the table of contents says.
    """
    start = data_offset(path, member)
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(min(member.file_size, path.stat().st_size))
    if len(data) == member.file_size:
        return data
    raise _not_there(path, member)


def data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Return where in the file the bytes of a record begin.

    Args:
        path: the zip file.
        member: the record, one of `members(path)`.

    Raises:
        CheckpointError: the record is not where the table of contents says.
    """
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER.size)
    if len(header) == _LOCAL_HEADER.size:
        magic, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        if magic == b"PK\x03\x04":
            return int(member.header_offset + _LOCAL_HEADER.size + name_length + extra_length)
    raise _not_there(path, member)


def _not_there(path: Path, member: zipfile.ZipInfo) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is a damaged torch.save archive",
        given=f"a table of contents that lists {listed((member.filename,))}, which is not there",
        expected="every record at its place",
        attempt="copy or save the checkpoint again",
    )


def records(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the records of a torch.save archive by their name inside its folder, such as `data.pkl` and `data/0`.

    Args:
        path: a file that `sniff` called a torch.save archive.

    Raises:
        CheckpointError: a record is compressed or named twice.
    """
    entries = members(path)
    compressed = tuple(entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED)
    if compressed:
        unfolded = sum(entry.file_size for entry in entries)
        raise CheckpointError(
            f"{path.name} is a torch.save archive that was compressed afterwards",
            given=f"compressed records {listed(compressed)}; {unfolded:,} bytes are claimed to be in "
            f"{path.stat().st_size:,}",
            expected="uncompressed records, as torch.save writes them",
            attempt="save the checkpoint again, or unpack it and pack it with `zip -0 -r`",
        )
    named = {entry.filename.partition("/")[2]: entry for entry in entries}
    if len(named) != len(entries):
        raise CheckpointError(
            f"{path.name} is a zip archive with two records of the same name",
            given=f"{len(entries)} records with {len(named)} names",
            expected="one folder in which every name is used once, as torch.save writes it",
            attempt="save the checkpoint again",
        )
    return named
