"""Training the demonstration: full-batch gradient descent on the digits, to the edge of stability."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from diagnostics import DiagnosticsError, Objective
from probes import EffectiveLearningRate, Monitor, Sharpness, Spectrum, Units, at
from probes.probe import Probe
from reports.demo import task

STEPS = 1500
EVERY = 25
MARKER = ".made-by-diagnose-demo"


@dataclass(frozen=True)
class Demo:
    """What the demonstration leaves behind."""

    run: Path
    checkpoint: Path
    task: Path


def fresh_folder(folder: Path) -> None:
    """An empty folder for the demonstration; an earlier demonstration makes way, anything else does not."""
    if folder.exists() and not (folder / MARKER).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DiagnosticsError(
            f"{folder} is there already and was not made by the demonstration",
            expected="a folder that does not exist yet",
            attempt="diagnose demo -o another-folder",
        )
    if (folder / MARKER).exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def train(folder: Path, advance: Callable[[int], None] = lambda step: None) -> Demo:
    """Train with probes, and save the run, a checkpoint and its task file.

    Args:
        folder: an empty folder.
        advance: told the step, after each.
    """
    torch.manual_seed(0)
    model = task.network()
    images, targets = task.data()
    optimizer = torch.optim.SGD(model.parameters(), lr=task.LEARNING_RATE)
    objective = Objective(model, task.loss, (images, targets))

    # Whole spectra cost more than all the rest: at the start, on the way to the edge, and at the end.
    probes: list[Probe] = [Sharpness(), EffectiveLearningRate(), Units(), Spectrum(every=at(0, 200, STEPS))]
    with Monitor(model, optimizer, objective, out=folder / "run", probes=probes, every=EVERY, budget=None) as monitor:
        for step in range(1, STEPS + 1):
            optimizer.zero_grad()
            loss = task.loss(model(images), targets)
            loss.backward()
            optimizer.step()
            if step % EVERY == 0:
                monitor.log(loss=loss.item())
            advance(step)

    demo = Demo(folder / "run", folder / "checkpoint.pt", folder / "task.py")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": STEPS}
    torch.save(state, demo.checkpoint)
    shutil.copyfile(task.__file__, demo.task)
    return demo
