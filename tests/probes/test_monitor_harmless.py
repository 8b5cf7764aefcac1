"""The central promise: training with probes leaves the same bits as training without.

A comparison that finds nothing proves something only if it would have found something: so probes that do leave traces
are compared too, and each must be caught.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from diagnostics import Objective
from probes import Monitor, Run
from probes.probe import Moment
from tests.probes.bits import Trace, differences
from tests.probes.stories import STEPS, STORIES
from tests.probes.toy import Watch

_UNWATCHED: dict[str, Trace] = {}


def _alone(story: str) -> Trace:
    if story not in _UNWATCHED:
        _UNWATCHED[story] = STORIES[story](lambda *_: nullcontext())
    return _UNWATCHED[story]


# Dynamo imports a deprecated corner of torch when it compiles an optimizer.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("story", STORIES)
def test_training_with_all_default_probes_is_bit_identical(story: str, every: int, folder: Path) -> None:
    def watch(model: nn.Module, optimizer: Any, make_objective: Callable[[], Objective]) -> Monitor:
        return Monitor(model, optimizer, make_objective(), out=folder, every=every, budget=None)

    assert differences(STORIES[story](watch), _alone(story)) == []
    _require_that_it_measured(Run.open(folder), story, every)


def _require_that_it_measured(run: Run, story: str, every: int) -> None:
    """A probe that failed, or never ran, would be harmless as well."""
    assert [record.note for record in run.records if record.status == "failed"] == []
    first, last = 0, STEPS - 2 if story.startswith("joined") else STEPS
    due = sorted({first, *range(0, last + 1, every), last})
    assert run.series("sharpness", "sharpness").steps.tolist() == due
    assert len(run.layers("units", "dormant")) > 0
    updates = run.layers("learning_rate", "relative_update")
    assert run.series("learning_rate", "relative_update", updates[0]).steps.tolist() == list(
        range(every, last + 1, every)
    )


def _step_in_place(moment: Moment) -> None:
    with torch.no_grad():
        next(moment.model.parameters()).add_(1e-7)


def _write_a_gradient(moment: Moment) -> None:
    tensor = next(moment.model.parameters())
    tensor.grad = torch.zeros_like(tensor)


def _forward_on_the_live_model(moment: Moment) -> None:
    with torch.no_grad():
        moment.model(torch.zeros(4, 3))


def _touch_the_optimizer(moment: Moment) -> None:
    for state in moment.optimizer.state.values():
        state["momentum_buffer"].mul_(1.0000001)


LEAKS: dict[str, tuple[Callable[[Moment], Any], str, str]] = {
    "draws from torch": (lambda moment: torch.rand(1), "SGD, batch norm, dropout, shuffled loader", "torch random"),
    "draws from python": (lambda moment: random.random(), "Adam", "python random"),
    "draws from numpy": (lambda moment: numpy.random.rand(), "Adam", "numpy random"),
    "flips the mode": (lambda moment: moment.model.train(), "frozen, tied, half in eval mode", "flags"),
    "moves a buffer": (_forward_on_the_live_model, "Adam", "weights and buffers"),
    "moves a weight": (_step_in_place, "Adam", "weights and buffers"),
    "moves the optimizer": (_touch_the_optimizer, "train mode objective", "optimizer"),
    "writes a gradient": (_write_a_gradient, "frozen, tied, half in eval mode", "gradients"),
    "unfreezes": (lambda moment: moment.model.requires_grad_(True), "frozen, tied, half in eval mode", "requires_grad"),
    "leaves a hook": (
        lambda moment: moment.model.register_forward_hook(lambda *_: None),
        "SGD, batch norm, dropout, shuffled loader",
        "flags",
    ),
    "fires backward hooks": (
        lambda moment: moment.model(torch.zeros(4, 3)).sum().backward(),
        "hooked",
        "calls",
    ),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_the_comparison_catches_a_probe_that(leak: str, folder: Path) -> None:
    does, story, where = LEAKS[leak]

    def watch(model: nn.Module, optimizer: Any, make_objective: Callable[[], Objective]) -> Monitor:
        def leaking(moment: Moment) -> float:
            does(moment)
            return 0.0

        return Monitor(model, optimizer, make_objective(), out=folder, probes=[Watch(leaking, every=3)], budget=None)

    assert where in differences(STORIES[story](watch), _alone(story))


def test_a_forward_hook_of_the_users_is_part_of_the_function_that_is_measured(folder: Path) -> None:
    """Pruning and old-style weight norm live in such hooks: leaving them out would measure another model."""
    model = nn.Linear(3, 2)
    data = torch.randn(8, 3), torch.randint(2, (8,))
    model.register_forward_hook(lambda module, inputs, output: 3.0 * output)
    live = nn.functional.cross_entropy(model(data[0]), data[1]).item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, optimizer, Objective(model, nn.CrossEntropyLoss(), data), out=folder):
        pass
    assert Run.open(folder).last("sharpness", "loss").value == pytest.approx(live, rel=1e-6)
