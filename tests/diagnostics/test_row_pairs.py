"""Near points found through cells are those that comparing every pair finds, whatever way they lie to the cells."""

from __future__ import annotations

import numpy
import pytest

from diagnostics.weights import row_pairs
from diagnostics.weights.row_pairs import near_pairs
from tests.reference import weight_loops

REACH = 0.05


def _sets(pairs: numpy.ndarray | None) -> set[frozenset[int]]:
    assert pairs is not None
    sets: dict[int, frozenset[int]] = {}
    for pair in pairs.tolist():
        joined = frozenset(pair).union(*(sets.get(number, frozenset()) for number in pair))
        sets |= dict.fromkeys(joined, joined)
    return set(sets.values())


def _crowd(seed: int, axes: int) -> numpy.ndarray:
    """Clusters about one reach wide, copies, copies but for rounding, and points on the very borders of cells."""
    random = numpy.random.default_rng(seed)
    centres = random.uniform(-1, 1, (25, axes))
    crowd = numpy.repeat(centres, 6, axis=0) + random.uniform(-0.6, 0.6, (150, axes)) * REACH
    crowd[:30] = crowd[60:90]
    crowd[30:40] = crowd[90:100] + random.uniform(-3e-7, 3e-7, (10, axes))
    crowd[40:50] = numpy.round(crowd[40:50] / REACH) * REACH
    crowd[50:60] = crowd[40:50] + random.choice([-0.999, 0.999], (10, axes)) * REACH
    return crowd.clip(-1, 1)


@pytest.mark.parametrize("axes", [4, 6])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chunk", [1, 7, 1 << 19])
def test_every_near_pair_is_found(axes: int, seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_pairs, "CHUNK", chunk)
    points = _crowd(seed, axes)
    found = _sets(near_pairs(points, numpy.arange(150), REACH, 10_000))
    assert found == weight_loops.near_sets(points, list(range(150)), REACH)
    assert len(found) > 5


def test_a_point_that_stands_there_twice_joins_both_sides_and_not_itself() -> None:
    points = numpy.array([[0.01, 0.5, 0, 0], [-0.01, -0.5, 0, 0], [0.02, -0.52, 0, 0], [-0.03, 0.49, 0, 0]])
    numbers = numpy.array([0, 0, 1, 2])
    found = near_pairs(points, numbers, REACH, 10)
    assert _sets(found) == {frozenset([0, 1, 2])} == weight_loops.near_sets(points, numbers.tolist(), REACH)
    assert found is not None
    assert all(left != right for left, right in found.tolist())


def test_copies_are_paired_with_the_first_alone() -> None:
    points = numpy.tile([[0.3, -0.2, 0.1, 0.9]], (50, 1))
    found = near_pairs(points, numpy.arange(50), REACH, 0)
    assert found is not None
    assert sorted(found.tolist()) == [[0, number] for number in range(1, 50)]


def test_what_differs_by_more_than_rounding_is_no_copy() -> None:
    """A chain of steps that are small, and not rounding, is one set; none of its ends may be dropped on the way."""
    points = numpy.zeros((40, 4))
    points[:, 2] = 1e-5 * numpy.arange(40)
    points = numpy.concatenate([points, points[-1:] + numpy.array([0, 0, 0.9999 * REACH, 0])])
    found = _sets(near_pairs(points, numpy.arange(41), REACH, 10_000))
    assert found == {frozenset(range(41))} == weight_loops.near_sets(points, list(range(41)), REACH)


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one_have_no_pair(count: int) -> None:
    found = near_pairs(numpy.zeros((count, 4)), numpy.arange(count), REACH, 10)
    assert found is not None
    assert found.shape == (0, 2)


@pytest.mark.parametrize("limit", ["MOST_COMPARED", "most"])
def test_too_many_near_points_are_given_up(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = numpy.random.default_rng(0).uniform(0, 0.6 * REACH, (60, 4))
    if limit == "MOST_COMPARED":
        monkeypatch.setattr(row_pairs, limit, 60 * 59 // 2 - 1)
        assert near_pairs(points, numpy.arange(60), REACH, 10_000) is None
    assert near_pairs(points, numpy.arange(60), REACH, 60 * 59 // 2 - 1) is None
    monkeypatch.setattr(row_pairs, "MOST_COMPARED", 60 * 59 // 2)
    pairs = near_pairs(points, numpy.arange(60), REACH, 60 * 59 // 2)
    assert pairs is not None
    assert len(pairs) == 60 * 59 // 2
