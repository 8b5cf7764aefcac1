"""The names of files that are not checkpoints, from their first bytes.

A person who passes the wrong file is helped by hearing which file it is. Each entry holds where the signature starts,
its bytes, what the file is, and what to do with it. Longer and more telling signatures stand before shorter ones.
"""

from __future__ import annotations

from typing import NamedTuple

_UNPACK = "unpack it and pass the file inside"
_DOWNLOAD = "download the file again; this is the page or pointer that stands in its place"


class Signature(NamedTuple):
    """How one kind of file begins, what it is called, and what its owner can do."""

    start: int
    magic: bytes
    name: str
    attempt: str


SIGNATURES = (
    Signature(0, b"version https://git-lfs", "a Git LFS pointer, not the file it points to", "git lfs pull"),
    Signature(
        0,
        b"sys_info\x00",
        "a tar archive from torch.save before torch 0.1.10",
        "torch.save(torch.load(path, weights_only=False), 'new.pt') in an environment that trusts it: torch reads tar "
        "archives with trust only",
    ),
    Signature(257, b"ustar", "a tar archive", _UNPACK),
    Signature(0, b"\x1f\x8b", "a gzip file", "gunzip it and pass the file inside"),
    Signature(0, b"BZh", "a bzip2 file", _UNPACK),
    Signature(0, b"\xfd7zXZ\x00", "an xz file", _UNPACK),
    Signature(0, b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK),
    Signature(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    Signature(0, b"Rar!\x1a\x07", "a rar archive", _UNPACK),
    Signature(
        0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "load it with Keras or h5py and torch.save its weights as a state dict"
    ),
    Signature(0, b"\x93NUMPY", "a numpy array", "torch.save({'name': torch.from_numpy(array)}, path)"),
    Signature(0, b"GGUF", "a GGUF file", "pass the checkpoint it was converted from"),
    Signature(4, b"TFL3", "a TensorFlow Lite model", "pass the checkpoint it was converted from"),
    Signature(0, b"PAR1", "a Parquet file", ""),
    Signature(0, b"ARROW1", "an Arrow file", ""),
    Signature(0, b"SQLite format 3\x00", "an SQLite database", ""),
    Signature(0, b"\x89PNG\r\n\x1a\n", "a PNG image", ""),
    Signature(0, b"\xff\xd8\xff", "a JPEG image", ""),
    Signature(0, b"GIF8", "a GIF image", ""),
    Signature(0, b"%PDF-", "a PDF document", ""),
    Signature(0, b"\x7fELF", "a program or shared library (ELF)", ""),
    Signature(0, b"MZ", "a Windows program", ""),
    Signature(0, b"\xca\xfe\xba\xbe", "a Java class or macOS program", ""),
    Signature(0, b"<!DOCTYPE", "a web page", _DOWNLOAD),
    Signature(0, b"<!doctype", "a web page", _DOWNLOAD),
    Signature(0, b"<html", "a web page", _DOWNLOAD),
)

_TEXT_CONTROLS = frozenset(b"\t\n\r\f\x1b")


def foreign(head: bytes) -> tuple[str, str]:
    r"""Say what a file is from its first bytes.

    Args:
        head: the first bytes of the file, 512 or as many as there are.

    Returns:
        its kind and what to try, or two empty strings for bytes that nobody has claimed.

    >>> foreign(b"\x93NUMPY\x01\x00")[0]
    'a numpy array'
    """
    for signature in SIGNATURES:
        if head[signature.start :].startswith(signature.magic):
            return signature.name, signature.attempt
    if not head.strip(b"\x00"):
        return "zero bytes only, as an interrupted write leaves them", "save or copy the checkpoint again"
    if _is_onnx(head):
        return "an ONNX model", "pass the PyTorch checkpoint it was exported from"
    if _is_text(head):
        kind = "a JSON text" if head.lstrip()[:1] in (b"{", b"[") else "a text file"
        return kind, "pass the file that holds the weights"
    return "", ""


def _is_onnx(head: bytes) -> bool:
    # ModelProto has no magic: its first two fields are ir_version (a small varint) and producer_name (a string) in
    # all exporters we know of.
    return len(head) > 4 and head[0] == 0x08 and 1 <= head[1] <= 32 and head[2] == 0x12


def _is_text(head: bytes) -> bool:
    if any(byte < 32 and byte not in _TEXT_CONTROLS for byte in head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        # The head may end in the middle of a character.
        return len(head) - error.start < 4 and error.start > 0
    return True
