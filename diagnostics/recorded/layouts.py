"""Where the examples are in a tensor inside a model: seen by running one example, and then two.

A dimension that doubles runs over the examples. Where it was one with one example, it holds nothing else; where it was
m, each example has m entries in it, side by side (tokens flattened into rows) or interleaved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Which axis the examples run along.

    Attributes:
        axis: of the tensor.
        each: entries of one example along it.
        inner: whether the example is the faster index: entries of one example are not side by side.
    """

    axis: int
    each: int
    inner: bool = False

    def front(self, tensor: Tensor) -> Tensor:
        """The tensor with the examples as its leading dimension, and ``each`` entries left where they ran."""
        count = tensor.shape[self.axis] // self.each
        sizes = (self.each, count) if self.inner else (count, self.each)
        split = tensor.view(*tensor.shape[: self.axis], *sizes, *tensor.shape[self.axis + 1 :])
        return split.movedim(self.axis + 1 if self.inner else self.axis, 0)

    def fits(self, shape: Sequence[int], count: int) -> bool:
        """Whether a shape is one of ``count`` examples."""
        return len(shape) > self.axis and shape[self.axis] == count * self.each


def layout_of(one: Sequence[int], two: Sequence[int]) -> Layout | None:
    """The layout of a tensor whose shape is this for one example and that for two; None if they do not say."""
    differing = [axis for axis, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
    if len(one) != len(two) or len(differing) != 1:
        return None
    (axis,) = differing
    return Layout(axis, one[axis]) if two[axis] == 2 * one[axis] and one[axis] else None
