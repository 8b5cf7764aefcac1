"""What DistributedDataParallel does with a bucket of gradients when it has no communication hook, bit for bit.

It multiplies each gradient by 1/W while copying it into the bucket, and all-reduces the sum. A gradient that is a view
of the bucket already, as ``gradient_as_bucket_view=True`` leaves it when it is set to zero and not to None, is divided
by W instead. The two differ in the last bit unless W is a power of two; for other W, hooks tell them apart.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel


class NativeReduction:
    """Averages buckets over the ranks of a model."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self.group = model.process_group
        self.world = distributed.get_world_size(self.group)
        self._addresses: dict[int, int] = {}
        self._look = model.gradient_as_bucket_view and self.world & (self.world - 1) != 0
        if self._look:
            # DDP copies into the bucket right after these.
            for tensor in model.parameters():
                if tensor.requires_grad:
                    tensor.register_post_accumulate_grad_hook(partial(_note_address, self._addresses))

    def __call__(self, bucket: Any) -> torch.futures.Future[Any]:
        """Begin to reduce; the future holds the mean over ranks in a list."""
        buffer = bucket.buffer()
        if self._look:
            for tensor, view in zip(bucket.parameters(), bucket.gradients(), strict=True):
                if self._addresses.get(id(tensor)) == view.data_ptr():
                    view.div_(self.world)
                else:
                    view.mul_(1.0 / self.world)
                self._addresses[id(tensor)] = view.data_ptr()
        else:
            buffer.mul_(1.0 / self.world)
        future: torch.futures.Future[Any] = distributed.all_reduce(buffer, group=self.group, async_op=True).get_future()
        return future


def _note_address(addresses: dict[int, int], tensor: Tensor) -> None:
    if tensor.grad is not None:
        addresses[id(tensor)] = tensor.grad.data_ptr()
