"""Attention alone makes all tokens one; residual connections keep them apart.

Every layer of self-attention replaces a token by an average over tokens. Stacked without residual connections, the
tokens of a sequence run together faster with every layer, until each position holds the same vector. Inside residual
connections the same attention does no such thing, with an MLP beside it or without.

Dong, Cordonnier and Loukas, arXiv 2103.03404. Takes about five seconds.
"""

import torch
from torch import Tensor, nn

from diagnostics import signal_propagation, token_similarity

DEPTH, WIDTH, TOKENS = 12, 64, 32


class Block(nn.Module):
    """Multi-head attention; with a residual connection and an MLP where these are asked for."""

    def __init__(self, residual: bool, mlp: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, bias=False, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)) if mlp else None
        self.norm = nn.LayerNorm(WIDTH)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T, d) in and out."""
        y = self.norm(x)
        attended: Tensor = self.attention(y, y, y, need_weights=False)[0]
        x = x + attended if self.residual else attended
        return x if self.mlp is None else x + self.mlp(self.norm(x))


def deep(residual: bool, mlp: bool) -> nn.Module:
    """A stack of them, as it begins."""
    torch.manual_seed(0)
    return nn.Sequential(*[Block(residual, mlp) for _ in range(DEPTH)])


if __name__ == "__main__":
    sequences = torch.randn(16, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    ends = {}
    for name, residual, mlp in (
        ("attention alone", False, False),
        ("with residual connections", True, False),
        ("with residual connections and MLPs", True, True),
    ):
        rows = token_similarity(deep(residual, mlp), sequences).rows
        ends[name] = rows[-1]
        course = ", ".join(f"{row.residual:.2g}" for row in rows[::4])
        print(f"{name}: share of a sequence that is not its mean token, after blocks 1, 5 and 9: {course}")
        print(f"    cosine between tokens after {DEPTH} blocks: {rows[-1].similarity}")
    assert ends["attention alone"].similarity.value > 0.999
    assert ends["attention alone"].residual.value < 1e-3
    for name in list(ends)[1:]:
        assert ends[name].similarity.value < 0.5, "residual connections keep tokens apart"

    whole = signal_propagation(deep(True, True), sequences)
    print(f"gradients of the whole one: {whole.growth} from the last block to the first")
    assert whole.verdicts == ("shaped",)
