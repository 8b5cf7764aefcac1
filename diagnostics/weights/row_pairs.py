"""Pairs of points that are near in every coordinate: the search behind repeated rows.

The first four coordinates put each point into a cell as wide as the distance looked for, so that its partners are in
its own cell or in one next to it. What is left is compared coordinate by coordinate, and most pairs are gone after two
or three.
"""

from __future__ import annotations

from itertools import pairwise, product

import numpy

AXES = 4

SIDE = 1 << 10
"""Cells along an axis. Points are within 1 of the origin, so cells must be wider than 2 / SIDE."""

MOST_COMPARED = 1 << 29
"""Pairs in neighbouring cells: about ten seconds."""

CHUNK = 1 << 17
"""Pairs compared at a time."""

GRID = 1e-6
"""What is nearer than this in every coordinate differs by rounding."""


def near_pairs(points: numpy.ndarray, numbers: numpy.ndarray, reach: float, most: int) -> numpy.ndarray | None:
    """Pairs of points that are no farther apart than ``reach`` in any coordinate; None where there are too many.

    Points that are the same up to rounding are each paired with the first of them alone, so that k copies of a point
    are k − 1 pairs and not k² / 2; what is near one of them is near that one.

    Args:
        points: (n, d) within 1 of the origin, d at least 4.
        numbers: (n,) what each point is called; one that stands there twice is not paired with itself.
        reach: the largest distance in a coordinate, at least 0.002.
        most: the number of pairs from which on there are too many.

    Returns:
        (pairs, 2) numbers; copies and near points alike.

    Example:
        >>> points = numpy.array([[0.0, 0.1, 0.2, 0], [0.9, 0.1, 0.2, 0], [0.0, 0.1, 0.21, 0], [0.9, 0.1, 0.2, 0]])
        >>> near_pairs(points, numpy.arange(4), 0.015, 10).tolist()
        [[1, 3], [0, 2]]
    """
    # One number for all coordinates on a fine grid. Copies that rounding puts apart are found as near points below.
    marks = numpy.random.default_rng(0).integers(1, 1 << 40, size=(points.shape[1],))
    names = numpy.zeros(len(points), dtype=numpy.int64)
    for k in range(points.shape[1]):
        names += marks[k] * numpy.rint(points[:, k] / GRID).astype(numpy.int64)
    _, first, owner = numpy.unique(names, return_index=True, return_inverse=True)
    copies = numpy.flatnonzero(first[owner] != numpy.arange(len(points)))
    copied = numpy.stack([numbers[first[owner[copies]]], numbers[copies]], axis=1)
    near = _near(points[first], numbers[first], reach, most)
    return None if near is None else numpy.concatenate([copied, near])


def _near(points: numpy.ndarray, numbers: numpy.ndarray, reach: float, most: int) -> numpy.ndarray | None:
    cells = numpy.floor(points[:, :AXES] / reach).astype(numpy.int64) + SIDE // 2
    steps = SIDE ** numpy.arange(AXES)[::-1]
    keys = cells @ steps
    order = numpy.argsort(keys, kind="stable")
    keys, points, numbers = keys[order], points[order], numbers[order]
    # Half of the lines of cells around a point's own; from the other half it is found itself.
    lines = [
        line for offsets in product((-1, 0, 1), repeat=AXES - 1) if (line := int(numpy.dot(offsets, steps[:-1]))) >= 0
    ]
    lines.sort()
    columns = keys[:, None] + numpy.array(lines)
    starts = numpy.searchsorted(keys, columns - 1)
    starts[:, 0] = numpy.arange(1, len(keys) + 1)
    lengths = numpy.searchsorted(keys, columns + 1, side="right") - starts
    per_point = lengths.sum(axis=1)
    if per_point.sum() > MOST_COMPARED:
        return None
    found, count = [numpy.empty((0, 2), dtype=numpy.int64)], 0
    chunks = numpy.searchsorted(per_point.cumsum(), numpy.arange(CHUNK, int(per_point.sum()) + CHUNK, CHUNK))
    for begin, end in pairwise([0, *(int(place) + 1 for place in numpy.unique(chunks))]):
        size = lengths[begin:end].ravel()
        left = numpy.repeat(numpy.arange(begin, min(end, len(keys))), per_point[begin:end])
        ahead = starts[begin:end].ravel() - (size.cumsum() - size)
        right = numpy.repeat(ahead, size) + numpy.arange(size.sum())
        for k in range(points.shape[1]):
            kept = numpy.abs(points[left, k] - points[right, k]) <= reach
            left, right = left[kept], right[kept]
        pairs = numpy.stack([numbers[left], numbers[right]], axis=1)
        found.append(pairs[pairs[:, 0] != pairs[:, 1]])
        count += len(found[-1])
        if count > most:
            return None
    return numpy.concatenate(found)
