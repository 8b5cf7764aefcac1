"""Feature ranks along the depth of a network: behind every non-linearity, and behind every block.

Rank can only be lost by what is linear, and mostly is lost with depth; how much, and whether training takes more of it
away, is what the table tells. Samples are positions (examples, times tokens or pixels), drawn with a fixed seed where
there are many, so that tables of one run compare. Ranks grow with the number of samples until there are several times
as many as units: compare equal numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diagnostics.arguments import whole_number
from diagnostics.blocks import block_outputs, require_finite, unit_axis
from diagnostics.parameters import unwrap
from diagnostics.quiet import quiet
from diagnostics.units.capture import Product, Site, capture
from diagnostics.units.forward import forward_passes
from diagnostics.units.rank import FeatureRank, feature_rank

if TYPE_CHECKING:
    import pandas

BLOCK = "block"
RANKS = ("srank", "effective_rank", "stable_rank", "participation_ratio", "approximate_rank")


@dataclass(frozen=True)
class LayerRank:
    """The ranks at one place.

    Attributes:
        layer: module path of the non-linearity or the block; ``path.tanh`` for a functional call.
        kind: the family of the non-linearity, e.g. ``"relu"``, or ``"block"``.
        positions: how many positions there were; ``rank.samples`` of them were taken.
        rank: the ranks of the features there.
    """

    layer: str
    kind: str
    positions: int
    rank: FeatureRank


@dataclass(frozen=True, repr=False)
class LayerRanks:
    """A table with one row per place, in the order in which they run."""

    rows: list[LayerRank]
    centred: bool

    def to_pandas(self) -> pandas.DataFrame:
        """The values as a DataFrame. Needs pandas."""
        import pandas

        columns = ("layer", "kind", "units", "samples", "positions", *RANKS, "spread")
        found = [
            {"layer": row.layer, "kind": row.kind, "units": row.rank.units, "samples": row.rank.samples}
            | {"positions": row.positions}
            | {name: getattr(row.rank, name).value for name in (*RANKS, "spread")}
            for row in self.rows
        ]
        return pandas.DataFrame(found, columns=columns)

    def __str__(self) -> str:
        if not self.rows:
            return "no non-linearity and no block was seen"
        width = max([5, *(len(row.layer) for row in self.rows)])
        lines = [
            f"{'layer':<{width}}  {'':<10}  units  samples  srank  effective  stable  particip.  approx.  spread",
            *(_line(row, width) for row in self.rows),
        ]
        if self.centred:
            lines.append("(the mean over samples taken away first)")
        return "\n".join(lines)

    __repr__ = __str__


def _line(row: LayerRank, width: int) -> str:
    rank = row.rank
    numbers = [getattr(rank, name) for name in (*RANKS, "spread")]
    cells = [
        f"{f'{number:.4g}' if number.determined else '-':>{size}}"
        for number, size in zip(numbers, (5, 9, 6, 9, 7, 6), strict=True)
    ]
    return f"{row.layer:<{width}}  {row.kind:<10}  {rank.units:>5}  {rank.samples:>7}  {'  '.join(cells)}"


def layer_ranks(model: nn.Module, batch: Any, *, centred: bool = False, samples: int = 2048) -> LayerRanks:
    """The feature ranks behind every non-linearity and every block, in evaluation mode.

    Args:
        model: any module; non-linearities are seen as modules and as functions alike.
        batch: a tensor of inputs; an ``(inputs, targets)`` pair; a mapping for ``model(**batch)``; or an Objective of
            this model, whose batches are then all run.
        centred: whether to take the mean over samples away first.
        samples: at most so many positions at each place, the same share of every batch. They and one matrix with as
            many rows and columns are all the memory that is needed for each.

    Raises:
        DiagnosticsError: the batch cannot be run, or values somewhere are not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU())
        >>> row, = layer_ranks(model, torch.randn(50, 3)).rows
        >>> row.layer, row.rank.units, row.rank.samples
        ('1', 8, 50)
    """
    most = whole_number("samples is out of range", samples, "a whole number from 1", 1)
    plain = unwrap(model)
    passes = forward_passes(plain, batch)
    share = -(-most // len(passes))
    found: dict[str, tuple[str, list[Tensor], list[int]]] = {}
    last = torch.empty(0)

    def keep(place: str, kind: str, rows: Tensor) -> None:
        nonlocal last
        require_finite(place, rows)
        # A block that ends in a non-linearity is one place.
        if kind == BLOCK and rows.shape == last.shape and torch.equal(rows, last):
            return
        last = rows
        _, parts, counts = found.setdefault(place, (kind, [], []))
        counts.append(len(rows))
        parts.append(_drawn(rows, share))

    def see(site: Site | Product) -> None:
        if isinstance(site, Site):
            keep(site.place, site.nonlinearity.name, site.h)

    def see_block(place: str, block: nn.Module, output: Tensor) -> None:
        axis = unit_axis(block, output)
        keep(place, BLOCK, output.detach().movedim(axis, -1).reshape(-1, output.shape[axis]))

    for run in passes:
        with quiet(plain, "eval"), torch.no_grad(), capture(plain, see), block_outputs(plain, see_block):
            run()
    return LayerRanks(
        [
            LayerRank(place, kind, sum(counts), feature_rank(torch.cat(parts), centred=centred))
            for place, (kind, parts, counts) in found.items()
        ],
        centred,
    )


def _drawn(rows: Tensor, most: int) -> Tensor:
    """At most so many rows, as a copy: all of them, or a draw that is the same every time."""
    if len(rows) <= most:
        return rows.clone()
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]
    return rows[chosen.to(rows.device)]
