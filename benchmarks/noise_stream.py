"""What the streamed noise scale costs: the tracker's own update, and the whole feed, against a training step and
against ``clip_grad_norm_`` on the same gradients.

Process CPU time of one thread. Steps with and without a stream take turns, and the feed is the median difference of
neighbours: on a busy machine single steps differ by more than what is measured.
"""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable

import numpy
import torch
from torch import Tensor, nn

from diagnostics import NoiseTracker
from probes import watch_microbatches

TURNS = 60
MICRO = 4
UPDATES = 200

Loss = Callable[[], Tensor]


class Transformer(nn.Module):
    """Two layers of width 128 over 64 tokens: some 430k parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 256, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token."""
        return self.head(self.layers(self.embedding(tokens)))  # type: ignore[no-any-return]


def mlp() -> tuple[nn.Module, int, Loss]:
    """784-512-512-10, some 670k parameters, batches of 128 in all."""
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    inputs, labels = torch.randn(128 // MICRO, 784), torch.randint(10, (128 // MICRO,))
    return model, 128 // MICRO, lambda: nn.functional.cross_entropy(model(inputs), labels)


def transformer() -> tuple[nn.Module, int, Loss]:
    """Batches of 32 sequences in all."""
    model = Transformer()
    tokens = torch.randint(256, (32 // MICRO, 64))
    return model, 32 // MICRO, lambda: nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


def seconds(action: Callable[[], object]) -> float:
    """CPU time of this process."""
    began = time.process_time()
    action()
    return time.process_time() - began


def update() -> float:
    """Seconds of one update of a tracker whose blocks are full."""
    tracker, parts, sizes = NoiseTracker(), numpy.linspace(4.0, 6.0, MICRO), numpy.full(MICRO, 32.0)

    def updates() -> None:
        for _ in range(UPDATES):
            tracker.update(parts, 3.0, sizes)

    updates()
    return statistics.median(seconds(updates) / UPDATES for _ in range(10))


def compare(name: str, build: Callable[[], tuple[nn.Module, int, Loss]]) -> None:
    """Print the shares of one model."""
    torch.manual_seed(0)
    model, size, loss = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(MICRO):
            (loss() / MICRO).backward()
        optimizer.step()

    times: dict[str, list[float]] = {"bare": [], "watched": [], "clip": []}
    step()
    for _ in range(TURNS):
        times["bare"].append(seconds(step))
        with watch_microbatches(model, optimizer, NoiseTracker(), batch_size=size):
            # The first step cannot know yet which micro-batch is the last.
            step()
            times["watched"].append(seconds(step))
        parameters = list(model.parameters())
        times["clip"].append(seconds(lambda held=parameters: nn.utils.clip_grad_norm_(held, 1e9)))
    middle = {key: statistics.median(values) for key, values in times.items()}
    feed = statistics.median(map(operator.sub, times["watched"], times["bare"]))
    print(
        f"{name:<34} step {1e3 * middle['bare']:6.1f} ms   tracker {update() / middle['bare']:6.2%}   "
        f"feed {feed / middle['bare']:6.1%}   feed / clip_grad_norm_ {feed / middle['clip']:5.1f}"
    )


def main() -> None:
    """Print both models."""
    torch.set_num_threads(1)
    count = f"{MICRO} micro-batches, so {MICRO + 1} passes over the gradients"
    print(f"streamed gradient noise, share of a training step, CPU time of one thread; {count}")
    for name, build in (("MLP of 670k parameters, batch 128", mlp), ("small transformer, 32 x 64 tokens", transformer)):
        compare(name, build)
    print()


if __name__ == "__main__":
    main()
