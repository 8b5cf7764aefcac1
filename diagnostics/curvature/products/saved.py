"""How much memory an autograd graph holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Graph:
    """Bytes in the distinct storages that a graph saves for its backward pass."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()

    def save(self, tensor: Tensor) -> Tensor:
        """Count a tensor, and hand it back as a constant."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        # The tensor itself would tie the graph into a cycle that nothing ever frees.
        return tensor.detach()


@contextmanager
def measured_graph() -> Iterator[Graph]:
    """Count what the graphs built inside save.

    Example:
        >>> x = torch.ones(100, requires_grad=True)
        >>> with measured_graph() as graph:
        ...     y = x.exp()
        >>> graph.bytes
        400
    """
    graph = Graph()
    with torch.autograd.graph.saved_tensors_hooks(graph.save, lambda saved: saved):
        yield graph
