"""Lazy against rich by the scale of the outputs: the larger they are, the less a network has to move.

The same network learns the same digits three times, as f = α (h − h₀) with the learning rate divided by α². At α = 30
outputs reach their targets before the features have moved: all that happens is what the tangents of the start predict,
and the kernel at the end is the one it began with, closer the larger α is. At α = 0.2 the network has to grow. Features
change, the first-order prediction is worth nothing, and the kernel has turned towards the classes. A first layer
of low rank does the same in a small way: the fewer directions it starts with, the further the kernel has to go.

Chizat et al., arXiv 1812.07956; Liu et al., arXiv 2310.08513 (low-rank starts). Takes some seconds.
"""

import copy
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from diagnostics import Objective
from probes import Monitor, Run, TangentKernel
from reports import Report
from reports.demo.digits import digits
from reports.finding import Finding

STEPS = 200


class Scaled(nn.Module):
    """α (h − h₀)."""

    def __init__(self, network: nn.Module, alpha: float) -> None:
        super().__init__()
        self.network, self.alpha = network, alpha
        self.start = copy.deepcopy(network).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """α (h(x) − h₀(x))."""
        outputs: Tensor = self.alpha * (self.network(x) - self.start(x))
        return outputs


def network(rank: int) -> nn.Sequential:
    """Two hidden layers of 64; the matrix between them has a rank, and a norm that is the same for all ranks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    with torch.no_grad():
        weight = model[2].weight
        u, s, v = torch.linalg.svd(weight)
        low = u[:, :rank] * s[:rank] @ v[:rank]
        weight.copy_(low * weight.norm() / low.norm())
    return model


def train(alpha: float, rank: int, folder: Path) -> tuple[dict[str, float], Finding]:
    """The three numbers of the gauge at the end, and what the report says of them."""
    images, labels = digits(200)
    wanted = nn.functional.one_hot(labels, 10).float()
    model, loss = Scaled(network(rank), alpha), nn.MSELoss()
    optimizer = torch.optim.SGD(model.network.parameters(), lr=0.5 / alpha**2)
    objective = Objective(model, loss, (images, wanted))
    probes = [TangentKernel(examples=32)]
    with Monitor(model, optimizer, objective, out=folder, probes=probes, every=STEPS, budget=None):
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(model(images), wanted).backward()
            optimizer.step()
    run = Run.open(folder)
    names = ("distance", "linearisation", "moved", "alignment")
    numbers = {name: float(run.series("tangent_kernel", name).values[-1]) for name in names}
    findings = Report.from_run(folder, only=["tangent_kernel"]).findings
    return numbers, next(finding for finding in findings if finding.id == "tangent_kernel/regime")


if __name__ == "__main__":
    seen, said, ranks = {}, {}, {}
    out = Path(tempfile.mkdtemp())
    for alpha in (0.2, 10.0, 30.0):
        seen[alpha], said[alpha] = train(alpha, 64, out / f"scale-{alpha:g}")
        line = "   ".join(f"{name} {value:7.2g}" for name, value in seen[alpha].items())
        print(f"outputs × {alpha:<4g}  {line}")
    for rank in (2, 8, 64):
        ranks[rank] = train(1.0, rank, out / f"rank-{rank}")[0]["distance"]
        print(f"hidden rank {rank:<2}   distance {ranks[rank]:7.2g}")
    for alpha in (0.2, 30.0):
        print(f"outputs × {alpha:g}: {said[alpha].claim} {said[alpha].meaning}")
    print("the page of the rich one:", Report.from_run(out / "scale-0.2").save(out / "rich.html"))
    assert "is rich" in said[0.2].claim
    assert "is lazy" in said[30.0].claim
    assert 5 < seen[10.0]["distance"] / seen[30.0]["distance"] < 13, "the kernel moves by 1/α, distances by 1/α²"
    assert 2 < seen[10.0]["linearisation"] / seen[30.0]["linearisation"] < 4
    assert seen[0.2]["alignment"] > seen[30.0]["alignment"] + 0.03, "only features that change turn to the classes"
    assert ranks[2] > ranks[8] > ranks[64]
