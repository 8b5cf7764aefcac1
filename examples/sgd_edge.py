"""SGD leaves a minimum at which descent would stay: the edge of steps on four examples.

A small network fits forty images without error. Steps on all examples would keep it there up to a rate of 2/λ₁, steps
on four up to half of that. At .85 of its own edge SGD comes back from a small push. At 1.15, far below what descent
could take, the push grows, and SGD leaves for a flatter place: one whose own edge is just about its rate.

Dexter et al., arXiv 2401.12332; Mulayoff & Michaeli, arXiv 2306.07850. Takes a few seconds.
"""

import copy

import torch
from torch import nn

from diagnostics import Objective, SgdCoherence, sgd_coherence
from reports.demo.digits import digits

EXAMPLES, BATCH, STEPS = 40, 4, 1500


def fitted(inputs: torch.Tensor, targets: torch.Tensor) -> nn.Sequential:
    """A network that has learned all of them by heart."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, tolerance_grad=1e-15, tolerance_change=0.0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def edge(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> SgdCoherence:
    """Of steps on four examples."""
    return sgd_coherence(Objective(model, nn.MSELoss(), (inputs, targets)), BATCH)


def pushed(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, lr: float) -> tuple[list[float], float]:
    """The losses of SGD from a point close by, and the edge where it ends."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-6 * torch.randn(parameter.shape, generator=generator).double())
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=lr), []
    for step in range(STEPS):
        if step % 50 == 0:
            losses.append(nn.functional.mse_loss(model(inputs), targets).item())
        rows = torch.randperm(EXAMPLES, generator=generator)[:BATCH]
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    return losses, float(edge(model, inputs, targets).edge)


def story() -> tuple[SgdCoherence, dict[float, tuple[list[float], float]]]:
    """The edge, and what SGD does at a share of it."""
    inputs = digits()[0][:EXAMPLES].flatten(1).double()
    targets = torch.randn(EXAMPLES, 3, generator=torch.Generator().manual_seed(1)).double()
    model = fitted(inputs, targets)
    found = edge(model, inputs, targets)
    return found, {share: pushed(model, inputs, targets, share * float(found.edge)) for share in (0.85, 1.15)}


if __name__ == "__main__":
    found, runs = story()
    print(found)
    for share, (losses, end) in runs.items():
        lr = share * float(found.edge)
        print(f"rate {lr:.4f}, {share} of its edge and {lr / float(found.descent):.2f} of that of descent:", end=" ")
        print(f"loss {losses[0]:.1e} to {losses[-1]:.1e}, at most {max(losses):.1e}; edge at the end {end:.4f}")
    assert float(found.edge) < 0.7 * float(found.descent)
    (back, _), (away, end) = runs[0.85], runs[1.15]
    assert back[-1] < 1e-3 * back[0], "below the edge it comes back"
    assert max(away) > 1e4 * away[0], "beyond it the push grows"
    assert 0.93 < 1.15 * float(found.edge) / end < 1.02, "and ends where its rate is at the edge"
