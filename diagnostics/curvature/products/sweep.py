"""Products with a sum over batches, from one map for each batch.

A batch's map is a piece of autograd graph that can be used again and again: building it costs a gradient or two, and
holding it costs memory. With one batch it is kept; with several as many are kept as fit into ``KEPT_BYTES``, judged by
the size of the first, and the others are built anew for every block of vectors, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from diagnostics.curvature.products.saved import measured_graph
from diagnostics.objective import Objective
from diagnostics.quiet import quiet

T = TypeVar("T")
Parts = Sequence[Tensor]

KEPT_BYTES = 2 * 2**30
"""What graphs may hold between products, when there is more than one batch."""


class BatchMap(Protocol):
    """The symmetric map of one batch, on tensors shaped like the selected parameters."""

    def __call__(self, vector: Parts, /) -> Parts:
        """Of one vector."""

    def many(self, vectors: Parts, /) -> Parts:
        """Of K vectors in one pass: every tensor has a leading axis K."""


class Sweep:
    """Σ_b w_b A_b, with A_b built from a batch's index and the leaves at which to differentiate.

    Args:
        objective: whose batches and weights.
        values: θ, one tensor per selected parameter; held fixed.
        build: makes a batch's map; called inside ``quiet`` with the leaves in the place of the parameters.
        batched: take the vectors of a block in one pass, as long as that works and gives the same.
        keep_all: keep every map, whatever it holds.
    """

    def __init__(
        self,
        objective: Objective,
        values: Parts,
        build: Callable[[int, list[Tensor]], BatchMap],
        *,
        batched: bool = False,
        keep_all: bool = False,
    ) -> None:
        self.objective = objective
        self.leaves = [value.detach().requires_grad_() for value in values]
        self.batched = batched
        self._agreed: set[int] = set()
        self._build = build
        self._kept: dict[int, BatchMap] = {}
        self._counted = [index for index, weight in enumerate(objective.weights) if weight]
        self._room = len(self._counted) if keep_all or len(self._counted) == 1 else -1
        self._steady = False

    @property
    def keeping(self) -> str:
        """Which graphs outlive a product, in words."""
        if self._room < 0:
            return "graphs kept while they fit"
        if len(self._counted) == 1:
            return "kept graph"
        if self._room >= len(self._counted):
            return f"{len(self._counted)} kept graphs"
        return f"{self._room} of {len(self._counted)} graphs kept" if self._room else "fresh graphs"

    @property
    def keeps_all(self) -> bool:
        """Whether no batch's graph is built again from here on."""
        return self._room >= len(self._counted)

    def steadily(self, action: Callable[[], T]) -> T:
        """Run an action inside ``quiet``, with the leaves in the model; products taken in it skip that set-up."""
        if self._steady:
            return action()
        with quiet(self.objective.model, self.objective.mode):
            self._steady = True
            try:
                # Checkpointed segments run again while products are taken, and must see the leaves.
                return self.objective.placed(self.leaves, action)
            finally:
                self._steady = False

    def products(self, block: Tensor) -> Tensor:
        """(P, K) from (P, K)."""
        return self.steadily(lambda: self._products(block))

    def replaced(self, build: Callable[[int, list[Tensor]], BatchMap]) -> Sweep:
        """The same sum from other maps, with as many of them kept."""
        other = Sweep(self.objective, self.leaves, build, keep_all=True)
        other._steady = self._steady
        return other

    def of_batch(self, index: int, vector: Tensor) -> Parts:
        """One batch's share of a product, unweighted: to find out which batch is to blame for what."""
        return self.steadily(lambda: self._map(index)(self.objective.space.unflatten(vector)))

    def _products(self, block: Tensor) -> Tensor:
        space = self.objective.space
        rows = block.T.contiguous()
        total = torch.empty_like(rows)
        for place, index in enumerate(self._counted):
            batch_map = self._map(index)
            if self.batched and len(rows) > 1 and (together := self._in_one_pass(index, batch_map, rows)):
                _add(total, together, self.objective.weights[index], first=place == 0)
                continue
            for row, sums in zip(rows, total, strict=True):
                parts = [_dense(part).reshape(-1) for part in batch_map(space.unflatten(row))]
                _add(sums, parts, self.objective.weights[index], first=place == 0)
        return total.T

    def _in_one_pass(self, index: int, batch_map: BatchMap, rows: Tensor) -> list[Tensor]:
        """The block's products in one pass; empty, for good, when that is refused, too large, or wrong."""
        space = self.objective.space
        try:
            several = [_dense(part).reshape(len(rows), -1) for part in batch_map.many(_split(rows, space.tensors))]
            if index not in self._agreed:
                alone = torch.cat([_dense(part).reshape(-1) for part in batch_map(space.unflatten(rows[0]))])
                off = torch.linalg.vector_norm(torch.cat([part[0] for part in several]) - alone)
                near = torch.finfo(rows.dtype).eps ** 0.5 * torch.linalg.vector_norm(alone)
                self.batched = bool(off <= near)
                self._agreed.add(index)
        except (RuntimeError, NotImplementedError):
            self.batched = False
        return several if self.batched else []

    def _map(self, index: int) -> BatchMap:
        if index in self._kept:
            return self._kept[index]
        with torch.enable_grad():
            if self._room < 0:
                with measured_graph() as graph:
                    made = self._build(index, self.leaves)
                self._room = min(len(self._counted), KEPT_BYTES // max(1, graph.bytes))
            else:
                made = self._build(index, self.leaves)
        if len(self._kept) < self._room:
            self._kept[index] = made
        return made


def _dense(part: Tensor) -> Tensor:
    """As a plain tensor: embeddings may give sparse gradients."""
    return part.detach().to_dense() if part.is_sparse else part.detach()


def _add(total: Tensor, parts: Sequence[Tensor], weight: float, *, first: bool) -> None:
    """Add weighted parts along the last axis of ``total``, which is not yet set when they are the first."""
    start = 0
    for part in parts:
        stretch = total[..., start : start + part.shape[-1]]
        if not first:
            stretch.add_(part.to(stretch), alpha=weight)
        elif weight == 1.0:
            stretch.copy_(part)
        else:
            torch.mul(part.to(stretch), weight, out=stretch)
        start += part.shape[-1]


def _split(rows: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    sizes = [tensor.numel() for tensor in tensors]
    return [
        part.reshape(len(rows), *tensor.shape).to(tensor.device, tensor.dtype)
        for part, tensor in zip(rows.split(sizes, dim=1), tensors, strict=True)
    ]
