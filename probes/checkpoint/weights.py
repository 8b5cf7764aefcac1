"""What can be said of weights from their values alone: are they finite, how many are zero, how large are they.

Everything is accumulated in float64 over pieces of 262 144 elements, so a checkpoint larger than memory can be
surveyed and the temporaries stay at a few megabytes. Each piece is divided by its largest value before squaring and
the pieces are joined with `hypot`, so neither 1e200 nor 1e-200 in a float64 tensor ruins its norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.checkpoint.errors import printable

_PIECE = 1 << 18  # 2 MB of float64 stays in the processor's cache; larger pieces are slower


@dataclass(frozen=True)
class TensorSurvey:
    """One tensor of a checkpoint. What could not be taken is None, and `note` says why.

    Attributes:
        name: its name in the checkpoint.
        shape: its shape.
        dtype: its dtype, without `torch.`.
        elements: how many elements it has.
        non_finite: how many of them are NaN or infinite.
        zeros: the share of them that is exactly zero, 0 to 1.
        norm: the L2 norm of the finite ones.
        rms: the root of the mean square of the finite ones.
        max_abs: the largest magnitude among the finite ones.
        note: why numbers are missing, or empty.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    elements: int
    non_finite: int | None = None
    zeros: float | None = None
    norm: float | None = None
    rms: float | None = None
    max_abs: float | None = None
    note: str = ""


def survey(
    parameters: Mapping[str, Tensor], read: Callable[[Tensor], None] = lambda tensor: None
) -> list[TensorSurvey]:
    """Survey each tensor, one at a time, without changing it.

    Integers and booleans are taken as numbers, complex values by their magnitude. Sparse, quantised and meta tensors
    and dtypes that torch cannot convert get a row with a note and no numbers.

    Args:
        parameters: tensors by name, such as `Checkpoint.parameters`.
        read: called with a tensor whenever some of it has been read, for those who hold a mapped file.

    Returns:
        one row per tensor, in their order.

    >>> [row] = survey({"weight": torch.tensor([3.0, 0.0, -4.0, float("nan")])})
    >>> row.non_finite, row.zeros, row.norm, row.max_abs
    (1, 0.25, 5.0, 4.0)
    """
    return [_survey(name, tensor, read) for name, tensor in parameters.items()]


def _survey(name: str, tensor: Tensor, read: Callable[[Tensor], None]) -> TensorSurvey:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_nested:
        return TensorSurvey(name, (), dtype, 0, note="nested tensors are not surveyed")
    shape, elements = tuple(tensor.shape), tensor.numel()
    reason = _unreadable(tensor)
    if reason:
        return TensorSurvey(name, shape, dtype, elements, note=reason)
    if not elements:
        return TensorSurvey(name, shape, dtype, 0, non_finite=0, norm=0.0, note="no elements")
    finite, zeros, norm, largest = 0, 0, 0.0, 0.0
    try:
        for piece in _pieces(tensor.detach()):
            magnitudes = _magnitudes(piece)
            peak = float(magnitudes.max())
            if not math.isfinite(peak):
                magnitudes = magnitudes[magnitudes.isfinite()]
                peak = float(magnitudes.max()) if magnitudes.numel() else 0.0
            finite += magnitudes.numel()
            zeros += magnitudes.numel() - int(magnitudes.count_nonzero())
            largest = max(largest, peak)
            if peak:
                norm = math.hypot(norm, peak * float(torch.linalg.vector_norm(magnitudes.div_(peak))))
            read(tensor)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        note = f"could not be read as numbers: {printable(error)}"
        return TensorSurvey(name, shape, dtype, elements, note=note)
    if not finite:
        return TensorSurvey(name, shape, dtype, elements, non_finite=elements, zeros=0.0, note="no finite element")
    rms = norm / math.sqrt(finite)
    return TensorSurvey(name, shape, dtype, elements, elements - finite, zeros / elements, norm, rms, largest)


def _unreadable(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "a meta tensor: a shape without values"
    if tensor.is_quantized:
        return "quantised tensors are not surveyed"
    if tensor.layout is not torch.strided:
        return f"{str(tensor.layout).removeprefix('torch.')} tensors are not surveyed"
    return ""


def _magnitudes(piece: Tensor) -> Tensor:
    if piece.is_complex():
        return piece.to(torch.complex128).abs()
    return piece.to(torch.float64, copy=True).abs_()


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    # Halving the first dimension that can be halved makes views only; flattening would copy a transposed tensor whole.
    if tensor.numel() <= _PIECE:
        yield tensor.reshape(-1)
        return
    dimension = next(index for index, length in enumerate(tensor.shape) if length > 1)
    for half in tensor.tensor_split(2, dimension):
        yield from _pieces(half)
