"""What monitoring costs: a step with a Monitor on which nothing is due, and a run within its budget, against bare
training.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diagnostics import Objective
from probes import Monitor, at
from reports.demo.digits import digits

STEPS = 600
REPEATS = 5


def seconds(monitored: bool) -> float:
    """Wall time of some hundred Adam steps on the digits, the first and last measurement left out."""
    torch.manual_seed(0)
    images, labels = digits(1000)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters())
    context: AbstractContextManager[Any] = nullcontext()
    if monitored:
        objective = Objective(model, nn.CrossEntropyLoss(), (images, labels))
        context = Monitor(model, optimizer, objective, out=Path(tempfile.mkdtemp()) / "run", every=at(0))
    with context:
        began = time.perf_counter()
        for _ in range(STEPS):
            batch = torch.randint(len(images), (128,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        return time.perf_counter() - began


def main() -> None:
    """Print the cost of a step on which nothing is due, as a ratio."""
    torch.set_num_threads(1)
    pairs = [(seconds(True), seconds(False)) for _ in range(REPEATS)]
    ratio = statistics.median(monitored / bare for monitored, bare in pairs)
    print(f"step with a Monitor on which nothing is due / bare step: {ratio:.3f} (median of {REPEATS} pairs)")
