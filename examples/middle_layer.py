"""The tangent kernel turns towards the classes, and most of all in a middle layer.

Every layer makes a part of the kernel. At the start of a network on the digits the part of the first layer fits the
classes best: it sees the images themselves, and what random layers make of them afterwards only blurs it. With
training the parts of the layers behind it rise, and a hidden layer in the middle overtakes: features before it are too
raw for the classes, and behind it only the answers are read off. Trained lazily, with outputs times a hundred, the
network learns too, more slowly, and with the kernel it began with.

Lou et al., arXiv 2110.11749; Baratin et al., arXiv 2008.00938. Takes some seconds.
"""

import copy
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from diagnostics import Objective
from probes import Monitor, Run, TangentKernel
from reports.demo.digits import digits

STEPS = 400
LAYERS = ("0", "2", "4", "6")


class Scaled(nn.Module):
    """α (h − h₀): at a large α classes are told apart before the features have moved."""

    def __init__(self, network: nn.Module, alpha: float) -> None:
        super().__init__()
        self.network, self.alpha = network, alpha
        self.start = copy.deepcopy(network).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """α (h(x) − h₀(x))."""
        outputs: Tensor = self.alpha * (self.network(x) - self.start(x))
        return outputs


def train(alpha: float, folder: Path) -> tuple[list[float], list[float], float]:
    """Alignment of the part of each layer, at the start and at the end; and the accuracy that was reached."""
    torch.manual_seed(0)
    images, labels = digits(400)
    hidden = [part for inputs in (64, 48, 48) for part in (nn.Linear(inputs, 48), nn.ReLU())]
    model, loss = Scaled(nn.Sequential(*hidden, nn.Linear(48, 10)), alpha), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.network.parameters(), lr=0.2 / alpha**2)
    objective = Objective(model, loss, (images, labels))
    probes = [TangentKernel(examples=64)]
    with Monitor(model, optimizer, objective, out=folder, probes=probes, every=STEPS, budget=None):
        for _ in range(STEPS):
            batch = torch.randint(len(images), (32,))
            optimizer.zero_grad()
            loss(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    run = Run.open(folder)
    series = [run.series("tangent_kernel", "alignment", f"network.{layer}").values for layer in LAYERS]
    accuracy = float((model(images).argmax(1) == labels).double().mean())
    return [float(values[0]) for values in series], [float(values[-1]) for values in series], accuracy


if __name__ == "__main__":
    print("alignment with the classes, by layer:", "   ".join(LAYERS))
    with tempfile.TemporaryDirectory() as out:
        start, rich, accuracy = train(1.0, Path(out) / "rich")
        _, lazy, lazily = train(100.0, Path(out) / "lazy")
    for name, values in (("start", start), ("trained", rich), ("trained lazily", lazy)):
        print(f"{name:>37}", " ".join(f"{value:.2f}" for value in values))
    print(f"accuracy: trained {accuracy:.0%}, trained lazily {lazily:.0%}")
    assert max(start) == start[0], "at the start the first layer is aligned best"
    assert max(rich) in rich[1:3], "after training a middle one is"
    assert max(end - begin for begin, end in zip(start, rich, strict=True)) > 0.1
    assert min(accuracy, lazily) > 0.7, "both learn"
    assert max(abs(end - begin) for begin, end in zip(start, lazy, strict=True)) < 0.03, "control: nothing moves"
