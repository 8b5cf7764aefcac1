"""Slow twin of attention heads: one sequence, one head, one query, one key at a time, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Head:
    """What is said of one head."""

    entropy: float
    relative: float
    sink: float
    key: int
    max_logit: float
    max_product: float
    output: float


def heads_by_loops(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, weight: Tensor | None = None
) -> list[Head]:
    """Heads of q (B, H, T, E), k and v (B, G, S, E), bias (B, H, T, S) with -inf where a key is not allowed.

    ``weight`` (outputs, H·E) is the output projection.
    """
    batch, heads, rows, _ = q.shape
    keys, groups = k.shape[2], heads // k.shape[1]
    found = []
    for h in range(heads):
        entropies, most, largest, product = [], [], -math.inf, -math.inf
        mass = [0.0] * keys
        square = 0.0
        for b in range(batch):
            for t in range(rows):
                allowed = [s for s in range(keys) if bias[b, h, t, s].item() != -math.inf]
                if not allowed:
                    continue
                products = {s: (q[b, h, t] * k[b, h // groups, s]).sum().item() for s in allowed}
                logits = {s: scale * value + bias[b, h, t, s].item() for s, value in products.items()}
                largest, product = max(largest, *logits.values()), max(product, *products.values())
                highest = max(logits.values())
                total = sum(math.exp(value - highest) for value in logits.values())
                attention = {s: math.exp(value - highest) / total for s, value in logits.items()}
                entropies.append(-sum(a * math.log(a) for a in attention.values() if a > 0))
                most.append(math.log(len(allowed)))
                for s, a in attention.items():
                    mass[s] += a
                output = sum(a * v[b, h // groups, s] for s, a in attention.items())
                if weight is not None:
                    width = len(output)
                    output = weight[:, h * width : (h + 1) * width] @ output
                square += output.square().sum().item()
        shares = [one / len(entropies) for one in mass]
        found.append(
            Head(
                entropy=sum(entropies) / len(entropies),
                relative=sum(entropies) / sum(most),
                sink=max(shares),
                key=shares.index(max(shares)),
                max_logit=largest,
                max_product=product,
                output=math.sqrt(square),
            )
        )
    total = sum(head.output for head in found)
    return [Head(**{**vars(head), "output": head.output / total}) for head in found]
