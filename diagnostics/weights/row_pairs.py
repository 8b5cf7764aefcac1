"""Pairs of points that are near in every coordinate, compiled: the loop behind the search for repeated rows.

The first three coordinates put each point into a cell as wide as the distance looked for, so that its partners are in
its own cell or in one next to it.
"""

from __future__ import annotations

import numba
import numpy

SIDE = 1 << 10
"""Cells along an axis. Points are within 1 of the origin, so cells must be wider than 2 / SIDE."""

COPY = 1e-5


def near_pairs(points: numpy.ndarray, numbers: numpy.ndarray, reach: float, most: int) -> numpy.ndarray | None:
    """Pairs of points that are no farther apart than ``reach`` in any coordinate; None where there are too many.

    A point that is the same as an earlier one up to rounding is paired with that one alone, so that k copies of a point
    are k − 1 pairs and not k² / 2.

    Args:
        points: (n, d) float32 within 1 of the origin, d at least 3.
        numbers: (n,) what each point is called; one that stands there twice is not paired with itself.
        reach: the largest distance in a coordinate, at least 0.002.
        most: the number of pairs from which on there are too many.

    Example:
        >>> points = numpy.array([[0.0, 0.1, 0.2], [0.9, 0.1, 0.2], [0.0, 0.1, 0.21]], dtype=numpy.float32)
        >>> near_pairs(points, numpy.arange(3), 0.015, 10).tolist()
        [[0, 2]]
    """
    cells = numpy.floor(points[:, :3] / reach).astype(numpy.int64) + SIDE // 2
    keys = (cells[:, 0] * SIDE + cells[:, 1]) * SIDE + cells[:, 2]
    order = numpy.argsort(keys, kind="stable")
    keys = keys[order]
    # Half of the columns of cells around a point's own; from the other half it is found itself.
    columns = keys[:, None] + SIDE * numpy.array([0, 1, SIDE - 1, SIDE, SIDE + 1])
    starts = numpy.searchsorted(keys, columns - 1)
    starts[:, 0] = numpy.arange(1, len(keys) + 1)
    ends = numpy.searchsorted(keys, columns + 1, side="right")
    pairs = numpy.empty((most, 2), dtype=numpy.int64)
    count = _search(numpy.ascontiguousarray(points[order]), numbers[order], starts, ends, reach, pairs)
    return None if count > most else pairs[:count]


@numba.njit(nogil=True)
def _search(
    points: numpy.ndarray,
    numbers: numpy.ndarray,
    starts: numpy.ndarray,
    ends: numpy.ndarray,
    reach: float,
    pairs: numpy.ndarray,
) -> int:
    count, dimensions = points.shape
    copies = numpy.zeros(count, dtype=numpy.bool_)
    found = 0
    for i in range(count):
        if copies[i]:
            continue
        for column in range(starts.shape[1]):
            for j in range(starts[i, column], ends[i, column]):
                if copies[j] or numbers[i] == numbers[j]:
                    continue
                farthest = 0.0
                for k in range(dimensions):
                    farthest = max(farthest, abs(points[i, k] - points[j, k]))
                    if farthest > reach:
                        break
                if farthest > reach:
                    continue
                if found == len(pairs):
                    return found + 1
                pairs[found, 0] = numbers[i]
                pairs[found, 1] = numbers[j]
                found += 1
                copies[j] = farthest < COPY
    return found
