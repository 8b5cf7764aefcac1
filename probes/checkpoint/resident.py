"""Keeping a memory-mapped file out of memory once it has been read.

Pages of a mapped file stay resident until the system needs the room, and count as the process's. They are handed back
after every piece, so that reading a checkpoint takes the room of a piece and not of the file. The advice is such that
nothing is lost, whatever the memory belongs to: what was changed since it was mapped stays.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch
from torch import Tensor

_PAGEOUT = 21
"""MADV_PAGEOUT of Linux 5.4 and later; an older one refuses it, and the pages stay."""


def let_go(tensor: Tensor) -> None:
    """Hand back the pages of a tensor's storage that lie wholly within it; elsewhere than on Linux, do nothing.

    Args:
        tensor: of any layout and device.

    >>> weight = torch.ones(3000)
    >>> let_go(weight)
    >>> float(weight.sum())
    3000.0
    """
    if sys.platform != "linux" or tensor.layout is not torch.strided or tensor.is_nested or tensor.device.type != "cpu":
        return
    storage = tensor.untyped_storage()
    start = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE - start
    if length > 0:
        _advise(start, length, _PAGEOUT)


if sys.platform == "linux":
    _advise = ctypes.CDLL(None).madvise
    _advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
