"""A convolution as a sum of outer products: each position's window against the gradient there."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor
from torch.nn import functional as F


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
    """What the kernel sees at each position, (B, G, T, C/G · prod(kernel)), from an image (B, C, *space)."""
    if any(low or high for low, high in padding):
        image = padded(image, padding)
    count, channels = image.shape[:2]
    strides = image.stride()
    inside = [step * dilate for step, dilate in zip(strides[2:], dilation, strict=True)]
    along = [step * jump for step, jump in zip(strides[2:], stride, strict=True)]
    # Positions run fastest, as they do in the image: the copy is of whole lines.
    seen = image.as_strided(
        (count, groups, channels // groups, *kernel, *positions),
        (strides[0], strides[1] * (channels // groups), strides[1], *inside, *along),
        image.storage_offset(),
    )
    return seen.reshape(count, groups, channels // groups * prod(kernel), prod(positions)).mT


def padded(image: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    """With zeros before and after."""
    return F.pad(image, [side for pair in reversed(padding) for side in pair])


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
