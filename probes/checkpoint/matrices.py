"""The spectrum of every matrix in a checkpoint, as readings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from diagnostics import Estimate, MatrixSpectrum, PowerLaw, weight_spectra
from probes.probe import Reading
from probes.readings import reading_of

MAX_SIDE = 2048
"""Above it only σ₁ is taken: a matrix of twice that side takes ten seconds, and a gigabyte holds sixteen of them."""

DRAWS = 50
"""Enough to tell a p-value below 0.1 from one well above it."""

_ESTIMATES = (
    "spectral_norm",
    "operator_norm",
    "condition",
    "stable_rank",
    "effective_rank",
    "normal_distance",
    "uniform_distance",
)
_ROWS = ("zero_rows", "repeated_rows")
_ENTRIES = ("half_vanishing", "half_subnormal", "half_overflow", "bfloat_subnormal", "bfloat_overflow")
_PASSES_PER_SIDE = 0.01
"""The singular values of a matrix cost about one more pass over it for every hundred of its smaller side."""


def spectrum_readings(
    parameters: Mapping[str, Tensor],
    read: Callable[[Tensor], None] = lambda tensor: None,
    part: Callable[[float], None] = lambda share: None,
    seed: int = 0,
) -> Iterator[Reading]:
    """Measure every matrix.

    Args:
        parameters: tensors by name; those with fewer than two axes are passed over.
        read: called with a tensor whenever some of it has been read, for those who hold a mapped file.
        part: told the share of the work that is done, 0 to 1.
        seed: of the draws behind p-values.
    """
    costs = {name: _cost(tensor) for name, tensor in parameters.items()}
    whole = max(1.0, sum(costs.values()))
    begun: dict[str, float] = {}

    def piece_read(name: str, tensor: Tensor) -> None:
        read(tensor)
        if name not in begun:
            part(sum(begun.values()) / whole)
            begun[name] = costs[name]

    for row in weight_spectra(parameters, draws=DRAWS, seed=seed, max_side=MAX_SIDE, read=piece_read).rows:
        yield from _readings(row)


def _cost(tensor: Tensor) -> float:
    if tensor.is_nested or tensor.ndim < 2:
        return 0.0
    side = min(tensor.shape[0], math.prod(tensor.shape[1:]), MAX_SIDE)
    return tensor.numel() * (1.0 + _PASSES_PER_SIDE * side)


def _readings(row: MatrixSpectrum) -> Iterator[Reading]:
    if row.spectral_norm is None:
        yield Reading("spectral_norm", None, row.name, note=row.note, status="skipped")
    for name in _ESTIMATES:
        estimate = getattr(row, name)
        if isinstance(estimate, Estimate):
            reading = reading_of(name, estimate, row.name)
            values = row.singular_values if name == "spectral_norm" else None
            yield Reading(**{**vars(reading), "array": None if values is None else values.numpy()})
    if row.power_law is not None:
        yield from _tail(row.name, row.power_law)
    for name in _ROWS:
        if (count := getattr(row, name)) is not None:
            yield Reading(name, float(count), row.name, note="every row looked at")
    if row.entries is not None and row.entries.largest:
        for name in _ENTRIES:
            yield Reading(name, float(getattr(row.entries, name)), row.name, note="every entry counted")
    if row.note and row.spectral_norm is not None:
        yield Reading("rest", None, row.name, note=row.note, status="skipped")


def _tail(name: str, fit: PowerLaw) -> Iterator[Reading]:
    yield reading_of("exponent", fit.exponent, name)
    if not fit.exponent.determined:
        return
    yield reading_of("tail_distance", fit.distance, name)
    yield reading_of("tail_start", fit.x_min, name)
    yield Reading("tail", float(fit.tail), name, note=fit.warning or None)
    if fit.p_value is not None:
        yield reading_of("p_value", fit.p_value, name)
