"""Keeping a memory-mapped file out of memory once it has been read.

Pages of a mapped file stay resident until the system needs the room, and count as the process's. Handed back after
every piece, reading a checkpoint takes the room of a piece and not of the file; the system keeps them in its cache, and
a second reading does not go to the disk. Only mappings that nobody has written to are touched: what was written would
be lost. That is looked up once, so the tensors must not be changed while pages are handed back.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

_MAPPINGS = Path("/proc/self/smaps")
_CHANGED = ("Anonymous:", "Swap:")


class Pages:
    """The pages of files that this process has mapped and not changed; none elsewhere than on Linux.

    Args:
        paths: the files.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(torch.ones(3000), Path(folder) / "last.pt")
    ...     weight = torch.load(Path(folder) / "last.pt", mmap=True)
    ...     Pages(Path(folder) / "last.pt").let_go(weight)
    ...     float(weight.sum())
    3000.0
    """

    def __init__(self, *paths: Path) -> None:
        self._ranges = tuple(_unchanged({str(path.resolve()) for path in paths})) if sys.platform == "linux" else ()

    def let_go(self, tensor: Tensor) -> None:
        """Hand back the pages that lie wholly within a tensor's storage; one that is not mapped is left alone."""
        if not self._ranges or tensor.layout is not torch.strided or tensor.is_nested or tensor.device.type != "cpu":
            return
        storage = tensor.untyped_storage()
        start = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end and any(first <= start and end <= last for first, last in self._ranges):
            _advise(start, end - start, mmap.MADV_DONTNEED)


def _unchanged(names: set[str]) -> Iterator[tuple[int, int]]:
    """The addresses at which files are mapped, with no page that was written to."""
    try:
        lines = _MAPPINGS.read_text(errors="replace").splitlines()
    except OSError:
        return
    found: tuple[int, int] | None = None
    for line in [*lines, "0-0 end"]:
        name, *rest = line.split(maxsplit=5)
        if not name.endswith(":"):
            if found is not None:
                yield found
            start, _, end = name.partition("-")
            found = (int(start, 16), int(end, 16)) if rest[-1] in names else None
        elif name in _CHANGED and rest[0] != "0":
            found = None


if sys.platform == "linux":
    _advise = ctypes.CDLL(None).madvise
    _advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
