"""Heads of attention: where each looks, how large its logits are, and what it gives.

For every query t the attention a_t over its allowed keys has entropy −Σ a log a, at most the logarithm of the number
of allowed keys. Reported is the mean over queries, and its share of the mean of the maxima. The sink share is the
largest mean attention that one key position gets from all queries. Logits are q·k/√d as they enter the softmax,
masks and biases included, and the largest of them over allowed keys; where the scale is known, also the largest q·k
before it. Logits that grow are how large transformers diverge (Dehghani et al., arXiv 2302.05442; Wortsman et al.,
arXiv 2309.14322), with the entropy going to zero (Zhai et al., arXiv 2303.06296).

A head gives the norm of its output, seen behind the output projection where there is one. It is called *dead* below
1 % of the mean head; *collapsed* where almost all attention goes to one key position; *uniform* where it is spread
out evenly, as in a fresh network. A sink on the first token is usual in language models (arXiv 2309.17453), and no
fault by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diagnostics.estimate import Estimate, exact
from diagnostics.parameters import unwrap
from diagnostics.quiet import quiet
from diagnostics.units.attention_calls import Call, Projection, attention_calls
from diagnostics.units.attention_tally import MOST_QUERIES, HeadTally
from diagnostics.units.forward import forward_passes

if TYPE_CHECKING:
    import pandas

DEAD = 0.01
ON_ONE_KEY, LITTLE_ENTROPY = 0.95, 0.1
UNIFORM = 0.99

_ANY_KERNEL = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True)
class HeadAttention:
    """One head of one attention.

    Attributes:
        layer: module path of the attention; ``#2`` for the second one of the same module.
        head: its number, from 0.
        entropy: mean over queries, in nats.
        relative_entropy: over the mean of its maxima, log of the number of allowed keys; between 0 and 1.
        sink_share: largest mean attention to one key position.
        sink_key: that position.
        max_logit: largest logit of an allowed key, as it enters the softmax.
        max_product: largest q·k of an allowed key, before the scale; undetermined where scores are written out.
        output_share: norm of the head's output, over the sum of those of all heads.
        verdict: ``"dead"``, ``"collapsed"``, ``"uniform"``, or nothing.
    """

    layer: str
    head: int
    entropy: Estimate
    relative_entropy: Estimate
    sink_share: Estimate
    sink_key: int
    max_logit: Estimate
    max_product: Estimate
    output_share: Estimate
    verdict: str


@dataclass(frozen=True, repr=False)
class AttentionHeads:
    """A table with one row per head, attention by attention in the order in which they run."""

    rows: list[HeadAttention]

    def to_pandas(self) -> pandas.DataFrame:
        """Values without their errors. Needs pandas."""
        import pandas

        columns = [one.name for one in fields(HeadAttention)]
        rows = [[_plain(getattr(row, name)) for name in columns] for row in self.rows]
        return pandas.DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        if not self.rows:
            return "no attention was seen"
        width = max(9, *(len(row.layer) for row in self.rows))
        head = ("head", "entropy", "of most", "sink", "at key", "max logit", "output")
        lines = [f"{'attention':<{width}}  " + "  ".join(f"{name:>9}" for name in head)]
        for row in self.rows:
            cells = (
                *(f"{row.head}", f"{row.entropy:.3f}", f"{row.relative_entropy:.3f}", f"{row.sink_share:.3f}"),
                *(f"{row.sink_key}", f"{row.max_logit:.4g}", f"{row.output_share:.3f}"),
            )
            lines.append(f"{row.layer:<{width}}  " + "  ".join(f"{cell:>9}" for cell in cells) + f"  {row.verdict}")
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


def attention_heads(model: nn.Module, batch: Any) -> AttentionHeads:
    """Entropy, sink, largest logit and output of every head of every attention, in evaluation mode.

    Args:
        model: any module that calls ``F.scaled_dot_product_attention`` or ``nn.MultiheadAttention``, or writes
            attention out as a softmax of scores (B, H, T, S) times values, as eager Hugging Face models do.
        batch: a tensor of inputs; an ``(inputs, targets)`` pair; a mapping for ``model(**batch)``; or an Objective of
            this model, whose batches are then all run.

    Returns:
        A table. Queries without an allowed key do not count. Padding that no mask hides from queries counts.

    Raises:
        DiagnosticsError: the batch cannot be run, or scores of allowed keys are not finite.

    Example:
        >>> class Alone(nn.Module):
        ...     def forward(self, x):
        ...         return nn.functional.scaled_dot_product_attention(x, x, x)
        >>> row = attention_heads(Alone(), torch.zeros(2, 1, 16, 4)).rows[0]
        >>> print(row.entropy, row.verdict)
        2.773 uniform
    """
    plain = unwrap(model)
    tallies: dict[str, HeadTally] = {}

    def see(event: Call | Projection) -> None:
        if isinstance(event, Projection):
            tallies[event.place].weight = event.weight
            return
        if event.place not in tallies:
            tallies[event.place] = HeadTally(event)
        tallies[event.place].add(event)

    for run in forward_passes(plain, batch):
        # Only forwards: fused kernels need not hold all scores at once.
        with quiet(plain, "eval"), torch.no_grad(), sdpa_kernel(_ANY_KERNEL), attention_calls(plain, see):
            run()
    return AttentionHeads([row for tally in tallies.values() for row in _rows(tally)])


def _rows(tally: HeadTally) -> list[HeadAttention]:
    how = f"{tally.queries:,} queries of {tally.sequences:,} sequences"
    if tally.sampled:
        how += f", at most {MOST_QUERIES:,} evenly spaced ones of each"
    norms = tally.norms()
    given = "after the output projection" if tally.weight is not None else "before any output projection"
    heads = len(norms)
    rows = []
    for head in range(heads):
        entropy, relative = _entropies(tally, head, how)
        shares = tally.mass[head] / tally.count[head]
        key = int(shares.argmax()) if tally.count[head] else 0
        sink = exact(float(shares[key]), f"mean attention to key {key}, {how}")
        total = float(norms.sum())
        output = (
            exact(float(norms[head]) / total, f"share of the norms of {heads} heads, {given}, {how}")
            if total > 0 and math.isfinite(total)
            else _nothing("no head puts anything out, or not a finite number")
        )
        product = float(tally.largest_product[head])
        rows.append(
            HeadAttention(
                layer=tally.place,
                head=head,
                entropy=entropy,
                relative_entropy=relative,
                sink_share=sink,
                sink_key=key,
                max_logit=exact(float(tally.largest[head]), f"as it enters the softmax, {how}"),
                max_product=exact(product, f"q·k before the scale {tally.scale:.4g}, {how}")
                if tally.scale is not None
                else _nothing("scores are written out: their scale is not known"),
                output_share=output,
                verdict=_verdict(heads, output, relative, sink),
            )
        )
    return rows


def _entropies(tally: HeadTally, head: int, how: str) -> tuple[Estimate, Estimate]:
    """The mean over queries with its error over sequences, and its share of the most that it could be."""
    count, most = float(tally.count[head]), float(tally.most[head])
    if not count:
        nothing = _nothing("no query had a key")
        return nothing, nothing
    mean = float(tally.entropy[head]) / count
    # Queries of one sequence go together: the sequences are what was drawn. A ratio of sums over them.
    square, cross, counts = (float(value) for value in tally.squares[:, head])
    n = tally.sequences
    spread = max(0.0, square - 2 * mean * cross + mean * mean * counts)
    error = math.sqrt(spread * n / (n - 1)) / count if n > 1 else math.nan
    entropy = Estimate(mean, error, "standard error", f"mean in nats, {how}")
    if most == 0:
        return entropy, _nothing("every query had one key only")
    scale = count / most
    return entropy, Estimate(mean * scale, error * scale, "standard error", f"of the most that it could be, {how}")


def _verdict(heads: int, output: Estimate, relative: Estimate, sink: Estimate) -> str:
    if output.determined and heads > 1 and float(output) * heads < DEAD:
        return "dead"
    if not relative.determined:
        return ""
    if float(sink) >= ON_ONE_KEY and float(relative) <= LITTLE_ENTROPY:
        return "collapsed"
    return "uniform" if float(relative) >= UNIFORM else ""


def _nothing(why: str) -> Estimate:
    return Estimate(math.nan, math.nan, "exact", why)


def _plain(value: object) -> object:
    return float(value) if isinstance(value, Estimate) else value
