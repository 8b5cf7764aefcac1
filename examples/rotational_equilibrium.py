"""Weight decay sets how far each step turns the weights, and every layer comes to the same angle.

Steps lengthen a weight before a normalisation layer, decay shortens it. Where the two balance AdamW turns it by
√(2ηλ(1−β1)/(1+β1)) per step, whatever the layer, its size or its gradients. It takes about 1/(ηλ) steps to get there,
also from weights that start four times too long. Without decay there is no such balance: the angle goes on shrinking.

Kosson et al., arXiv 2305.17212. Takes about fifteen seconds.
"""

import statistics

import torch
from torch import nn

from diagnostics import equilibrium_rotation, rotation

HIDDEN = "0.weight", "3.weight"


def angles(decay: float, steps: int = 2500, last: int = 300) -> tuple[dict[str, tuple[float, float]], float]:
    """Mean angle per step, early and at the end, for each weight before a LayerNorm; and the one expected."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 64, bias=False),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Linear(64, 32, bias=False),
        nn.LayerNorm(32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    weights = {name: dict(model.named_parameters())[name] for name in HIDDEN}
    with torch.no_grad():
        weights["3.weight"].mul_(4.0)
    optimizer = torch.optim.AdamW(weights.values(), lr=2e-3, weight_decay=decay)
    seen: dict[str, list[float]] = {name: [] for name in HIDDEN}
    for _ in range(steps):
        # Outputs pulled at random: gradients of nothing but noise, which is what the theory is about.
        x, pull = torch.randn(32, 16), torch.randn(32, 10)
        optimizer.zero_grad()
        (model(x) * pull).mean().backward()
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        optimizer.step()
        for name, weight in weights.items():
            seen[name].append(float(rotation(before[name], weight.detach()).whole))
    expected = float(equilibrium_rotation(optimizer)[0].rotation)
    found = {name: (statistics.mean(seen[name][20:120]), statistics.mean(seen[name][-last:])) for name in HIDDEN}
    return found, expected


if __name__ == "__main__":
    found, expected = angles(decay=1.0)
    for name, (early, late) in found.items():
        print(f"{name}: {early:.4f} rad per step at first, {late:.4f} in the end; expected {expected:.4f}")
        assert abs(late / expected - 1) < 0.15
    found, expected = angles(decay=0.0)
    for name, (early, late) in found.items():
        print(f"{name}, no decay: {early:.4f} rad per step at first, {late:.4f} in the end (control: no equilibrium)")
        assert late < early, "norms grow for ever, and steps count for less and less"
    assert expected != expected, "and none is promised"
