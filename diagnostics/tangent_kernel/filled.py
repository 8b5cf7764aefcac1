"""The entries of a kernel, from what is recorded of its rows and of its columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.recorded.stacked_products import add_kernel
from diagnostics.tangent_kernel.records import Records

BLOCK_BYTES = 2**29
"""Kernels of single outputs that are made at once, where only their sum is wanted."""


@dataclass(frozen=True)
class Filled:
    """A kernel by parameter, or all of it under no name.

    Attributes:
        parts: float64.
        errors: standard errors of the entries of a mean over samples.
        trace_error: that of its trace.
        groups: of batches and outputs, which were held one at a time.
    """

    parts: Mapping[str, Tensor]
    errors: Tensor | None = None
    trace_error: float = 0.0
    groups: int = 1

    @property
    def whole(self) -> Tensor:
        """The sum of the parts."""
        parts = list(self.parts.values())
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def all_pairs(rows: Records, columns: Records, by_layer: bool) -> Filled:
    """Of every pair of cotangents: (N·C, M·C)."""
    count = len(rows.cotangents)
    parts = _zeros(rows, (rows.run.examples, count, columns.run.examples, count), by_layer)
    groups = _add(rows, columns, parts, slice(0, count))
    return Filled({name: part.flatten(2).flatten(0, 1) for name, part in parts.items()}, groups=groups)


def equal_pairs(rows: Records, columns: Records, by_layer: bool, mean: bool) -> Filled:
    """The sum of the kernels of each cotangent, or their mean with what their spread says of it: (N, M)."""
    count, shape = len(rows.cotangents), (rows.run.examples, columns.run.examples)
    parts = _zeros(rows, shape, by_layer)
    squares: Tensor | float = 0.0
    traces: list[float] = []
    fitting = BLOCK_BYTES // max(1, 8 * math.prod(shape) * len(parts))
    step, groups = max(1, min(rows.at_once(), columns.at_once(), fitting)), 0
    for at in range(0, count, step):
        some = slice(at, min(count, at + step))
        single = _zeros(rows, (some.stop - at, *shape), by_layer)
        groups += _add(rows, columns, single, some)
        for name, part in single.items():
            parts[name] += part.sum(0)
        if mean:
            whole = Filled(single).whole
            squares = squares + whole.square().sum(0)
            traces += whole.diagonal(dim1=1, dim2=2).sum(1).tolist()
    if not mean:
        return Filled(parts, groups=groups)
    averaged = {name: part / count for name, part in parts.items()}
    spread = squares / count - Filled(averaged).whole.square()
    errors = (spread.clamp_min(0.0) / (count - 1)).sqrt()
    error = float(torch.tensor(traces, dtype=torch.float64).std()) / count**0.5
    return Filled(averaged, errors, error, groups)


def _zeros(rows: Records, shape: tuple[int, ...], by_layer: bool) -> dict[str, Tensor]:
    space = rows.run.objective.space
    return {
        name: torch.zeros(shape, dtype=torch.float64, device=space.device)
        for name in (space.names if by_layer else ("",))
    }


def _add(rows: Records, columns: Records, parts: Mapping[str, Tensor], outputs: slice) -> int:
    """Add every group of rows against every group of columns; how many groups of rows there were."""
    space, within, equal = rows.run.objective.space, columns is rows, next(iter(parts.values())).ndim == 3
    first = outputs.start if equal else 0
    groups = list(_groups(rows, outputs))
    for place, group in enumerate(groups):
        held = rows.held(*group)
        against = groups[place:] if within else list(_groups(columns, outputs))
        against = [other for other in against if other[1] == group[1] or not equal]
        for other in against:
            met = held if within and other is group else columns.held(*other)
            for name, size in zip(space.names, space.sizes, strict=True):
                part = parts[name if name in parts else ""]
                add_kernel(part, held[name], met[name], size, within, first)
                if other is against[-1]:
                    del held[name]
    return len(groups)


def _groups(records: Records, outputs: slice) -> Iterator[tuple[range, slice]]:
    """Batches and outputs that can be held at once."""
    step = min(records.at_once(), outputs.stop - outputs.start)
    for at in range(outputs.start, outputs.stop, step):
        for batches in records.spans(step):
            yield batches, slice(at, min(outputs.stop, at + step))
