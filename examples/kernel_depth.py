"""How much the tangent kernel depends on the draw of the weights: Gaussian weights against orthogonal ones.

Theory of wide networks speaks of the mean kernel. With Gaussian weights a single deep network has a kernel of its own:
the relative variance over draws grows with depth over width, and with 80 layers of width 30 it is larger than one. With
orthogonal weights the same networks have nearly the same kernel at every depth.

So large a variance is carried by a few kernels, and sixteen draws hold few of them: at depth 80 they say anything from
2 to 15, and most often less than the 9.7 of 48,000 draws. That of 24 layers is 1.4, that of 8 layers .3.

Hanin and Nica, arXiv 1909.05989; Day et al., arXiv 2310.07765. Takes some twenty seconds.
"""

import torch
from torch import nn

from diagnostics import Estimate, Objective, kernel_variation, ntk

WIDTH, DRAWS = 30, 16
DEPTHS = (2, 8, 80)


def network(depth: int, orthogonal: bool, seed: int) -> nn.Sequential:
    """Linear layers with tanh between them, at the critical scale σ_w = 1, and one output."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for layer in range(depth):
        linear = nn.Linear(WIDTH, WIDTH if layer < depth - 1 else 1, bias=False)
        if orthogonal:
            nn.init.orthogonal_(linear.weight)
        else:
            nn.init.normal_(linear.weight, std=WIDTH**-0.5)
        parts += [linear, nn.Tanh()]
    return nn.Sequential(*parts[:-1])


def variation(depth: int, orthogonal: bool) -> Estimate:
    """Over draws, of the kernel of three inputs."""
    inputs = 0.5 * torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    batch = inputs, torch.zeros(3, 1)
    networks = (network(depth, orthogonal, seed) for seed in range(DRAWS))
    return kernel_variation(ntk(Objective(model, nn.MSELoss(), batch), outputs="sum") for model in networks)


if __name__ == "__main__":
    found = {(depth, kind): variation(depth, kind) for depth in DEPTHS for kind in (False, True)}
    print("depth   relative variance over draws: Gaussian     orthogonal")
    for depth in DEPTHS:
        print(f"{depth:5}   {found[depth, False]!s:>39}   {found[depth, True]!s:>12}")
    assert float(found[2, False]) < 0.1
    assert float(found[8, False]) > 3 * float(found[2, False]), "Gaussian weights: it grows with depth"
    assert float(found[80, False]) > 1 > 2 * float(found[8, False])
    assert all(float(found[depth, True]) < 0.013 for depth in DEPTHS), "orthogonal weights: it does not"
