"""The UCI handwritten digits: 1797 images of 8 × 8 pixels, ten classes, inside the package.

E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, CC BY 4.0; see ``LICENSE.digits``.
"""

from __future__ import annotations

from importlib import resources

import numpy
import torch
from torch import Tensor


def digits(count: int | None = None) -> tuple[Tensor, Tensor]:
    """Standardised images (N, 64), float32, and labels (N,), int64, in the original order.

    Pixels are scaled to 0..1, centred, and divided by their standard deviation plus 0.1, over all 1797 images: some
    pixels are always zero.

    Args:
        count: the first so many; None for all.

    Example:
        >>> images, labels = digits(1000)
        >>> tuple(images.shape), int(labels.max())
        ((1000, 64), 9)
    """
    with resources.files("reports.demo").joinpath("digits.npz").open("rb") as file, numpy.load(file) as archive:
        raw = torch.from_numpy(archive["images"].reshape(-1, 64)).to(torch.float32) / 16
        labels = torch.from_numpy(archive["labels"]).to(torch.int64)
    images = (raw - raw.mean(0)) / (raw.std(0) + 0.1)
    return images[:count], labels[:count]
