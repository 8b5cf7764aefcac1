"""How alike the tokens of a sequence have become, block by block.

Attention averages: without residual connections and MLPs the tokens of a sequence run together doubly exponentially in
depth, until every position holds the same vector and nothing about position or content is left to read (Dong et al.,
arXiv 2103.03404). Two numbers tell:

* similarity: the mean cosine between two different tokens of a sequence, 1 when all point one way;
* residual: ‖X − 1x̄ᵀ‖/‖X‖, the share of the sequence that is not its mean token; 0 when all are one. It still falls
  where the similarity reads 1.000.

A token is not compared with itself: that would lift short sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diagnostics.averages import mean
from diagnostics.blocks import batch_axis, block_outputs, require_finite, unit_axis
from diagnostics.estimate import Estimate
from diagnostics.objective import Objective
from diagnostics.parameters import unwrap
from diagnostics.quiet import quiet
from diagnostics.units.forward import forward_passes

if TYPE_CHECKING:
    import pandas

CHUNK = 1 << 22
"""Numbers turned into float64 at a time."""

_WHAT = ("mean cosine between different tokens", "‖X − 1x̄ᵀ‖/‖X‖")


@dataclass(frozen=True)
class BlockSimilarity:
    """The tokens behind one block.

    Attributes:
        layer: the block's module path; ``#2`` for its second use.
        similarity: mean cosine between different tokens of a sequence, over sequences.
        residual: ‖X − 1x̄ᵀ‖/‖X‖, over sequences.
        sequences: how many had two tokens or more.
        tokens: how many were compared, over all sequences.
    """

    layer: str
    similarity: Estimate
    residual: Estimate
    sequences: int
    tokens: int


@dataclass(frozen=True, repr=False)
class TokenSimilarity:
    """A table with one row per block, in the order in which they run."""

    rows: list[BlockSimilarity]

    def to_pandas(self) -> pandas.DataFrame:
        """The values as a DataFrame. Needs pandas."""
        import pandas

        columns = ("layer", "similarity", "residual", "sequences", "tokens")
        found = [(row.layer, row.similarity.value, row.residual.value, row.sequences, row.tokens) for row in self.rows]
        return pandas.DataFrame(found, columns=columns)

    def __str__(self) -> str:
        if not self.rows:
            return "no block that puts out sequences was seen"
        width = max([5, *(len(row.layer) for row in self.rows)])
        lines = [f"{'layer':<{width}}  {'similarity':>15}  {'residual':>15}  sequences  tokens"]
        lines += [
            f"{row.layer:<{width}}  {row.similarity!s:>15}  {row.residual!s:>15}  {row.sequences:>9}  {row.tokens:>6}"
            for row in self.rows
        ]
        return "\n".join(lines)

    __repr__ = __str__


def token_similarity(model: nn.Module, batch: Any) -> TokenSimilarity:
    """How alike the tokens of a sequence are behind every block, in evaluation mode.

    Blocks are the layers that a network repeats. Of images the positions are the tokens. Where a batch is a mapping
    with an ``attention_mask`` (N, T), tokens that it leaves out do not count; tokens that are zero have no direction
    and do not count either.

    Args:
        model: any module.
        batch: a tensor of inputs; an ``(inputs, targets)`` pair; a mapping for ``model(**batch)``; or an Objective of
            this model, whose batches are then all run.

    Raises:
        DiagnosticsError: the batch cannot be run, or values somewhere are not finite.

    Source: Dong et al., arXiv 2103.03404.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        >>> [row.layer for row in token_similarity(model, torch.randn(4, 6, 8)).rows]
        ['layers.0', 'layers.1']
    """
    plain = unwrap(model)
    batches = batch.batches if isinstance(batch, Objective) else (batch,)
    found: dict[str, list[tuple[float, float, int]]] = {}
    mask: Tensor | None = None

    def see(place: str, block: nn.Module, output: Tensor) -> None:
        if output.ndim < 3:
            return
        require_finite(place, output)
        sequences = _sequences(block, output.detach())
        kept = mask
        if kept is None or kept.shape != sequences.shape[:2]:
            kept = torch.ones(sequences.shape[:2], dtype=torch.bool)
        rows = max(1, CHUNK // sequences[0].numel())
        for part, chosen in zip(sequences.split(rows), kept.split(rows), strict=True):
            found.setdefault(place, []).extend(_alike(part.double(), chosen.to(part.device)))

    for one, run in zip(batches, forward_passes(plain, batch), strict=True):
        given = one.get("attention_mask") if isinstance(one, Mapping) else None
        mask = given > 0 if isinstance(given, Tensor) else None
        with quiet(plain, "eval"), torch.no_grad(), block_outputs(plain, see):
            run()
    return TokenSimilarity([_row(place, measured) for place, measured in found.items()])


def _sequences(block: nn.Module, output: Tensor) -> Tensor:
    """(N, T, d) of a block's output, whichever way round it is."""
    output = output.movedim(batch_axis(block, output), 0)
    axis = unit_axis(block, output)
    return output.movedim(axis, -1).reshape(len(output), -1, output.shape[axis])


def _alike(tokens: Tensor, kept: Tensor) -> list[tuple[float, float, int]]:
    """Mean cosine, residual and number of the kept tokens of each sequence (N, T, d) that has two or more."""
    norms = torch.linalg.vector_norm(tokens, dim=2)
    kept = kept & (norms > 0)
    count = kept.sum(1)
    tokens, count, kept, norms = (part[count > 1] for part in (tokens, count, kept, norms))
    # The cosines of all pairs add up to the squared norm of the sum of unit vectors.
    together = (tokens * (kept / norms.where(kept, 1.0))[:, :, None]).sum(1).square().sum(1)
    tokens = tokens * kept[:, :, None]
    apart = (tokens - tokens.sum(1, keepdim=True) / count[:, None, None]).square().sum(2)
    residual = ((apart * kept).sum(1) / (norms * kept).square().sum(1)).sqrt()
    similarity = (together - count) / (count * (count - 1))
    return list(zip(similarity.tolist(), residual.tolist(), count.tolist(), strict=True))


def _row(place: str, measured: list[tuple[float, float, int]]) -> BlockSimilarity:
    similarity, residual = (_averaged([one[index] for one in measured], what) for index, what in enumerate(_WHAT))
    return BlockSimilarity(place, similarity, residual, len(measured), sum(one[2] for one in measured))


def _averaged(values: list[float], what: str) -> Estimate:
    count = len(values)
    if not count:
        return Estimate(math.nan, math.nan, "standard error", "no sequence has two tokens that are not zero")
    if count == 1:
        return Estimate(values[0], 0.0, "exact", f"{what}, of this one sequence")
    return mean(values, f"{what}, over {count:,} sequences")
