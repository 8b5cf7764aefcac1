"""The rows of a Gauss-Newton matrix G = Aᵀ S A, each one backward pass from one column of a root of the loss Hessian.

With B_b = R_b S_b R_bᵀ, S_b a diagonal of signs, A has the rows √w_b R_bᵀ J_b of all batches. For cross-entropy the
columns are √(c p_k) (e_k − p), k running over classes: the gradients that the Fisher matrix averages, so no C × C
matrix is ever factored.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from diagnostics.curvature.operators import GaussNewton
from diagnostics.curvature.products.saved import measured_graph
from diagnostics.errors import DiagnosticsError
from diagnostics.output_loss import Categorical, Elementwise, OutputLoss

T = TypeVar("T")

Root = tuple[Tensor, Callable[[slice], Tensor]]
"""The signs (M_b,) of S_b, and what gives some columns of √w_b R_b, each in the shape of the outputs."""

ROW_BYTES = 2**30
"""What rows of A may hold at once. More are cut into blocks of half, and each block is taken anew for every other."""

MOST_BLOCKS = 64
"""With more, the passes taken anew cost more than Lanczos would."""

PASS_ROWS = 64
"""Backward passes that are taken as one, if they fit."""

PASS_BYTES = {"cpu": 2**22}
"""What the model's inner values may hold meanwhile: on a CPU as much as its caches, or one by one is faster."""

LOST = 16.0
"""Rounding error of a derivative, relative to its size and in units of ε: we saw up to 1 in small models."""


class Rows:
    """A at the parameters as they were when the matrix was made, some rows or mixtures of rows at a time."""

    def __init__(self, matrix: GaussNewton, limit: int) -> None:
        self.objective = matrix.objective
        self.passes = 0
        self.batched = True
        self._proved = False
        self._matrix = matrix
        self._leaves = [value.detach().requires_grad_() for value in self.objective.space.values()]
        self._roots = self.steadily(lambda: self._find_roots(limit))
        self._sizes = [len(signs) for signs, _ in self._roots.values()]
        self.signs = torch.cat([signs for signs, _ in self._roots.values()])

    def steadily(self, action: Callable[[], T]) -> T:
        """Run an action inside ``quiet``, with θ in the model, which checkpointed segments run again."""
        return self._matrix.steadily(lambda: self.objective.placed(self._leaves, action))

    def gram(self, probe: Tensor) -> tuple[Tensor, Tensor, int]:
        """K (M, M), its lower half; G times a probe (P,), both in float64; and how many blocks of rows it took."""
        count, width = len(self.signs), self.objective.space.total
        size = max(1, count if 8 * count * width <= ROW_BYTES else ROW_BYTES // (16 * width))
        blocks = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        if len(blocks) > MOST_BLOCKS:
            raise DiagnosticsError(
                "the Jacobian is too large for the exact spectrum",
                given=f"{count:,} rows of {width:,} parameters, {8 * count * width / 2**30:,.3g} GiB",
                expected=f"at most {MOST_BLOCKS} blocks of {size:,} rows",
                attempt="Lanczos on GaussNewton(objective), fewer examples, or params= for some layers",
            )
        result, product = self.signs.new_zeros(count, count), torch.zeros_like(probe)
        for index, one in enumerate(blocks):
            left = self._block(one)
            result[one, one] = left @ left.T
            product += left.T @ (self.signs[one] * (left @ probe))
            for other in blocks[:index]:
                result[one, other] = left @ self._block(other).T
        return result, product, len(blocks)

    def mixed(self, mixing: Tensor) -> Tensor:
        """AᵀX, (P, k) from X (M, k)."""
        total = self.signs.new_zeros(mixing.shape[1], self.objective.space.total)
        for (index, (_, columns)), part in zip(self._roots.items(), mixing.split(self._sizes), strict=True):
            outputs, together = self._graph(index)
            cotangents = torch.zeros(mixing.shape[1], *outputs.shape, dtype=torch.float64, device=outputs.device)
            for some in _pieces(0, len(part), PASS_ROWS):
                cotangents += torch.tensordot(part[some].T, columns(some).double(), 1)
            total += torch.cat([self._pulled(outputs, some) for some in cotangents.to(outputs).split(together)])
        return total.T.to(self.objective.space.dtype)

    def _block(self, rows: slice) -> Tensor:
        """Some rows of A, in float64, for inner products lose less there."""
        result = self.signs.new_empty(rows.stop - rows.start, self.objective.space.total)
        offset = -rows.start
        for (index, (_, columns)), size in zip(self._roots.items(), self._sizes, strict=True):
            first, last = max(0, -offset), min(size, len(result) - offset)
            if first < last:
                outputs, together = self._graph(index)
                for some in _pieces(first, last, together):
                    result[offset + some.start : offset + some.stop] = self._pulled(outputs, columns(some))
            offset += size
        return result

    def _find_roots(self, limit: int) -> dict[int, Root]:
        roots: dict[int, Root] = {}
        room = limit
        for index, weight in enumerate(self.objective.weights):
            if weight:
                at = self.objective.batch_outputs(index, self._leaves)
                if not at.outputs.requires_grad:
                    self.objective.unreached(index)
                    continue
                room -= _size(at)
                if room < 0:
                    raise DiagnosticsError(
                        "examples × outputs are too many for the exact spectrum",
                        given=f"{limit - room:,} in {index + 1} of {len(self.objective.batches)} batches",
                        expected=f"at most limit={limit:,}",
                        attempt="Lanczos on GaussNewton(objective), or fewer examples",
                    )
                roots[index] = _root(at, weight)
        return roots

    def _graph(self, index: int) -> tuple[Tensor, int]:
        """The outputs of a batch, and how many backward passes to take as one."""
        with measured_graph() as graph:
            outputs = self.objective.batch_outputs(index, self._leaves).outputs
        fitting = PASS_BYTES.get(outputs.device.type, 2**28) // max(1, graph.bytes)
        return outputs, max(1, min(PASS_ROWS, fitting))

    def _pulled(self, outputs: Tensor, cotangents: Tensor) -> Tensor:
        """Jᵀu for each of k cotangents, (k, P)."""
        self.passes += len(cotangents)
        if self.batched and len(cotangents) > 1:
            try:
                rows = self._backward(outputs, cotangents, batched=True)
                self._proved = self._proved or self._agrees(outputs, cotangents, rows)
                self.batched = self._proved
            except (RuntimeError, NotImplementedError) as refusal:
                if isinstance(refusal, torch.OutOfMemoryError):
                    raise
                self.batched = False
            if self.batched:
                return rows
        return torch.cat([self._backward(outputs, cotangent) for cotangent in cotangents])

    def _agrees(self, outputs: Tensor, cotangents: Tensor, rows: Tensor) -> bool:
        """Whether one pass gives a sum of the rows: a backward pass written by hand may take k cotangents for one."""
        # Weights, for the plain sum over the classes of a label is near zero in a model that knows nothing yet.
        weights = torch.arange(1, len(rows) + 1, dtype=rows.dtype, device=rows.device)
        off = weights @ rows - self._backward(outputs, torch.tensordot(weights.to(outputs), cotangents, 1))[0]
        size = torch.linalg.matrix_norm(weights[:, None] * rows)
        return bool(torch.linalg.vector_norm(off) <= torch.finfo(outputs.dtype).eps ** 0.5 * size)

    def _backward(self, outputs: Tensor, cotangents: Tensor, batched: bool = False) -> Tensor:
        space, count = self.objective.space, len(cotangents) if batched else 1
        with warnings.catch_warnings():
            # Operations without a batching rule are looped over, which is what would be done otherwise.
            warnings.filterwarnings("ignore", message=".*performance drop.*")
            parts = torch.autograd.grad(
                outputs, self._leaves, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=batched
            )
        filled = [
            self.signs.new_zeros(count, size) if part is None else _dense(part).reshape(count, size).to(self.signs)
            for part, size in zip(parts, space.sizes, strict=True)
        ]
        return torch.cat(filled, dim=1)


def _size(at: OutputLoss) -> int:
    """Rows that a batch adds to A, at most."""
    if isinstance(at.kind, Categorical):
        return int(at.kind.weight.count_nonzero()) * at.outputs.shape[at.kind.axis]
    return at.outputs.numel()


def _root(at: OutputLoss, weight: float) -> Root:
    outputs = at.outputs.detach()
    if isinstance(at.kind, Categorical):
        return _root_of_labels(at.kind, outputs, weight)
    units = torch.eye(outputs.numel(), dtype=outputs.dtype, device=outputs.device)
    times = at.hessian()
    if isinstance(at.kind, Elementwise):
        curvatures, directions = times(torch.ones_like(outputs)).flatten().double(), units
        kept = curvatures != 0
    else:
        middle = torch.stack([times(unit.view_as(outputs)).flatten() for unit in units]).double()
        curvatures, columns = torch.linalg.eigh((middle + middle.T) / 2)
        directions = columns.T
        kept = curvatures.abs() > LOST * torch.finfo(outputs.dtype).eps * curvatures.abs().amax()
    scaled = (directions[kept] * (weight * curvatures[kept].abs()).sqrt()[:, None]).to(outputs.dtype)
    return curvatures[kept].sign(), lambda some: scaled[some].view(-1, *outputs.shape)


def _root_of_labels(kind: Categorical, outputs: Tensor, weight: float) -> Root:
    (labels,) = kind.weight.nonzero(as_tuple=True)
    p = kind.probabilities(outputs)[labels]
    scale = (weight * kind.weight[labels, None] * p).sqrt()
    all_rows = kind.rows(outputs).shape

    def columns(some: slice) -> Tensor:
        chosen = torch.arange(p.numel(), device=p.device)[some]
        each, label, target = torch.arange(len(chosen), device=p.device), chosen // p.shape[1], chosen % p.shape[1]
        gradients = p.new_zeros(len(chosen), *all_rows)
        gradients[each, labels[label]] = -p[label]
        gradients[each, labels[label], target] += 1.0
        gradients *= scale[label, target, None, None]
        return torch.stack([kind.back(rows, outputs) for rows in gradients])

    return torch.ones(p.numel(), dtype=torch.float64, device=p.device), columns


def _dense(part: Tensor) -> Tensor:
    return part.to_dense() if part.is_sparse else part


def _pieces(first: int, last: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, last)) for start in range(first, last, size)]
