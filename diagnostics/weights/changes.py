"""What moved between checkpoints of one run, and what did not: a tensor that never changes is not being trained.

A tensor is left behind when it is frozen, when the optimizer does not hold it, or when no gradient reaches it; a bias
in front of batch normalisation gets none by design, as its mean is taken away again. Equal bits in every checkpoint
tell; a small change is no sign of that, and is given as ‖ΔW‖/‖W‖ between the first and the last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diagnostics.arguments import require_state_dicts
from diagnostics.estimate import Estimate, exact
from diagnostics.weights.blocks import as_matrix, pieces

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class TensorChange:
    """One tensor over several checkpoints.

    Attributes:
        name: its name.
        changed: in how many of the intervals it changed; None where it could not be compared.
        relative: ‖last − first‖/‖first‖; ``nan`` with the reason where there is none.
        note: why it could not be compared.
    """

    name: str
    changed: int | None
    relative: Estimate
    note: str = ""

    @property
    def unchanged(self) -> bool:
        """Whether it is the same, bit for bit, in every checkpoint."""
        return self.changed == 0


@dataclass(frozen=True, repr=False)
class WeightChanges:
    """A table with one row per tensor of the first checkpoint, over ``intervals`` intervals."""

    rows: list[TensorChange]
    intervals: int

    def to_pandas(self) -> pandas.DataFrame:
        """The values as a DataFrame. Needs pandas."""
        import pandas

        columns = [column.name for column in fields(TensorChange)]
        rows = [{name: getattr(row, name) for name in columns} | {"relative": row.relative.value} for row in self.rows]
        return pandas.DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        width = max([6, *(len(row.name) for row in self.rows)])
        lines = [f"{'tensor':<{width}}  changed in  relative change"]
        for row in self.rows:
            changed = "?" if row.changed is None else f"{row.changed} of {self.intervals}"
            lines.append(f"{row.name:<{width}}  {changed:>10}  {row.note or row.relative}")
        return "\n".join(lines)

    __repr__ = __str__


def weight_changes(state_dicts: Sequence[Mapping[str, Any]]) -> WeightChanges:
    """Compare the tensors of several checkpoints, in the order of training.

    Args:
        state_dicts: two or more, of one model. Tensors that only some of them have, or that change their shape, get a
            note.

    Raises:
        DiagnosticsError: fewer than two, or something else than mappings.

    Example:
        >>> layers = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
        >>> before = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
        >>> after = {**before, "1.weight": 1.5 * before["1.weight"]}
        >>> [(row.name, row.unchanged, str(row.relative)) for row in weight_changes([before, after]).rows]
        [('0.weight', True, '0'), ('1.weight', False, '0.5')]
    """
    require_state_dicts(state_dicts, "state_dicts cannot be compared")
    names = [name for name, tensor in state_dicts[0].items() if isinstance(tensor, Tensor)]
    with torch.inference_mode(False), torch.no_grad():
        rows = [_row(name, [one.get(name) for one in state_dicts]) for name in names]
    return WeightChanges(rows, len(state_dicts) - 1)


def _row(name: str, tensors: Sequence[Any]) -> TensorChange:
    reason = apart(tensors)
    if reason:
        return TensorChange(name, None, Estimate(math.nan, math.nan, "exact", reason), reason)
    changed = sum(not _same(one, other) for one, other in pairwise(tensors))
    return TensorChange(name, changed, _relative(tensors[0], tensors[-1]))


def apart(tensors: Sequence[Any]) -> str:
    """Why tensors of one name cannot be compared; empty where they can."""
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        return "not in every checkpoint"
    if any(tensor.is_nested or tensor.is_meta or tensor.layout is not torch.strided for tensor in tensors):
        return "no dense tensor with values"
    if len({(tuple(tensor.shape), tensor.dtype) for tensor in tensors}) > 1:
        return "its shape or dtype changes"
    return "quantised" if any(tensor.is_quantized for tensor in tensors) else ""


def _same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit: NaN is the same as itself, and zero another than minus zero."""
    return all(torch.equal(_bits(a), _bits(b)) for a, b in zip(_pieces(one), _pieces(other), strict=True))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    return pieces(as_matrix(tensor))


def _bits(piece: Tensor) -> Tensor:
    # A conjugate or negative view says so in a flag, and its memory holds something else.
    return piece.resolve_conj().resolve_neg().contiguous().view(torch.uint8)


def _relative(first: Tensor, last: Tensor) -> Estimate:
    wide = torch.complex128 if first.is_complex() else torch.float64
    change = size = 0.0
    try:
        for before, after in zip(_pieces(first), _pieces(last), strict=True):
            start = before.to(wide)
            size = math.hypot(size, _length(start))
            change = math.hypot(change, _length(after.to(wide) - start))
    # Torch cannot turn every dtype into numbers.
    except (RuntimeError, NotImplementedError, TypeError) as problem:
        reason = f"could not be read as numbers: {str(problem).splitlines()[0][:200]}"
        return Estimate(math.nan, math.nan, "exact", reason)
    if not (math.isfinite(size) and math.isfinite(change)):
        return Estimate(math.nan, math.nan, "exact", "not finite")
    if not size:
        return (
            exact(0.0, "all zero, and so it stayed")
            if not change
            else Estimate(math.nan, math.nan, "exact", "it was all zero at first")
        )
    return exact(change / size, "‖last − first‖/‖first‖")


def _length(values: Tensor) -> float:
    # Scaled, so that the squares of 1e200 and 1e-200 stay within range.
    peak = float(values.abs().max()) if values.numel() else 0.0
    return peak * float(torch.linalg.vector_norm(values / peak)) if peak else 0.0
