"""The NoiseStream probe writes what the tracker knows at each moment, and why there is nothing where there is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, NoiseTracker
from probes import Monitor, NoiseStream, Run, watch_microbatches
from probes.probe import Moment, Reading


def gaussian(steps: int) -> NoiseTracker:
    """|G|² = 3 and tr Σ = 12, from groups of 16 examples."""
    tracker, random = NoiseTracker(), numpy.random.default_rng(0)
    for _ in range(steps):
        ranks = random.normal(1.0, 2.0, (4, 16, 3)).mean(1)
        tracker.update(numpy.square(ranks).sum(1), float(numpy.square(ranks.mean(0)).sum()), small_size=16)
    return tracker


def measured(source: Any) -> dict[str, Reading]:
    moment: Any = Moment(5, nn.Linear(1, 1), None)
    return {reading.name: reading for reading in NoiseStream(source, batch_size=64).measure(moment)}


def test_every_number_is_the_trackers() -> None:
    tracker = gaussian(100)
    got = measured(tracker)
    assert got["simple"].value == tracker.simple
    assert got["gradient_sq"].value == tracker.noise.gradient_sq
    assert got["trace_covariance"].value == tracker.noise.trace_covariance
    assert got["at_least"].value == tracker.noise.at_least > 0
    assert (got["batch_size"].value, got["steps"].value) == (64.0, 100.0)
    assert {reading.status for reading in got.values()} == {"ok"}


def test_undetermined_numbers_are_skipped_with_the_reason() -> None:
    got = measured(NoiseTracker())
    assert [got[name].status for name in ("simple", "gradient_sq", "at_least")] == ["skipped"] * 3
    assert "no step yet" in str(got["simple"].note)


def test_a_run_holds_it_and_says_what_a_stream_could_not_use(folder: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    stream = watch_microbatches(model, optimizer, NoiseTracker(), batch_size=8)
    probe = NoiseStream(stream, batch_size=32)
    with stream, Monitor(model, optimizer, out=folder, probes=[probe], every=10):
        for step in range(40):
            for _ in range(1 if step < 10 else 4):
                model(1 + torch.randn(8, 3)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    run = Run.open(folder)
    assert run.series("noise_stream", "simple").steps.tolist() == [20, 30, 40]
    early = [record for record in run.records if record.step == 10 and record.name == "simple"]
    assert early[0].status == "skipped"
    assert "10 steps not used: one micro-batch" in str(early[0].note)
    assert run.last("noise_stream", "simple").value == stream.tracker.simple.value
    assert run.header["probes"][0]["settings"] == {"batch_size": 32, "decay": 0.99, "source": "MicrobatchStream"}


def test_a_stream_that_is_off_gives_no_number() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    stream = watch_microbatches(model, optimizer, NoiseTracker(), batch_size=lambda: 1 // 0)
    model(torch.randn(8, 3)).mean().backward()
    got = measured(stream)
    assert list(got) == ["simple"]
    assert "switched off: ZeroDivisionError" in str(got["simple"].note)


@pytest.mark.parametrize("given", [{"source": None}, {"source": NoiseTracker(), "batch_size": 0}])
def test_bad_settings_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(DiagnosticsError, match=r"source feeds no tracker|batch_size"):
        NoiseStream(**given)
