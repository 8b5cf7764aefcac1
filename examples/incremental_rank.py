"""From a tiny start gradient descent learns one direction after the other: rank 0, 1, 2, 3.

A matrix of rank three is seen through random measurements and fitted by U Uᵀ with U square, so nothing asks for low
rank. Yet from a start of 1e-5 each direction waits its turn: it grows exponentially, at a rate that is its singular
value, and while one is learned the next are still next to nothing. From a large start all directions are there at once,
and the surplus dies out slowly.

Jin et al., arXiv 2301.11500; Li, Luo & Lyu, arXiv 2012.09839. Takes about five seconds.
"""

import torch
from torch import Tensor

from diagnostics import feature_rank

SIZE, TRUE = 20, (1.0, 1 / 2, 1 / 3)


def measured() -> tuple[Tensor, Tensor]:
    """Random measurements (m, d²) and what they see of a matrix of rank three."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(SIZE, len(TRUE), generator=generator, dtype=torch.float64)).Q
    matrix = directions * torch.tensor(TRUE, dtype=torch.float64) @ directions.T
    measurements = torch.randn(1200, SIZE * SIZE, generator=generator, dtype=torch.float64)
    return measurements, measurements @ matrix.flatten()


def ranks(start: float, steps: int = 300, lr: float = 0.027) -> list[tuple[int, float]]:
    """Every hundred steps: directions learned to at least a half, and the effective rank."""
    measurements, seen = measured()
    u = start * torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for step in range(steps + 1):
        if step % 100 == 0:
            rank = feature_rank(u @ u.T)
            learned = int((rank.singular_values > TRUE[-1] / 2).sum())
            found.append((learned, rank.effective_rank.value))
        error = measurements @ (u @ u.T).flatten() - seen
        slope = (measurements.T @ error).view(SIZE, SIZE) / len(seen)
        u = u - lr * 2 * (slope + slope.T) @ u
    return found


if __name__ == "__main__":
    small, large = ranks(1e-5), ranks(0.3)
    for name, course in (("start 1e-5", small), ("start 0.3", large)):
        text = ", ".join(f"{learned} (effective {effective:.2f})" for learned, effective in course)
        print(f"{name}: rank at steps 0, 100, 200, 300: {text}")
    assert [learned for learned, _ in small] == [0, 1, 2, 3]
    assert small[1][1] < 1.3, "while the first direction is learned there is next to nothing else"
    assert small[3][1] < 3.0
    assert large[0][0] > 10, "control: a large start has all directions"
    assert large[3][1] > 3.5, "and keeps some of them"
