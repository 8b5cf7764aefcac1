"""The path that weights took: how far from the start, how straight, and its picture in two directions.

Of checkpoints θ_0, ..., θ_n only the inner products of the steps d_k = θ_{k+1} − θ_k are needed, an (n, n) matrix that
is summed up in float64 from blocks of every tensor. Cosines of successive steps are its entries. Principal directions
of the path are the eigenvectors of the Gram matrix of θ_k − mean, which follows from it, so that the picture is exact
however many weights there are (PCA as in arXiv 1712.09913, with all checkpoints and not their differences from the
last). Displacements ‖θ_k − θ_0‖ are summed up by themselves, since of a path that comes back they would be the
difference of large numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diagnostics.arguments import require_state_dicts
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.weights.blocks import as_matrix, pieces
from diagnostics.weights.changes import apart

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Endings of names of what is not trained: statistics of the data that came by."""


@dataclass(frozen=True)
class TensorPath:
    """One tensor over the checkpoints.

    Attributes:
        name: its name.
        elements: how many numbers it has.
        size: ‖W_0‖, its norm in the first checkpoint.
        displacement: ‖W_k − W_0‖ for each checkpoint, the first 0; empty where it was left out.
        note: why it was left out.
    """

    name: str
    elements: int
    size: float
    displacement: tuple[float, ...]
    note: str = ""


@dataclass(frozen=True, repr=False)
class Trajectory:
    """A path of n + 1 checkpoints. What no step was taken for (a cosine with a step of length 0) is ``nan``.

    Attributes:
        rows: one for each tensor of the first checkpoint.
        displacement: n + 1 of ‖θ_k − θ_0‖.
        steps: n of ‖θ_{k+1} − θ_k‖.
        cosines: n − 1, between each step and the next.
        back: cosine of the last step with all before it together, θ_{n−1} − θ_0; −1 is straight back.
        coordinates: (n + 1, 2) float64, in the two principal directions, around the mean of the checkpoints.
        explained: the share of the path's variance in each of the two; what is missing to 1 is not in the picture.
    """

    rows: list[TensorPath]
    displacement: tuple[Estimate, ...]
    steps: tuple[Estimate, ...]
    cosines: tuple[Estimate, ...]
    back: Estimate
    coordinates: Tensor
    explained: tuple[Estimate, Estimate]

    def __str__(self) -> str:
        shares = " and ".join(f"{share.value:.1%}" for share in self.explained)
        lines = [f"{len(self.displacement)} checkpoints, two directions with {shares} of the path's variance"]
        for place, moved in enumerate(self.displacement):
            step = f"  step {self.steps[place - 1]}" if place else ""
            turn = f"  cosine {self.cosines[place - 2]}" if place > 1 else ""
            lines.append(f"{place:>4}  displacement {moved}{step}{turn}")
        return "\n".join(lines)

    __repr__ = __str__


def weight_trajectory(
    state_dicts: Sequence[Mapping[str, Any]], *, read: Callable[[Tensor], None] = lambda tensor: None
) -> Trajectory:
    """The path of several checkpoints, one tensor at a time.

    Args:
        state_dicts: two or more of one model, in the order of training. Tensors that are not in all of them, that
            change their shape, are not finite, or hold statistics of normalisation layers, are left out with a note.
        read: called with a tensor whenever it has been read, for those who hold a mapped file.

    Raises:
        DiagnosticsError: fewer than two, something else than mappings, or no tensor that can be compared.

    Source:
        Lorch, Visualizing deep network training trajectories with PCA (2016); Li et al., arXiv 1712.09913.

    Example:
        >>> states = [{"weight": torch.tensor([1.0, 1.0]) * k} for k in range(4)]
        >>> path = weight_trajectory(states)
        >>> [round(float(cosine), 6) for cosine in path.cosines], round(float(path.explained[0]), 6)
        ([1.0, 1.0], 1.0)
    """
    require_state_dicts(state_dicts, "state_dicts are no trajectory")
    count = len(state_dicts)
    gram = torch.zeros(count - 1, count - 1, dtype=torch.float64)
    squares = torch.zeros(count, dtype=torch.float64)
    rows = []
    with torch.inference_mode(False), torch.no_grad():
        for name in state_dicts[0]:
            row, products, apart_from_first = _tensor(str(name), [one.get(name) for one in state_dicts], read)
            if row is not None:
                rows.append(row)
                gram += products
                squares += apart_from_first
    if not any(row.displacement for row in rows):
        raise DiagnosticsError(
            "the checkpoints have no weights in common",
            given=f"{len(rows)} tensors in the first" + (f"; {rows[0].name}: {rows[0].note}" if rows else ""),
            expected="checkpoints of one model, with the same names and shapes",
        )
    return _trajectory(rows, gram, squares)


def _tensor(
    name: str, tensors: Sequence[Any], read: Callable[[Tensor], None]
) -> tuple[TensorPath | None, Tensor, Tensor]:
    count = len(tensors)
    gram, squares = torch.zeros(count - 1, count - 1, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    first = tensors[0]
    if not isinstance(first, Tensor):
        return None, gram, squares
    elements = 0 if first.is_nested else first.numel()
    reason = _left_out(name, first) or apart(tensors)
    size = 0.0
    if not reason:
        for block in _blocks(tensors):
            steps = block.diff(dim=0)
            gram.addmm_(steps, steps.mT)
            squares += (block - block[0]).square().sum(1)
            size += float(block[0].square().sum())
        for tensor in tensors:
            read(tensor)
        if not (bool(gram.isfinite().all()) and bool(squares.isfinite().all()) and math.isfinite(size)):
            reason = "not finite in every checkpoint"
    if reason:
        return TensorPath(name, elements, math.nan, (), reason), torch.zeros_like(gram), torch.zeros_like(squares)
    return TensorPath(name, elements, math.sqrt(size), tuple(squares.sqrt().tolist())), gram, squares


def _left_out(name: str, tensor: Tensor) -> str:
    if name.endswith(STATISTICS):
        return "a statistic of the data, not trained"
    return "" if tensor.is_floating_point() or tensor.is_complex() else "whole numbers, not trained"


def _blocks(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """(checkpoints, numbers) in float64, some numbers at a time."""
    for parts in zip(*(pieces(as_matrix(tensor)) for tensor in tensors), strict=True):
        flat = [torch.view_as_real(part.resolve_conj()).flatten() if part.is_complex() else part for part in parts]
        yield torch.stack([part.to(torch.float64) for part in flat])


def _trajectory(rows: list[TensorPath], gram: Tensor, squares: Tensor) -> Trajectory:
    how = f"over {sum(bool(row.displacement) for row in rows)} tensors in float64"
    lengths = gram.diagonal().sqrt()
    cosines = [_cosine(gram[k, k + 1], lengths[k] * lengths[k + 1], how) for k in range(len(gram) - 1)]
    before = squares[-2].sqrt()
    coordinates, shares = _principal(gram)
    return Trajectory(
        rows,
        tuple(exact(value, f"‖θ_k − θ_0‖ {how}") for value in squares.sqrt().tolist()),
        tuple(exact(value, f"‖θ_k+1 − θ_k‖ {how}") for value in lengths.tolist()),
        tuple(cosines),
        _cosine(gram[-1, :-1].sum(), lengths[-1] * before, how),
        coordinates,
        shares,
    )


def _cosine(product: Tensor, lengths: Tensor, how: str) -> Estimate:
    if not float(lengths):
        return Estimate(math.nan, math.nan, "exact", "a step of length zero has no direction")
    return exact(float(product / lengths), f"cosine {how}")


def _principal(gram: Tensor) -> tuple[Tensor, tuple[Estimate, Estimate]]:
    count = len(gram) + 1
    # θ_k − θ_0 is the sum of the steps before k; the mean of the checkpoints is then taken away.
    sums = torch.ones(count, count - 1, dtype=torch.float64).tril(-1)
    centred = sums - sums.mean(0)
    values, vectors = torch.linalg.eigh(centred @ gram @ centred.mT)
    values, vectors = values.flip(0).clamp_min(0.0)[:2], vectors.flip(1)[:, :2]
    coordinates = vectors * values.sqrt()
    # Of the two signs the one in which the path ends to the right of, and above, where it began.
    coordinates = coordinates * torch.where(coordinates[-1] < coordinates[0], -1.0, 1.0)
    total = float((centred @ gram @ centred.mT).trace())
    how = "eigenvalues of the Gram matrix of all checkpoints around their mean"
    if not total:
        nothing = Estimate(math.nan, math.nan, "exact", "nothing moved")
        return coordinates, (nothing, nothing)
    first, second = (exact(float(value) / total, how) for value in values)
    return coordinates, (first, second)
