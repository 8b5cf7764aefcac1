"""Every weight matrix by itself: its singular values, its entries and its rows, with no model, loss or data.

With σ₁ ≥ σ₂ ≥ ... the singular values of W as (rows, all other axes):

* spectral norm: σ₁; over √(rows/columns) it is the norm of the map from root mean square to root mean square: 2/√3 for
  a large square matrix as PyTorch initialises it, and kept near 1 where features are to change at one pace at every
  width (arXiv 2310.17813). A convolution counts as its action on patches;
* condition number: σ₁/σ_r, r the smaller side;
* stable rank ‖W‖²/σ₁², and effective rank exp H(σ/Σσ), H the entropy (Roy and Vetterli, EUSIPCO 2007);
* exponent: the tail of the eigenvalues σ² as a power law (arXiv 1810.01075 reads it as a sign of how much was learnt;
  that is a correlation seen in some families of models, and no law).

What is not known of a matrix is None, or ``nan`` with the reason, and the note says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.arguments import whole_number
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.weights.blocks import as_matrix
from diagnostics.weights.entries import Entries, read_entries, shape_distances
from diagnostics.weights.power_law import PowerLaw, power_law
from diagnostics.weights.rows import read_rows
from diagnostics.weights.singular_values import SingularValues, singular_values
from diagnostics.weights.table import MatrixSpectrum, WeightSpectra

MAX_SIDE = 4096
"""The eigenvalues of so large a Gram matrix take some ten seconds on one core, and 300 MB."""

Read = Callable[[str, Tensor], None]


def weight_spectra(
    state_dict: Mapping[str, Any] | Iterable[tuple[str, Any]],
    *,
    draws: int = 100,
    max_side: int = MAX_SIDE,
    seed: int = 0,
    read: Read | None = None,
) -> WeightSpectra:
    """Measure every weight matrix: tensors with two axes or more; others are passed over.

    Args:
        state_dict: tensors by name, such as ``model.state_dict()``; or pairs of name and tensor, which are asked for
            one at a time and not kept.
        draws: samples for the p-value of each power law; 0 leaves it out.
        max_side: of matrices whose smaller side is longer, only σ₁ and what follows from it is taken.
        seed: of the draws.
        read: called with a name and its tensor whenever some of it has been read, for those who show progress, or hold
            a mapped file.

    Raises:
        DiagnosticsError: no tensors by name, or settings out of range.

    Example:
        >>> layers = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     _ = layers[0].weight.copy_(2 * torch.eye(4, 8))
        >>> row = weight_spectra(layers.state_dict()).rows[0]
        >>> print(row.name, row.spectral_norm, row.condition, row.stable_rank, row.zero_rows)
        0.weight 2 1 4 0
    """
    draws = whole_number("draws is out of range", draws, "a whole number from 0", 0)
    max_side = whole_number("max_side is out of range", max_side, "a whole number from 1", 1)
    seen: dict[tuple[Any, ...], MatrixSpectrum] = {}
    rows = []
    for name, tensor in _pairs(state_dict):
        # Only of a mapping are all tensors alive at once, so that one address is one tensor.
        key = _place(tensor) if isinstance(state_dict, Mapping) else None
        if key is not None and key in seen:
            rows.append(replace(seen[key], name=name, note=f"the same tensor as {seen[key].name}"))
            continue
        with torch.inference_mode(False), torch.no_grad():
            row = _measure(name, tensor, draws, max_side, seed, read)
        if key is not None:
            seen[key] = row
        rows.append(row)
    return WeightSpectra(rows)


def _pairs(given: Any) -> Iterator[tuple[str, Tensor]]:
    pairs = given.items() if isinstance(given, Mapping) else given
    if isinstance(given, nn.Module | Tensor | str) or not isinstance(pairs, Iterable):
        raise DiagnosticsError(
            "state_dict has no tensors by name",
            given=type(given).__name__,
            expected="a mapping from names to tensors, or pairs of them",
            attempt="model.state_dict()",
        )
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise DiagnosticsError(
                "state_dict has no tensors by name",
                given=f"an entry of type {type(pair).__name__}",
                expected="a mapping from names to tensors, or pairs of them",
            )
        if isinstance(pair[1], Tensor) and (pair[1].is_nested or pair[1].ndim >= 2):
            yield pair


def _place(tensor: Tensor) -> tuple[Any, ...] | None:
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_nested or not tensor.numel():
        return None
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _refused(tensor: Tensor) -> str:
    """Why a tensor is not taken as a matrix of real numbers; empty where it is."""
    if tensor.is_nested:
        return "nested tensors are not taken"
    if tensor.is_meta:
        return "a meta tensor: a shape without values"
    if tensor.is_quantized:
        return "quantised tensors are not taken: dequantize them first"
    if tensor.layout is not torch.strided:
        return f"{str(tensor.layout).removeprefix('torch.')} tensors are not taken: make them dense first"
    if tensor.is_complex():
        return "complex tensors are not taken: look at their real and imaginary parts"
    if not tensor.dtype.is_floating_point:
        return "whole numbers: indices, a mask, or weights whose scales stand elsewhere"
    return "" if tensor.numel() else "no entries"


def _measure(name: str, tensor: Tensor, draws: int, max_side: int, seed: int, read: Read | None) -> MatrixSpectrum:
    shape = () if tensor.is_nested else tuple(tensor.shape)
    row = MatrixSpectrum(name, shape, str(tensor.dtype).removeprefix("torch."))
    reason = _refused(tensor)
    if reason:
        return replace(row, note=reason)

    def done() -> None:
        if read is not None:
            read(name, tensor)

    try:
        matrix = as_matrix(tensor)
        entries = read_entries(matrix, done)
    # Torch cannot turn every dtype into numbers.
    except (RuntimeError, NotImplementedError, TypeError) as problem:
        return replace(row, note=f"could not be read as numbers: {str(problem).splitlines()[0][:200]}")
    row = replace(row, entries=entries)
    if entries.non_finite:
        return replace(row, note=f"{entries.non_finite:,} entries are NaN or infinite")
    if not entries.largest:
        return replace(row, zero_rows=shape[0], note="all zero")
    shapes = shape_distances(matrix, entries, done)
    found = singular_values(matrix, entries.largest, max_side=max_side, done=done)
    alike = read_rows(tensor, found.row_gram, done)
    notes = [f"repeated rows not taken: {alike.note}"] if alike.note else []
    if found.values is None:
        notes.insert(0, f"singular values but the largest not taken: the smaller side is above {max_side:,}")
    return replace(
        row,
        spectral_norm=found.largest,
        operator_norm=_times(found.largest, math.sqrt(row.matrix[1] / row.matrix[0]), "over √(rows/columns)"),
        condition=_condition(found),
        stable_rank=_stable_rank(found.largest, entries),
        effective_rank=_effective_rank(found),
        power_law=_tail(found, draws, seed),
        normal_distance=shapes.normal,
        uniform_distance=shapes.uniform,
        zero_rows=alike.zero,
        repeated_rows=alike.repeated,
        note="; ".join(notes),
        singular_values=found.values,
    )


def _times(estimate: Estimate, factor: float, how: str) -> Estimate:
    return Estimate(factor * estimate.value, factor * estimate.error, estimate.kind, f"{how}; {estimate.how}")


def _condition(found: SingularValues) -> Estimate | None:
    if found.values is None:
        return None
    largest, smallest = float(found.values[0]), float(found.values[-1])
    if smallest <= found.resolution:
        how = f"the smallest singular value is rounding: above {largest / found.resolution:.1g}; {found.largest.how}"
        return Estimate(math.nan, math.nan, "exact", how)
    if found.squared:
        # An eigenvalue of the Gram matrix is known up to the square of the resolution.
        error = largest / smallest * (found.resolution / smallest) ** 2 / 2
        return Estimate(largest / smallest, error, "residual", found.largest.how)
    return exact(largest / smallest, found.largest.how)


def _stable_rank(largest: Estimate, entries: Entries) -> Estimate:
    rank = entries.count * (entries.rms / largest.value) ** 2
    return Estimate(rank, 2 * rank * largest.error / largest.value, largest.kind, f"‖W‖²/σ₁²; {largest.how}")


def _effective_rank(found: SingularValues) -> Estimate | None:
    if found.values is None:
        return None
    values = found.values[found.values > found.resolution]
    shares = values / values.sum()
    return exact(math.exp(-float(torch.xlogy(shares, shares).sum())), f"exp H(σ/Σσ); {found.largest.how}")


def _tail(found: SingularValues, draws: int, seed: int) -> PowerLaw | None:
    if found.values is None:
        return None
    # Over the largest, for squares of tiny weights vanish; what is rounding is no eigenvalue.
    relative = found.values[found.values > found.resolution] / found.values[0]
    return power_law(relative.square(), draws=draws, seed=seed)
