"""What one use of a parameter adds to the gradient of each example, in one of four forms.

- ``Outer``: Σ_t l_it r_itᵀ over the example's tokens, from a linear layer.
- ``Convolved``: the same over positions, r_it the window that the kernel sees there; windows are many times larger
  than the image and are only ever made for some examples at once.
- ``Lookup``: Σ_t e_{id_t} h_itᵀ, from an embedding.
- ``Direct``: the gradient itself, from biases, scales and whatever was materialised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from diagnostics.recorded.windows import padded, windows

BLOCK_BYTES = 2**22
"""What is materialised at once, in gradients or in windows: as much as the caches hold, or memory is all one waits for.
"""

LARGE = 2**14
"""Parameters whose gradients are products of their own: in a batch of products, large ones take twice as long."""

MANY_POSITIONS = 128
"""From how many on a convolution in groups is quicker than a product with windows."""

WEIGHT_GRADIENTS: dict[int, Callable[..., Tensor]] = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}
"""Of a convolution's weight, by the dimensions of space."""

PIECE = 1024
"""Squares that are added up in the precision of the model."""


@dataclass(frozen=True)
class Outer:
    """Σ_t l_t r_tᵀ for each example: left (N, G, T, r) and right (N, G, T, c), G independent groups of rows."""

    left: Tensor
    right: Tensor

    def part(self, some: slice) -> Outer:
        """Some of the examples."""
        return Outer(self.left[some], self.right[some])

    def extent(self) -> tuple[int, int, int, int]:
        """G, T, r, c."""
        groups, tokens, height = self.left.shape[1:]
        return groups, tokens, height, self.right.shape[3]

    def rows(self, size: int) -> Tensor:
        """The gradients, (N, P)."""
        count, (groups, tokens, height, width) = len(self.left), self.extent()
        if tokens == 1:
            product = self.left.squeeze(2).unsqueeze(-1) * self.right.squeeze(2).unsqueeze(-2)
            return product.reshape(count, size)
        left, right = self.left.reshape(-1, tokens, height).mT, self.right.reshape(-1, tokens, width)
        if size < LARGE:
            return torch.bmm(left, right).view(count, size)
        products = left.new_empty(count * groups, height, width)
        for one, other, product in zip(left.unbind(), right.unbind(), products.unbind(), strict=True):
            torch.mm(one, other, out=product)
        return products.view(count, size)

    def dots(self, vector: Tensor) -> Tensor:
        """⟨g_i, v⟩, (N,)."""
        groups, _, height, width = self.extent()
        matrix = vector.reshape(groups, height, width).to(self.left)
        # One product for all tokens of all examples, which a batch of small ones is not.
        product = self.left.transpose(0, 1).reshape(groups, -1, height) @ matrix
        return total_of(product.view(groups, len(self.left), -1, width).transpose(0, 1), self.right)


@dataclass(frozen=True)
class Convolved:
    """Σ_t l_t r_tᵀ over positions, r_t the window at each, for each example.

    Attributes:
        sides: what is small at each position, (N, m, C, *positions).
        images: what the windows are of, (N, m, C', *space).
        kernel: its size.
        stride: of the windows.
        padding: of the images, before and after.
        dilation: of the windows.
        groups: of channels.
    """

    sides: Tensor
    images: Tensor
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def part(self, some: slice) -> Convolved:
        """Some of the examples."""
        return replace(self, sides=self.sides[some], images=self.images[some])

    def extent(self) -> tuple[int, int, int, int]:
        """G, T, r, c of the outer products."""
        tokens = self.sides.shape[1] * prod(self.sides.shape[3:])
        width = self.images.shape[2] // self.groups * prod(self.kernel)
        return self.groups, tokens, self.sides.shape[2] // self.groups, width

    def outer(self) -> Outer:
        """With all windows made."""
        made = self.jumbled()
        return Outer(made.left, self.in_order(made.right))

    def jumbled(self) -> Outer:
        """The same with the entries of windows in the order in which they are had: channels run fastest."""
        count, frames, channels = self.sides.shape[:3]
        right = windows(
            self.images.flatten(0, 1),
            self.kernel,
            self.sides.shape[3:],
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        left = self.sides.reshape(count * frames, self.groups, channels // self.groups, -1).mT
        if frames > 1:
            left, right = (side.unflatten(0, (count, frames)).transpose(1, 2).flatten(2, 3) for side in (left, right))
        return Outer(left, right)

    def in_order(self, jumbled: Tensor) -> Tensor:
        """Windows (..., c), or whole gradients (..., P), with their entries as in the weight."""
        places, width = prod(self.kernel), self.extent()[3]
        ordered: Tensor = jumbled.unflatten(-1, (-1, places, width // places)).transpose(-1, -2).flatten(-3)
        return ordered

    def pieces(self) -> Iterator[Outer]:
        """All windows in jumbled order, of some examples at a time."""
        groups, tokens, _, width = self.extent()
        step = max(1, BLOCK_BYTES // (2 * self.images.element_size() * groups * tokens * width))
        return (self.part(slice(at, at + step)).jumbled() for at in range(0, len(self.sides), step))

    def rows(self, size: int) -> Tensor:
        """The gradients, (N, P)."""
        rows = self.rows_in_any_order(size)
        return rows if self.is_cheaper_by_groups() else self.in_order(rows)

    def rows_in_any_order(self, size: int) -> Tensor:
        """The gradients, (N, P), jumbled where that is how they are had: their norms are the same."""
        if self.is_cheaper_by_groups():
            return self.by_groups(size)
        found = [piece.rows(size) for piece in self.pieces()]
        return found[0] if len(found) == 1 else torch.cat(found)

    def is_cheaper_by_groups(self) -> bool:
        """Whether torch's own gradient of a convolution takes less time than a product with windows."""
        overlap = any(size > step for size, step in zip(self.kernel, self.stride, strict=True))
        # Measured on the CPU; other devices keep to the product, which is quick everywhere.
        return overlap and prod(self.sides.shape[3:]) >= MANY_POSITIONS and self.sides.device.type == "cpu"

    def by_groups(self, size: int) -> Tensor:
        """The gradients, (N, P), from one convolution in which every example's channels are groups of their own."""
        count, frames = self.sides.shape[:2]
        images, padding = self.images, [low for low, _ in self.padding]
        if any(low != high for low, high in self.padding):
            images = padded(images.flatten(0, 1), self.padding).unflatten(0, (count, frames))
            padding = [0] * len(padding)
        sides, images = (side.transpose(0, 1).reshape(frames, -1, *side.shape[3:]) for side in (self.sides, images))
        shape = (sides.shape[1], images.shape[1] // (count * self.groups), *self.kernel)
        gradient = WEIGHT_GRADIENTS[len(self.kernel)]
        found: Tensor = gradient(images, shape, sides, self.stride, padding, self.dilation, count * self.groups)
        return found.view(count, size)

    def dots(self, vector: Tensor) -> Tensor:
        """⟨g_i, v⟩, (N,)."""
        places, width = prod(self.kernel), self.extent()[3]
        jumbled = vector.view(-1, width // places, places).mT.flatten()
        return torch.cat([piece.dots(jumbled) for piece in self.pieces()])


@dataclass(frozen=True)
class Lookup:
    """Σ_t e_{id_t} h_tᵀ for each example: ids (N, T), values h (N, T, d), in a table of V rows."""

    ids: Tensor
    values: Tensor
    table: int

    def part(self, some: slice) -> Lookup:
        """Some of the examples."""
        return replace(self, ids=self.ids[some], values=self.values[some])

    def rows(self, size: int) -> Tensor:
        """The gradients, (N, P)."""
        count, _, width = self.values.shape
        result = self.values.new_zeros(count * self.table, width)
        offset = torch.arange(count, device=self.ids.device)[:, None] * self.table
        return result.index_add_(0, (self.ids + offset).flatten(), self.values.flatten(0, 1)).view(count, size)

    def dots(self, vector: Tensor) -> Tensor:
        """⟨g_i, v⟩, (N,)."""
        return total_of(vector.view(self.table, -1).to(self.values)[self.ids], self.values)


@dataclass(frozen=True)
class Direct:
    """The gradients themselves, (N, P)."""

    gradients: Tensor

    def part(self, some: slice) -> Direct:
        """Some of the examples."""
        return Direct(self.gradients[some])

    def rows(self, size: int) -> Tensor:
        """The gradients, (N, P)."""
        return self.gradients.reshape(len(self.gradients), size)

    def dots(self, vector: Tensor) -> Tensor:
        """⟨g_i, v⟩, (N,)."""
        return (self.gradients.double() @ vector.double()).to(torch.float64)


Contribution = Outer | Convolved | Lookup | Direct


def joined(contributions: Sequence[Contribution]) -> list[Contribution]:
    """The same sum in fewer terms: outer products of one parameter are as those of one longer sequence."""
    if len(contributions) < 2:
        return list(contributions)
    made = [one.outer() if isinstance(one, Convolved) else one for one in contributions]
    result: list[Contribution] = [one for one in made if not isinstance(one, Outer)]
    groups: dict[int, list[Outer]] = {}
    for one in made:
        if isinstance(one, Outer):
            groups.setdefault(one.left.shape[1], []).append(one)
    for outers in groups.values():
        if len(outers) == 1:
            result += outers
        else:
            left, right = (torch.cat(sides, dim=2) for sides in ([o.left for o in outers], [o.right for o in outers]))
            result.append(Outer(left, right))
    return result


def materialised(contributions: Sequence[Contribution], size: int) -> Tensor:
    """The gradients of one parameter, (N, P)."""
    total = contributions[0].rows(size)
    for one in contributions[1:]:
        total = total + one.rows(size)
    return total


def in_blocks(contributions: Sequence[Contribution], size: int) -> Iterator[Tensor]:
    """The gradients of one parameter, (n, P), of some examples at a time, all jumbled alike (``in_order``)."""
    step = max(1, BLOCK_BYTES // (8 * max(1, size)))
    for at in range(0, count_of(contributions), step):
        some = [one.part(slice(at, at + step)) for one in contributions]
        first = some[0]
        if len(some) == 1 and isinstance(first, Convolved):
            yield first.rows_in_any_order(size)
        else:
            yield materialised(some, size)


def in_order(contributions: Sequence[Contribution], jumbled: Tensor) -> Tensor:
    """What was computed of blocks, (P,), as the parameter has it."""
    one = contributions[0]
    if len(contributions) > 1 or not isinstance(one, Convolved) or one.is_cheaper_by_groups():
        return jumbled
    return one.in_order(jumbled)


def count_of(contributions: Sequence[Contribution]) -> int:
    """How many examples they are of."""
    one = contributions[0]
    return len(_first(one))


def total_of(one: Tensor, other: Tensor) -> Tensor:
    """Σ of the products of two tensors for each example, in float64."""
    return (one * other).flatten(1).sum(1, dtype=torch.float64)


def squares_of(rows: Tensor) -> Tensor:
    """‖row‖² of (N, P), in float64 but for the sums of a thousand squares: eight times as fast as all in float64."""
    count, width = rows.shape
    precise = torch.promote_types(rows.dtype, torch.float32)
    if width <= PIECE:
        short: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=precise).double().square()
        return short
    even = width - width % PIECE
    parts = [rows[:, :even].reshape(count, -1, PIECE), rows[:, even:].reshape(count, 1, -1)]
    norms = torch.cat([torch.linalg.vector_norm(part, dim=2, dtype=precise) for part in parts], dim=1)
    return norms.double().square().sum(1)


def _first(one: Contribution) -> Tensor:
    if isinstance(one, Direct):
        return one.gradients
    if isinstance(one, Lookup):
        return one.ids
    return one.left if isinstance(one, Outer) else one.sides
