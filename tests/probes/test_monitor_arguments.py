"""Bad arguments are told before training starts, by one error that names them, and before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, Objective
from probes import Monitor, Run, Sharpness, Units
from tests.probes.toy import Toy, Watch, cross_entropy


class Nameless:
    every = None

    def measure(self, moment: object) -> list[object]:
        return []


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a model that is none": ({"model": print}, "model is not a module; given: builtin_function_or_method"),
    "an optimizer that is none": ({"optimizer": "sgd"}, "optimizer is not a torch optimizer; given: str"),
    "two optimizers": ({"optimizer": [Toy().optimizer, Toy().optimizer]}, "optimizer is several; given: a list of 2"),
    "a loader for an objective": ({"objective": [(1, 2)]}, "objective is not an Objective; given: list"),
    "an objective of another model": ({"objective": Toy().objective}, "objective was built on another model"),
    "no steps": ({"every": 0}, "every takes a number of steps; given: 0"),
    "steps as text": ({"every": "100"}, "every takes a number of steps; given: '100'"),
    "a negative resume": ({"resume": -1}, "resume is not a step; given: -1"),
    "a flag for resume": ({"resume": True}, "resume is not a step; given: True"),
    "a path for resume": ({"resume": "last.pt"}, "resume is not a step; given: 'last.pt'"),
    "one sink outside a list": ({"sinks": print}, "sinks is not a list of callables"),
    "a sink by name": ({"sinks": ["wandb"]}, "sinks is not a list of callables"),
    "one probe outside a list": ({"probes": Sharpness()}, "probes is not a list; given: Sharpness"),
    "a probe by name": ({"probes": "units"}, "probes is not a list; given: str"),
    "names of probes": ({"probes": ["units"]}, "probes holds something that is not a probe; given: 'units'"),
    "a class for a probe": ({"probes": [Sharpness]}, "probes holds something that is not a probe"),
    "a probe without a name": ({"probes": [Nameless()]}, "probes holds something that is not a probe"),
    "a name with a slash": ({"probes": [Watch(name="a/b")]}, "probes: a name cannot be used; given: 'a/b'"),
    "a name of the monitor's": ({"probes": [Watch(name="loop")]}, "probes: a name cannot be used; given: 'loop'"),
    "a probe twice": (
        {"probes": [Sharpness(every=1), Units(), Sharpness(every=7)]},
        "two have one name, so their records could not be told apart; given: sharpness",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_name_themselves(case: str, toy: Toy, folder: Path) -> None:
    arguments, message = WRONG[case]
    right = {"model": toy.model, "optimizer": toy.optimizer, "objective": toy.objective, "out": folder}
    with pytest.raises(DiagnosticsError) as refusal:
        Monitor(**(right | arguments))
    assert message in str(refusal.value)
    assert "expected: " in str(refusal.value)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sharpness(tol=0.0), "tol is not positive; given: 0.0"),
        (lambda: Sharpness(cold_every=0), "cold_every is too small; given: 0"),
        (lambda: Units(tau=-0.1), "tau is negative; given: -0.1"),
    ],
)
def test_probes_refuse_settings_they_cannot_measure_with(make: Any, message: str) -> None:
    with pytest.raises(DiagnosticsError, match=message):
        make()


def test_a_monitor_without_probes_counts_and_logs(toy: Toy, folder: Path) -> None:
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[]) as monitor:
        toy.train(3)
        monitor.log(loss=1.0)
    run = Run.open(folder)
    assert run.header["probes"] == []
    assert [(record.step, record.probe, record.name) for record in run.records] == [
        (3, "loop", "loss"),
        (3, "monitor", "training_seconds"),
        (3, "monitor", "ended"),
    ]


def test_without_an_objective_probes_say_that_there_is_none(toy: Toy, folder: Path) -> None:
    with Monitor(toy.model, toy.optimizer, out=folder, every=1):
        toy.train(3)
    run = Run.open(folder)
    skipped = [record for record in run.records if record.status == "skipped"]
    assert {record.note for record in skipped} == {"no objective was given"}
    assert [(record.step, record.probe, record.name) for record in skipped] == [
        (0, "sharpness", "measurement"),
        (0, "learning_rate", "effective"),
        (0, "units", "measurement"),
        *((step, "learning_rate", "effective") for step in (1, 2, 3)),
    ]


def test_how_far_each_step_went_is_measured_without_an_objective_too(toy: Toy, folder: Path) -> None:
    with Monitor(toy.model, toy.optimizer, out=folder, every=1):
        toy.train(3)
    run = Run.open(folder)
    assert run.series("learning_rate", "relative_update", "0.weight").steps.tolist() == [1, 2, 3]


def test_a_model_without_parameters_can_be_watched(folder: Path) -> None:
    model, other = nn.ReLU(), nn.Linear(1, 1)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with Monitor(model, optimizer, out=folder, every=1) as monitor:
        optimizer.step()
    assert monitor.step == 1
    assert Run.open(folder).header["model"]["parameters"] == 0


def test_wrappers_are_looked_through(toy: Toy, folder: Path) -> None:
    wrapped = torch.compile(nn.DataParallel(toy.model), backend="eager")
    objective = Objective(wrapped, cross_entropy, (toy.x, toy.y))
    with Monitor(wrapped, toy.optimizer, objective, out=folder, every=1, budget=None):
        toy.step()
    run = Run.open(folder)
    assert run.header["model"]["class"] == "Sequential"
    assert run.layers("learning_rate", "lr") == ["0.weight", "0.bias", "2.weight", "2.bias"]
