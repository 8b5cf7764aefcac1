"""Realised updates against the update rule written out by hand; the rest against ``diagnostics``."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from diagnostics import Objective, effective_learning_rates
from probes import EffectiveLearningRate, Monitor, Run
from probes.learning_rate import OF_MATRICES
from tests.probes.toy import Toy


def _watched(toy: Toy, folder: Path) -> Monitor:
    return Monitor(
        toy.model, toy.optimizer, toy.objective, out=folder, probes=[EffectiveLearningRate()], every=1, budget=None
    )


def _relative(run: Run, tensor: str) -> float:
    record = run.last("learning_rate", "relative_update", tensor)
    assert record is not None
    assert record.value is not None
    return record.value


def test_plain_gradient_descent_moves_by_the_rate_times_the_gradient(folder: Path) -> None:
    toy = Toy(lr=0.3)
    expected = {}
    with _watched(toy, folder):
        toy.loss().backward()
        for name, tensor in toy.model.named_parameters():
            expected[name] = 0.3 * float(tensor.grad.double().norm()) / float(tensor.detach().double().norm())
        toy.optimizer.step()
    run = Run.open(folder)
    assert run.layers("learning_rate", "relative_update") == list(expected)
    for name, value in expected.items():
        # The step itself is rounded to float32.
        assert _relative(run, name) == pytest.approx(value, rel=1e-5)


def test_the_first_step_of_adam_moves_every_coordinate_by_its_rate(folder: Path) -> None:
    toy = Toy(torch.optim.Adam, lr=0.01, eps=1e-12)
    norms = {name: float(tensor.detach().norm()) for name, tensor in toy.model.named_parameters()}
    with _watched(toy, folder):
        toy.step()
    for name, tensor in toy.model.named_parameters():
        expected = 0.01 * math.sqrt(tensor.numel()) / norms[name]
        assert _relative(Run.open(folder), name) == pytest.approx(expected, rel=1e-4)


def test_what_clipping_and_closures_do_to_the_step_is_in_it(folder: Path) -> None:
    """The update is measured on the weights, so nothing in between can be forgotten."""
    toy = Toy(torch.optim.LBFGS, lr=0.5, max_iter=4)

    def closure() -> torch.Tensor:
        toy.optimizer.zero_grad()
        loss = toy.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(toy.model.parameters(), 0.01)
        return loss

    before = {name: tensor.detach().clone().double() for name, tensor in toy.model.named_parameters()}
    with _watched(toy, folder):
        toy.optimizer.step(closure)
    for name, tensor in toy.model.named_parameters():
        change = float((tensor.detach().double() - before[name]).norm() / before[name].norm())
        assert _relative(Run.open(folder), name) == pytest.approx(change, rel=1e-6)


def test_the_change_of_one_due_step_is_not_that_of_the_steps_between(folder: Path) -> None:
    toy = Toy(lr=0.3)
    changes = []
    with Monitor(
        toy.model, toy.optimizer, toy.objective, out=folder, probes=[EffectiveLearningRate(every=3)], budget=None
    ):
        for _ in range(6):
            before = toy.model[0].weight.detach().clone()
            toy.step()
            changes.append(float((toy.model[0].weight.detach() - before).norm() / before.norm()))
    measured = Run.open(folder).series("learning_rate", "relative_update", "0.weight")
    assert measured.steps.tolist() == [3, 6]
    assert measured.values == pytest.approx([changes[2], changes[5]], rel=1e-5)


def test_a_tensor_that_was_all_zero_has_no_relative_update(folder: Path) -> None:
    toy = Toy()
    nn.init.zeros_(toy.model[2].bias)
    with _watched(toy, folder):
        toy.train(2)
    records = [r for r in Run.open(folder).records if r.name == "relative_update" and r.layer == "2.bias"]
    assert [(record.step, record.status, record.value) for record in records] == [
        (1, "skipped", None),
        (2, "ok", records[1].value),
    ]
    assert records[0].note == "the tensor was all zero"


@pytest.mark.parametrize("damage", [math.nan, math.inf])
def test_a_tensor_that_is_not_finite_is_said_to_be_and_not_called_zero(damage: float, folder: Path) -> None:
    """From the step that destroys it on; its healthy neighbours have their updates."""
    toy = Toy()
    with _watched(toy, folder):
        for _ in range(2):
            toy.optimizer.zero_grad()
            toy.loss().backward()
            for tensor in toy.model.parameters():
                tensor.grad = torch.ones_like(tensor)
            toy.model[2].bias.grad[0] = damage
            toy.optimizer.step()
    run = Run.open(folder)
    records = [r for r in run.records if r.name == "relative_update" and r.layer == "2.bias"]
    assert {(r.status, r.value, r.note) for r in records} == {("skipped", None, "the tensor is not finite")}
    assert [r.step for r in records] == [1, 2]
    assert run.series("learning_rate", "relative_update", "0.weight").steps.tolist() == [1, 2]
    notes = [r.note for r in run.records if r.name == "effective" and r.step > 0]
    assert all(note.startswith("the loss is not finite; given: ") for note in notes)
    assert len(notes) == 2


def test_a_step_at_rate_zero_moves_nothing(folder: Path) -> None:
    toy = Toy(lr=0.0)
    with _watched(toy, folder):
        toy.step()
    assert _relative(Run.open(folder), "0.weight") == 0.0


def test_frozen_tensors_have_no_update_and_tied_ones_have_one(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2))
    model[2].weight = model[0].weight
    model[3].requires_grad_(False)
    x, y = torch.randn(8, 3), torch.randint(2, (8,))
    optimizer = torch.optim.SGD([t for t in model.parameters() if t.requires_grad], lr=0.1)
    with Monitor(model, optimizer, Objective(model, nn.CrossEntropyLoss(), (x, y)), out=folder, every=1, budget=None):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert Run.open(folder).layers("learning_rate", "relative_update") == ["0.weight", "0.bias", "2.bias"]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_every_rate_is_the_one_of_the_table(optimizer: type[torch.optim.Optimizer], folder: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 6, bias=False), nn.LayerNorm(6, eps=0.0), nn.Tanh(), nn.Linear(6, 2))
    x, y = torch.randn(12, 3), torch.randint(2, (12,))
    objective = Objective(model, nn.CrossEntropyLoss(), (x, y))
    rule = optimizer(model.parameters(), lr=0.01)
    with Monitor(model, rule, objective, out=folder, probes=[EffectiveLearningRate()]):
        nn.functional.cross_entropy(model(x), y).backward()
        rule.step()
    run, table = Run.open(folder), effective_learning_rates(model, rule, objective)
    assert any(row.effective is not None for row in table.rows)
    for row in table.rows:
        for name in (
            "lr",
            "coordinate_rate",
            "weight_norm",
            "weight_magnitude",
            "gradient_norm",
            "alignment",
            "effective",
            "epsilon_share",
            "invariant_rows",
            "row_effective",
            "gradient_over_moment",
            "sign_agreement",
        ):
            if name in OF_MATRICES and row.tensor != "0.weight" and row.tensor != "3.weight":
                assert run.last("learning_rate", name, row.tensor) is None, "vectors have none of these"
                continue
            expected, record = getattr(row, name), run.last("learning_rate", name, row.tensor)
            assert (record is None) == (expected is None), name
            if record is not None:
                assert record.value == float(expected)
                assert record.error == getattr(expected, "error", None)
