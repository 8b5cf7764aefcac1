"""A few examples with opposing signals swing against each other from step to step, and hold the network at the edge.

Twelve of 600 images of digits get a bright left margin, far brighter than anything in the others; six of them are said
to be zeros and six to be ones. What they share is large and tells nothing of the answer, so their gradients point in
opposite directions. At a high learning rate each step raises the losses of one half and lowers those of the other, and
the next one the reverse: two percent of the images carry almost all that happens to the loss. At lower rates the swings
are gone, and the report has nothing to say.

Rosenfeld and Risteski, arXiv 2311.04163. Takes a few seconds.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from diagnostics import Objective, per_example_losses
from probes import Monitor, OpposingSignals
from reports import Report
from reports.demo.digits import digits
from reports.finding import Finding

COUNT, EACH = 600, 6


def planted() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, labels, and which images of the minority are said to be zeros and ones."""
    images, labels = digits(COUNT)
    chosen = torch.randperm(COUNT)[: 2 * EACH]
    zeros, ones = chosen[:EACH], chosen[EACH:]
    images[chosen[:, None], torch.arange(0, 64, 8)] = 10.0
    labels[zeros], labels[ones] = 0, 1
    return images, labels, zeros, ones


def train(lr: float, folder: Path) -> tuple[list[float], Finding]:
    """How far both groups swing, their correlation, and the share of the change they carry; and the report's finding.

    All over the last 40 of 250 steps of gradient descent.
    """
    torch.manual_seed(0)
    images, labels, zeros, ones = planted()
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    loss = nn.CrossEntropyLoss()
    objective = Objective(model, loss, (images, labels))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    # Two groups of one percent each: the planted ones, if these change most.
    with Monitor(model, optimizer, objective, out=folder, probes=[OpposingSignals()], every=50, budget=None):
        for step in range(250):
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
            if step >= 210:
                losses.append(per_example_losses(objective))
    changes = torch.stack(losses).diff(dim=0)
    both = torch.stack([changes[:, group].mean(1) for group in (zeros, ones)])
    carried = changes[:, torch.cat([zeros, ones])].abs().sum() / changes.abs().sum()
    swings = both.square().mean(1).sqrt()
    numbers = [*swings.tolist(), float(torch.corrcoef(both)[0, 1]), float(carried)]
    (finding,) = Report.from_run(folder, only=["opposing"]).findings
    return numbers, finding


if __name__ == "__main__":
    out = Path(tempfile.mkdtemp())
    print("learning rate   swing of zeros   of ones   correlation   share of the change")
    found = {}
    for lr in (0.4, 0.2, 0.05):
        (zeros, ones, correlation, carried), finding = train(lr, out / str(lr))
        found[lr] = zeros, ones, correlation, carried, finding
        print(f"{lr:13g}   {zeros:14.4f}   {ones:7.4f}   {correlation:11.2f}   {carried:19.0%}")
    for lr, (*_, finding) in found.items():
        print(f"{lr:g}: {finding.level}. {finding.claim}")
    high, low = found[0.4], found[0.05]
    print(high[-1].advice[0])
    print("the page:", Report.from_run(out / "0.4").save(out / "opposing.html"))
    assert high[2] < -0.9, "the losses of the two groups move in opposite directions"
    assert high[3] > 0.8, "two percent of the examples carry almost all of the change"
    assert high[4].level == "warn"
    assert max(low[:2]) < 0.1 * min(high[:2]), "both swings shrink with the learning rate"
    assert low[3] < 0.2
    assert low[4].level == "ok"
