"""A convolution as a sum of outer products: each position's window against the gradient there."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor


def tuple_of(setting: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """A setting of a convolution for each spatial dimension."""
    return (setting,) * dimensions if isinstance(setting, int) else tuple(setting) * (dimensions // len(setting))


def windows(
    image: Tensor,
    kernel: Sequence[int],
    positions: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """What the kernel sees at each position, (B, G, T, prod(kernel) · C/G), from an image (B, C, *space)."""
    # Channels run fastest, so that the copy is of whole lines. A weight has them the other way round.
    image = padded(image, padding)
    count, channels = image.shape[:2]
    strides = image.stride()[2:]
    inside = [step * dilate for step, dilate in zip(strides, dilation, strict=True)]
    along = [step * jump for step, jump in zip(strides, stride, strict=True)]
    seen = image.as_strided(
        (count, groups, *positions, *kernel, channels // groups),
        (image.stride(0), channels // groups, *along, *inside, 1),
        image.storage_offset(),
    )
    return seen.reshape(count, groups, prod(positions), -1)


def padded(image: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    """An image (B, C, *space) with zeros before and after; in memory, its channels run fastest."""
    space = image.shape[2:]
    larger = [low + length + high for length, (low, high) in zip(space, padding, strict=True)]
    inside = [slice(low, low + length) for length, (low, _) in zip(space, padding, strict=True)]
    result = image.new_zeros(len(image), *larger, image.shape[1]).movedim(-1, 1)
    result[:, :, *inside] = image
    return result


def padding_of(
    padding: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Padding before and after, for each spatial dimension."""
    if padding == "valid":
        return tuple((0, 0) for _ in kernel)
    if padding == "same":
        totals = [dilate * (size - 1) for dilate, size in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    assert not isinstance(padding, str)
    return tuple((side, side) for side in tuple_of(padding, len(kernel)))
