"""Runs whose outcome is known: where each optimizer's edge is, and what must stay quiet far from it.

    python -m benchmarks.known_runs

Each line is one training run, measured along the way; ``expected`` is what theory or the papers say. What a tracked
check costs in Hessian-vector products, cold starts of every tenth included, stands beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RMSprop

from diagnostics import Objective, batch_sharpness, gradient_curvature, stability
from reports.demo.digits import digits

COLD_EVERY = 10


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ ‖f − y‖², averaged over examples."""
    return 0.5 * (outputs - targets).square().sum(dim=1).mean()


@dataclass
class Setting:
    """A network, its data, and how it is trained."""

    sizes: tuple[int, ...]
    data: Callable[[], tuple[Tensor, Tensor]]
    optimizer: Callable[[Iterator[nn.Parameter]], Optimizer]
    steps: int
    every: int
    loss: Callable[[Tensor, Tensor], Tensor] = half_square
    activation: type[nn.Module] = nn.Tanh
    bias: bool = True
    batch: int | None = None

    def made(self) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
        """Data, and linear layers with the activation between them, from one seed."""
        torch.manual_seed(0)
        data = self.data()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(self.sizes):
            layers += [nn.Linear(inputs, outputs, bias=self.bias), self.activation()]
        return nn.Sequential(*layers[:-1]), data


@dataclass
class Seen:
    """What a run showed: the ratio at each check, the cost of each but the first, the largest rise of the loss."""

    ratios: list[float]
    products: list[int]
    rise: float
    model: nn.Module
    objective: Objective
    optimizer: Optimizer


def watch(setting: Setting) -> Seen:
    """Train, and measure as the Sharpness probe does."""
    model, (x, y) = setting.made()
    optimizer = setting.optimizer(model.parameters())
    objective = Objective(model, setting.loss, (x, y))
    ratios, products, losses, start = [], [], [], None
    for step in range(1, setting.steps + 1):
        chosen = slice(None) if setting.batch is None else torch.randperm(len(x))[: setting.batch]
        optimizer.zero_grad()
        loss = setting.loss(model(x[chosen]), y[chosen])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % setting.every == 0:
            cold = len(ratios) % COLD_EVERY == 0
            now = stability(objective, optimizer, tol=1e-2, start=None if cold else start, seed=step)
            start = now.restart
            ratios.append(float(now.ratio))
            products.append(now.matvecs)
    rise = max((later / earlier for earlier, later in pairwise(losses)), default=1.0)
    return Seen(ratios, products[1:], rise, model, objective, optimizer)


def gaussian(count: int, inputs: int, outputs: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Gaussian inputs and targets."""
    return lambda: (torch.randn(count, inputs), torch.randn(count, outputs))


def one_hot_digits() -> tuple[Tensor, Tensor]:
    """A thousand digits with one-hot targets."""
    x, y = digits(1000)
    return x, nn.functional.one_hot(y, 10).float()


def report(name: str, expected: str, ratio: float, products: list[int], holds: bool) -> None:
    """One line."""
    cost = f"{statistics.mean(products):5.1f}" if products else "    –"
    print(f"{name:<42} {ratio:8.3f}  {expected:<22} {cost}  {'' if holds else 'DIFFERS'}", flush=True)


def main() -> None:
    """Run them all."""
    print(f"{'run':<42} {'seen':>8}  {'expected':<22} products a check")
    small = gaussian(200, 20, 5)

    seen = watch(Setting((64, 100, 100, 10), one_hot_digits, partial(SGD, lr=0.5), 1500, 25))
    late = statistics.median(seen.ratios[12:])
    report("GD, digits, η .5, from step 300", "1.02 to 1.06", late, seen.products, 0.97 < late < 1.12)

    for lr in (0.3, 0.4, 0.5):
        seen = watch(Setting((20, 48, 48, 5), small, partial(SGD, lr=lr), 1500, 25, bias=False))
        late = statistics.median(seen.ratios[40:])
        report(f"GD, tanh, η {lr}", ".999 to 1.004", late, seen.products, 0.97 < late < 1.05)
    seen = watch(Setting((20, 48, 48, 5), small, partial(SGD, lr=0.02), 1500, 25, bias=False))
    quiet = seen.ratios[-1] < 0.3 and seen.rise <= 1.0
    report("GD, tanh, η .02 (control)", "far below 1, no rise", seen.ratios[-1], seen.products, quiet)

    # Scored before the fit is perfect: then curvature stays wherever it is.
    deep = (20, 48, 48, 48, 5)
    for lr, expected in ((0.1, "1"), (0.01, "below (control)")):
        optimizer = partial(SGD, lr=lr, momentum=0.9)
        seen = watch(Setting(deep, gaussian(400, 20, 5), optimizer, 400, 20, bias=False))
        late = statistics.median(seen.ratios[5:])
        report(
            f"heavy ball, β .9, η {lr}", expected, late, seen.products, 0.9 < late < 1.1 if lr == 0.1 else late < 0.7
        )

    regression = gaussian(64, 10, 1)
    setting = Setting((10, 32, 32, 1), regression, partial(Adam, lr=3e-3), 3000, 50, loss=nn.MSELoss())
    seen = watch(setting)
    late = statistics.median(seen.ratios[27:])
    report("Adam, full batch, η 3e-3 (38/η)", ".91 to 1.01", late, seen.products, 0.88 < late < 1.05)
    for lr in (5e-4, 1e-3, 2e-3):
        optimizer = partial(RMSprop, lr=lr)
        seen = watch(Setting((10, 32, 32, 1), regression, optimizer, 3000, 50, loss=nn.MSELoss()))
        late = statistics.median(seen.ratios[30:])
        report(f"RMSprop, η {lr:g}", ".95 to 1.13", late, seen.products, 0.9 < late < 1.2)

    seen = watch(Setting((20, 48, 48, 5), small, partial(SGD, lr=0.5), 4000, 100, bias=False, batch=16))
    batch = batch_sharpness(seen.objective, 16, optimizer=seen.optimizer)
    assert batch.ratio is not None
    report(
        "SGD, batch 16, η .5: batch sharpness", ".99 to 1.14", float(batch.ratio), [], 0.85 < float(batch.ratio) < 1.3
    )
    late = statistics.median(seen.ratios[20:])
    report("  and λmax of the whole loss", ".64 to .68", late, seen.products, 0.5 < late < 0.8)

    for lr, batch_size, steps, expected in ((0.5, 32, 60, "most of it"), (0.1, None, 400, "none (control)")):
        relu = Setting(
            (64, 64, 64, 10),
            lambda: digits(1000),
            partial(SGD, lr=lr),
            steps,
            steps,
            loss=nn.CrossEntropyLoss(),
            activation=nn.ReLU,
            batch=batch_size,
        )
        share = float(gradient_curvature(watch(relu).objective, k=10, tol=1e-3).subspace_share)
        kind = "full batch" if batch_size is None else f"batch {batch_size}"
        held = share > 0.8 if batch_size else share < 0.01
        report(f"{kind}, η {lr}: gradient in the top-10 space", expected, share, [], held)


if __name__ == "__main__":
    main()
