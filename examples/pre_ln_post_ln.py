"""Where the layer norm stands decides how large gradients begin: Post-LN needs warm-up, Pre-LN does not.

With the norm after each residual sum (Post-LN) the gradient in the last block is as large in a deep network as in a
shallow one. With the norm before each sublayer (Pre-LN) the residual stream grows with depth L, the last norm divides
by it, and the gradient falls as 1/√L: a deeper network begins with smaller steps at the top.

Xiong et al., arXiv 2002.04745. Takes about eight seconds.
"""

import math
import statistics

import torch
from torch import Tensor, nn

from diagnostics import Objective, signal_propagation

WIDTH, TOKENS, CLASSES = 32, 4, 10
DEPTHS, STARTS = (4, 8, 16, 32), 4


class Classifier(nn.Module):
    """A transformer encoder of some depth; Pre-LN has one more norm in the end, as is usual."""

    def __init__(self, depth: int, pre: bool) -> None:
        super().__init__()
        layers = [
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=pre)
            for _ in range(depth)
        ]
        self.blocks = nn.ModuleList(layers)
        self.last = nn.LayerNorm(WIDTH) if pre else nn.Identity()
        self.head = nn.Linear(WIDTH, CLASSES)
        for tensor in self.parameters():
            if tensor.ndim == 2:
                nn.init.xavier_uniform_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T, d) to logits (N, C)."""
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.last(x).mean(1))
        return logits


def last_gradient(depth: int, pre: bool) -> float:
    """The norm of the loss's gradient in the last block at the start, averaged over a few starts."""
    found = []
    for seed in range(STARTS):
        torch.manual_seed(seed)
        model = Classifier(depth, pre)
        x, y = torch.randn(16, TOKENS, WIDTH), torch.randint(CLASSES, (16,))
        signals = signal_propagation(model, Objective(model, nn.CrossEntropyLoss(), (x, y)))
        assert len(signals.rows) == depth
        found.append(signals.rows[-1].weight_gradient.value)
    return statistics.mean(found)


def log_slope(values: list[float]) -> float:
    """Of the logarithm of values against that of depth, by least squares."""
    x = torch.tensor([math.log(depth) for depth in DEPTHS])
    y = torch.tensor([math.log(value) for value in values])
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


if __name__ == "__main__":
    slopes = {}
    for name, pre in (("Pre-LN", True), ("Post-LN", False)):
        gradients = [last_gradient(depth, pre) for depth in DEPTHS]
        slopes[name] = log_slope(gradients)
        course = ", ".join(f"{value:.2f}" for value in gradients)
        print(f"{name}: gradient in the last block {course} at depths {DEPTHS}: depth to the {slopes[name]:+.2f}")
    assert -0.6 < slopes["Pre-LN"] < -0.25, "theory says -1/2, for deep networks"
    assert -0.1 < slopes["Post-LN"] < 0.4, "theory says that it does not fall"
