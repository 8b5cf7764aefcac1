"""What a step did to each matrix, beside ``diagnostics``; and what is kept of the start."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from diagnostics import Objective, equilibrium_rotation, rotation, update_statistics
from probes import EffectiveLearningRate, Monitor, Run
from probes.learning_rate import OF_MATRICES
from probes.probe import Moment, Reading
from tests.probes.toy import Toy
from tests.reference.rotation_walk import Lion

OF_A_STEP = (
    "rotation",
    "update_norm_ratio",
    "operator_norm_ratio",
    "update_stable_rank",
    "drift_stable_rank",
    "distance",
    "trust_ratio",
)


def _watched(toy: Toy, folder: Path) -> Monitor:
    return Monitor(
        toy.model, toy.optimizer, toy.objective, out=folder, probes=[EffectiveLearningRate()], every=1, budget=None
    )


def test_every_number_of_a_step_is_that_of_a_direct_call(folder: Path) -> None:
    toy = Toy(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    initial = toy.model[0].weight.detach().clone()
    with _watched(toy, folder):
        toy.train(2)
        before = toy.model[0].weight.detach().clone()
        toy.step()
    after, run = toy.model[0].weight.detach(), Run.open(folder)
    step = update_statistics(before, after, initial=initial, lr=0.01)
    expected = {name: getattr(step, name) for name in OF_A_STEP if name != "rotation"}
    expected["rotation"] = rotation(before, after).rows
    for name, value in expected.items():
        record = run.last("learning_rate", name, "0.weight")
        assert record is not None
        assert (record.step, record.value, record.error) == (3, value.value, value.error), name
    (settled,) = equilibrium_rotation(toy.optimizer)
    predicted = run.last("learning_rate", "rotation_predicted", "0.weight")
    assert predicted is not None
    assert predicted.value == settled.rotation.value
    assert predicted.note == "√(2ηλ(1−β1)/(1+β1)), for scale-invariant weights"
    assert run.last("learning_rate", "timescale", "2.weight").value == pytest.approx(1000)
    assert run.last("learning_rate", "distance", "0.weight").note.startswith("since step 0; ")
    for name in (*OF_A_STEP, "rotation_predicted", "timescale", *OF_MATRICES):
        assert set(run.layers("learning_rate", name)) <= {"0.weight", "2.weight"}, "matrices only"


def test_the_rotation_of_an_invariant_weight_settles_at_the_prediction(folder: Path) -> None:
    """Every row of a weight before BatchNorm, trained by noise: labels are drawn anew at each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30, bias=False), nn.BatchNorm1d(30), nn.Tanh(), nn.Linear(30, 4))
    x = torch.randn(64, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=2e-3)
    objective = Objective(model, nn.CrossEntropyLoss(), (x, torch.randint(4, (64,))), mode="train")
    with Monitor(
        model, optimizer, objective, out=folder, probes=[EffectiveLearningRate(every=20)], every=20, budget=None
    ):
        for _ in range(800):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.randn(64, 40)), torch.randint(4, (64,))).backward()
            optimizer.step()
    run = Run.open(folder)
    measured = run.series("learning_rate", "rotation", "0.weight").values[-20:].mean()
    predicted = run.last("learning_rate", "rotation_predicted", "0.weight")
    assert predicted is not None
    assert predicted.value == pytest.approx(math.sqrt(2 * 0.5 * 2e-3 / 1.9))
    assert measured == pytest.approx(predicted.value, rel=0.15)
    rows = run.last("learning_rate", "invariant_rows", "0.weight")
    assert rows is not None
    assert rows.value >= 0.9, "decay has left some rows so short that the ε of BatchNorm shows"
    assert run.last("learning_rate", "invariant_rows", "3.weight").value == 0.0
    assert run.layers("learning_rate", "row_effective") == ["0.weight"]


def _readings(
    probe: EffectiveLearningRate, toy: Toy, step: int, **given: object
) -> dict[tuple[str, str | None], Reading]:
    moment = Moment(step, toy.model, toy.optimizer, toy.objective, **given)
    return {(reading.name, reading.layer): reading for reading in probe.measure(moment)}


def test_what_is_not_defined_leaves_no_record(folder: Path) -> None:
    """Plain SGD without decay has no prediction, no timescale and no moments; step 0 has no step."""
    toy = Toy()
    with _watched(toy, folder):
        toy.step()
    run = Run.open(folder)
    first = {record.name for record in run.records if record.step == 0 and record.probe == "learning_rate"}
    sizes = {"weight_norm", "weight_magnitude", "gradient_norm"}
    assert first == {"lr", "coordinate_rate", *sizes, "alignment", "invariant_rows"}
    names = {record.name for record in run.records if record.probe == "learning_rate"}
    assert names == first | {"relative_update", *OF_A_STEP}
    assert all(record.status == "ok" for record in run.records if record.probe == "learning_rate")


def test_without_the_start_there_is_no_distance_and_no_copy(folder: Path) -> None:
    toy, probe = Toy(), EffectiveLearningRate(memory=0)
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[probe], every=1, budget=None):
        toy.step()
    run = Run.open(folder)
    assert run.layers("learning_rate", "rotation") == ["0.weight", "2.weight"]
    assert run.layers("learning_rate", "distance") == []
    assert probe._start == {}
    assert run.header["probes"][0]["settings"] == {"memory": 0}


def test_the_start_of_a_resumed_run_is_where_it_was_resumed(folder: Path) -> None:
    toy = Toy()
    with _watched(toy, folder):
        toy.train(2)
    begun = toy.model[0].weight.detach().clone()
    with Monitor(
        toy.model, toy.optimizer, toy.objective, out=folder, probes=[EffectiveLearningRate()], every=1, resume=2
    ):
        toy.train(2)
    record = Run.open(folder).last("learning_rate", "distance", "0.weight")
    assert record is not None
    assert record.step == 4
    assert record.note.startswith("since step 2; ")
    expected = float((toy.model[0].weight.detach() - begun).norm() / begun.norm())
    assert record.value == pytest.approx(expected, rel=1e-5)


def test_a_probe_used_for_a_second_run_starts_anew(folder: Path) -> None:
    toy, probe = Toy(), EffectiveLearningRate()
    for name in ("a", "b"):
        with Monitor(toy.model, toy.optimizer, toy.objective, out=folder / name, probes=[probe], every=1, budget=None):
            begun = toy.model[0].weight.detach().clone()
            toy.train(2)
        expected = float((toy.model[0].weight.detach() - begun).norm() / begun.norm())
        record = Run.open(folder / name).last("learning_rate", "distance", "0.weight")
        assert record is not None
        assert record.value == pytest.approx(expected, rel=1e-5)


def test_copies_of_the_start_are_of_matrices_and_take_their_memory_once() -> None:
    toy, probe = Toy(), EffectiveLearningRate()
    for step in range(3):
        _readings(probe, toy, step)
    assert {name: start.step for name, start in probe._start.items()} == {"0.weight": 0, "2.weight": 0}
    held = sum(start.values.untyped_storage().nbytes() for start in probe._start.values())
    assert held == 4 * (12 + 8)


def test_an_optimizer_without_a_rule_has_its_steps_measured_and_the_reason_given_once(folder: Path) -> None:
    toy = Toy(Lion, lr=0.01, weight_decay=0.1)
    with _watched(toy, folder):
        toy.train(2)
    run = Run.open(folder)
    assert set(run.layers("learning_rate", "rotation")) == {"0.weight", "2.weight"}
    assert run.last("learning_rate", "rotation_predicted", "0.weight") is not None, "Lion's is known all the same"
    assert run.last("learning_rate", "weight_norm", "0.weight") is not None
    assert run.layers("learning_rate", "coordinate_rate") == []
    skipped = [record for record in run.records if record.status == "skipped"]
    assert [(record.step, record.name) for record in skipped] == [(step, "effective") for step in (0, 1, 2)]
    assert "Lion" in skipped[0].note


def test_a_checkpoint_alone_has_no_step_and_no_distance(toy: Toy) -> None:
    """One state: what needs two is left out, not zero."""
    found = _readings(EffectiveLearningRate(), toy, 7)
    assert not {name for name, _ in found} & set(OF_A_STEP)
    assert ("weight_norm", "0.weight") in found


def test_matrices_in_half_precision_and_on_zero_weights_are_measured_as_far_as_defined(folder: Path) -> None:
    toy = Toy()
    nn.init.zeros_(toy.model[2].weight)
    toy.model.bfloat16()
    toy.x = toy.x.bfloat16()
    with Monitor(toy.model, toy.optimizer, None, out=folder, probes=[EffectiveLearningRate()], every=1, budget=None):
        toy.train(2)
    run = Run.open(folder)
    assert run.series("learning_rate", "rotation", "0.weight").steps.tolist() == [1, 2]
    assert run.series("learning_rate", "rotation", "2.weight").steps.tolist() == [2], "zero before the first step"
    assert run.last("learning_rate", "distance", "2.weight") is None, "nothing to measure a distance in"
    assert not [record for record in run.records if record.status == "failed"]


def test_complex_and_empty_parameters_leave_everything_else_measured(folder: Path) -> None:
    """A complex one has a relative update, of its real numbers, and neither angle nor norms."""
    toy = Toy(weight_decay=0.1)
    toy.model.register_parameter("phase", nn.Parameter(torch.ones(2, 2, dtype=torch.complex64)))
    toy.model.register_parameter("empty", nn.Parameter(torch.empty(0, 3)))
    toy.optimizer.add_param_group({"params": [toy.model.phase]})
    toy.model.phase.grad = 1j * torch.ones_like(toy.model.phase)
    objective = Objective(toy.model, nn.CrossEntropyLoss(), (toy.x, toy.y), params=("0.*", "2.*", "empty"))
    with Monitor(toy.model, toy.optimizer, objective, out=folder, probes=[EffectiveLearningRate()], every=1):
        toy.optimizer.step()
    run = Run.open(folder)
    assert not [record for record in run.records if record.status == "failed"]
    assert set(run.layers("learning_rate", "rotation_predicted")) == {"0.weight", "2.weight"}
    assert run.last("learning_rate", "relative_update", "phase").value == pytest.approx(0.1 * math.hypot(1, 0.1))
    empty = [record for record in run.records if record.layer == "empty" and record.name == "relative_update"]
    assert [(record.status, record.note) for record in empty] == [("skipped", "the tensor has no entries")]


def test_the_start_of_what_is_removed_or_resized_is_dropped() -> None:
    toy, probe = Toy(), EffectiveLearningRate()
    _readings(probe, toy, 0)
    toy.model[0].weight.data = torch.randn(7, 3)
    del toy.model[2]
    list(probe.measure(Moment(1, toy.model, toy.optimizer)))
    assert {name: (start.step, len(start.values)) for name, start in probe._start.items()} == {"0.weight": (1, 7)}
