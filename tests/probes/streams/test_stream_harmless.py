"""Training whose micro-batches are watched leaves the same bits as training alone, in every story there is, and also
with a Monitor at work, whose own gradients are no micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, NoiseTracker, Objective
from probes import Monitor
from probes.streams import accumulation
from probes.streams.microbatches import MicrobatchStream, watch_microbatches
from tests.probes.bits import batches, differences, loader, start, trace
from tests.probes.stories import STEPS, STORIES, cross_entropy, small


# Dynamo imports a deprecated corner of torch when it compiles an optimizer.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("story", [name for name in STORIES if name != "closure"])
def test_training_that_is_watched_is_bit_identical(story: str) -> None:
    tracker, notes = NoiseTracker(), []

    @contextmanager
    def watch(model: nn.Module, optimizer: Any, _: Callable[[], Objective]) -> Iterator[None]:
        with watch_microbatches(model, optimizer, tracker, batch_size=4) as stream:
            yield
        notes.append((stream.off, dict(stream.skipped)))

    assert differences(STORIES[story](watch), STORIES[story](lambda *_: nullcontext())) == []
    if story == "accumulated, clipped, scheduled":
        assert notes == [(None, {})]
        assert tracker.steps == STEPS
    else:
        # One backward pass a step: seen, and of no use.
        steps = STEPS - 2 if story.startswith("joined") else STEPS
        steps += story == "grad scaler, fused"
        assert notes == [(None, {accumulation.SINGLE: steps})]


def test_lbfgs_is_refused() -> None:
    def watch(model: nn.Module, optimizer: Any, _: Callable[[], Objective]) -> MicrobatchStream:
        return watch_microbatches(model, optimizer, NoiseTracker(), batch_size=4)

    with pytest.raises(DiagnosticsError, match="LBFGS"):
        STORIES["closure"](watch)


def test_what_a_monitor_measures_is_no_micro_batch(folder: Path) -> None:
    found = []
    for monitored in (False, True):
        start()
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        objective = Objective(model, cross_entropy, next(iter(loader())))
        tracker = NoiseTracker()
        monitor: Any = nullcontext()
        if monitored:
            monitor = Monitor(model, optimizer, objective, out=folder, every=1, budget=None)
        losses = []
        with monitor, watch_microbatches(model, optimizer, tracker, batch_size=4):
            for index, (x, y) in enumerate(batches(loader(), 8)):
                loss = cross_entropy(model(x), y)
                loss.backward()
                losses.append(loss.item())
                if index % 2:
                    optimizer.step()
                    optimizer.zero_grad()
        assert tracker.steps == 4
        found.append(trace(model, optimizer, losses, noise=tracker.state_dict()["blocks"]))
    assert differences(*found) == []
