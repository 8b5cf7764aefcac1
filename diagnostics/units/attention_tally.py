"""Sums over queries for the heads of one attention, a few queries at a time in float32 or better."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.units.attention_calls import Call

MOST_QUERIES = 1024
"""Of each sequence; of longer ones an evenly spaced sample is looked at."""

_CHUNK = 2**20
"""Scores held at once."""


class HeadTally:
    """The heads of one attention."""

    def __init__(self, call: Call) -> None:
        heads, width = call.shape[1], call.output.shape[-1]
        self.place = call.place
        self.scale = call.scale
        self.queries = 0
        """Judged, of all sequences, with at least one key."""
        self.sampled = False
        self.keys = 0
        self.entropy, self.most, self.count = torch.zeros(3, heads, dtype=torch.float64)
        self.squares = torch.zeros(3, heads, dtype=torch.float64)
        """Over sequences: Σ E², Σ E n and Σ n² of the summed entropy E of n queries."""
        self.sequences = 0
        self.mass = torch.zeros(heads, 0, dtype=torch.float64)
        self.largest = torch.full((heads,), -math.inf, dtype=torch.float64)
        self.largest_product = torch.full((heads,), -math.inf, dtype=torch.float64)
        self.gram = torch.zeros(heads, width, width, dtype=torch.float64)
        """Σ o oᵀ of each head's output o."""
        self.weight: Tensor | None = None

    def add(self, call: Call) -> None:
        """Add what one batch showed.

        Raises:
            DiagnosticsError: a score of an allowed key is not finite.
        """
        batch, heads, rows, keys = call.shape
        places = torch.linspace(0, rows - 1, min(rows, MOST_QUERIES), dtype=torch.float64).round().long()
        self.sampled |= rows > MOST_QUERIES
        self.keys = max(self.keys, keys)
        if self.mass.shape[1] < keys:
            self.mass = torch.nn.functional.pad(self.mass, (0, keys - self.mass.shape[1]))
        sums = torch.zeros(2, batch, heads, dtype=torch.float64)
        for part in places.to(call.output.device).split(max(1, _CHUNK // max(1, batch * heads * keys))):
            sums += self._add_some(call, part)
        entropy, count = sums
        self.squares += torch.stack([entropy.square().sum(0), (entropy * count).sum(0), count.square().sum(0)])
        self.sequences += int((count > 0).any(1).sum())

    def _add_some(self, call: Call, queries: Tensor) -> Tensor:
        logits, allowed, products = call.scores(queries)
        allowed = allowed.expand_as(logits)
        judged = allowed.any(-1)
        broken = int((allowed & ~logits.isfinite()).sum())
        if broken:
            raise DiagnosticsError(
                f"the attention scores at {call.place!r} are not finite",
                given=f"{broken:,} of {int(allowed.sum()):,} values are NaN or infinite",
                expected="finite weights and inputs",
            )
        # A query without keys would have 0/0 everywhere; it gets one that does not count.
        alone = ~judged[..., None]
        attention = (
            logits.masked_fill(~allowed, -math.inf).masked_fill_(alone, 0.0).softmax(-1).masked_fill_(alone, 0.0)
        )
        entropy = torch.special.entr(attention).sum(-1)
        most = allowed.sum(-1).clamp(min=1).double().log()
        self.entropy += entropy.double().sum((0, 2)).cpu()
        self.most += most.sum((0, 2)).cpu()
        self.count += judged.sum((0, 2)).cpu()
        self.mass[:, : attention.shape[-1]] += attention.sum(2).double().sum(0).cpu()
        self.largest = torch.maximum(self.largest, _largest(logits, allowed))
        if products is not None:
            self.largest_product = torch.maximum(self.largest_product, _largest(products, allowed))
        output = call.output.index_select(-2, queries).to(logits.dtype).masked_fill(alone, 0.0)
        by_head = output.transpose(0, 1).flatten(1, 2)
        self.gram += (by_head.mT @ by_head).double().cpu()
        self.queries += int(judged.any(1).sum())
        return torch.stack([entropy.double().sum(-1), judged.sum(-1).double()]).cpu()

    def norms(self) -> Tensor:
        """(H,): the norm of what each head gives, over all queries; after the output projection where that was seen."""
        if self.weight is None:
            return self.gram.diagonal(dim1=1, dim2=2).sum(-1).sqrt()
        weight = self.weight.cpu().double()
        blocks = weight.reshape(len(weight), len(self.gram), -1).transpose(0, 1)
        return (self.gram * (blocks.mT @ blocks)).sum((1, 2)).clamp(min=0.0).sqrt()


def _largest(values: Tensor, allowed: Tensor) -> Tensor:
    return values.masked_fill(~allowed, -math.inf).amax((0, 2, 3)).double().cpu()
