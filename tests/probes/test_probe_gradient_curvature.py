"""What the GradientCurvature probe writes is what ``diagnostics`` says of the same moment; training does not notice."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diagnostics import (
    DiagnosticsError,
    Objective,
    critical_sharpness,
    directional_sharpness,
    gradient_curvature,
    trace_ratio,
)
from diagnostics.stability.trial_step import trial_step
from probes import GradientCurvature, Monitor, Run
from probes.gradient_curvature import FORWARD_PASSES
from probes.probe import Moment, Reading, TensorUpdate
from probes.sharpness import NO_EDGE
from tests.probes.toy import Toy, Watch

EVERYTHING = {"k": 2, "critical": True, "trace_products": 64}
NAMES = [
    "gradient_norm",
    "directional",
    "alignment",
    "subspace_share",
    "step_ratio",
    "critical_sharpness",
    "critical_lr",
    "trace_ratio",
]


def _moment(toy: Toy, step: int = 1) -> Moment:
    """A step of the toy, with what it did."""
    before = {name: tensor.detach().clone() for name, tensor in toy.model.named_parameters()}
    toy.step()
    updates = {
        name: TensorUpdate(before[name], tensor.detach())
        for name, tensor in toy.model.named_parameters()
        if tensor.requires_grad
    }
    return Moment(step, toy.model, toy.optimizer, toy.objective, updates)


def _readings(probe: GradientCurvature, moment: Moment) -> dict[str, Reading]:
    return {reading.name: reading for reading in probe.measure(moment)}


@pytest.mark.parametrize(
    "make",
    [lambda: Toy(lr=0.5), lambda: Toy(lr=0.1, momentum=0.9), lambda: Toy(torch.optim.AdamW, lr=0.1)],
    ids=["SGD", "SGD with momentum", "AdamW"],
)
def test_every_number_is_that_of_a_direct_call(make: Callable[[], Toy]) -> None:
    toy = make()
    toy.train(3)
    moment = _moment(toy, step=4)
    got = _readings(GradientCurvature(**EVERYTHING), moment)
    assert list(got) == NAMES
    assert all(reading.status == "ok" for reading in got.values())
    update = trial_step(toy.objective, toy.optimizer)
    lr = toy.optimizer.param_groups[0]["lr"]
    direct = gradient_curvature(toy.objective, 2)
    critical = critical_sharpness(toy.objective, update / lr, lr=lr, max_evaluations=FORWARD_PASSES)
    expected = {
        "gradient_norm": direct.norm,
        "directional": direct.curvature,
        "alignment": direct.alignment,
        "subspace_share": direct.subspace_share,
        "step_ratio": directional_sharpness(toy.objective, update).ratio,
        "critical_sharpness": critical.value,
        "critical_lr": critical.lr,
        "trace_ratio": trace_ratio(toy.objective, toy.optimizer),
    }
    for name, estimate in expected.items():
        assert float(got[name].value) == pytest.approx(float(estimate), rel=1e-4, abs=1e-6), name
        assert got[name].value.error == pytest.approx(estimate.error, rel=0.05, abs=1e-5), name
    assert "a copy of the optimizer takes" in got["step_ratio"].note


def test_for_gradient_descent_the_critical_rate_is_the_one_along_the_gradient() -> None:
    toy = Toy(lr=1e-3)
    got = _readings(GradientCurvature(), _moment(toy))
    along = critical_sharpness(toy.objective)
    assert float(got["critical_lr"].value) == pytest.approx(float(along.lr), rel=0.05)
    assert float(got["critical_lr"].value) > 1e-2
    assert float(got["step_ratio"].value) < 0.01


def test_in_a_run_everything_is_there_from_the_first_state_on(toy: Toy, folder: Path) -> None:
    probe = GradientCurvature(k=1, trace_products=4)
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[probe], every=1, budget=None):
        toy.train(3)
    run = Run.open(folder)
    for name in (*NAMES[:3], "subspace_share", "step_ratio", "critical_lr", "trace_ratio"):
        assert run.series("gradient_curvature", name).steps.tolist() == [0, 1, 2, 3], name
    assert not [record for record in run.records if record.status == "skipped"]
    note = run.last("gradient_curvature", "directional").note
    assert "two products, two gradients" in note
    assert "12 loss terms" in note


def test_what_is_not_asked_for_is_not_measured(toy: Toy) -> None:
    got = _readings(GradientCurvature(critical=False), _moment(toy))
    assert list(got) == ["gradient_norm", "directional", "alignment", "step_ratio"]


def test_groups_that_differ_are_told_apart_and_frozen_tensors_do_not_move() -> None:
    toy = Toy()
    toy.model[0].requires_grad_(False)
    toy.objective = Objective(toy.model, nn.CrossEntropyLoss(), (toy.x, toy.y), params=lambda name, tensor: True)
    parameters = [toy.model[2].weight], [toy.model[2].bias]
    toy.optimizer = torch.optim.SGD([{"params": parameters[0], "lr": 0.1}, {"params": parameters[1], "lr": 0.3}])
    moment = _moment(toy)
    got = _readings(GradientCurvature(), moment)
    assert "largest rate 0.3" in got["critical_lr"].note
    update = trial_step(toy.objective, toy.optimizer)
    assert float((update == 0).sum()) >= 16
    assert float(got["critical_lr"].value) == pytest.approx(
        float(critical_sharpness(toy.objective, update / 0.3, lr=0.3, max_evaluations=FORWARD_PASSES).lr), rel=1e-4
    )


def _without_a_way_on(toy: Toy, moment: Moment) -> None:
    """An optimizer whose copies cannot step, and no step that was seen."""
    moment.updates.clear()

    def step(self: Any) -> None:
        raise RuntimeError("a closure is needed")

    toy.optimizer.__class__ = type("Closing", (type(toy.optimizer),), {"step": step})


def test_where_a_copy_cannot_step_the_last_update_is_used(toy: Toy) -> None:
    moment = _moment(toy)
    updates = dict(moment.updates)
    _without_a_way_on(toy, moment)
    got = _readings(GradientCurvature(), replace(moment, updates=updates))
    update = torch.cat([updates[name].delta().reshape(-1) for name in toy.objective.space.names])
    assert float(got["step_ratio"].value) == pytest.approx(float(directional_sharpness(toy.objective, update).ratio))
    assert "at the point it led to" in got["step_ratio"].note


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (
            lambda toy, moment: toy.optimizer.param_groups[0].update(lr=0.0),
            "critical_sharpness",
            "there is no next step",
        ),
        (lambda toy, moment: toy.optimizer.param_groups[0].update(lr=-1.0), "critical_sharpness", "not positive"),
        (_without_a_way_on, "step_ratio", "no update was kept"),
    ],
)
def test_what_cannot_be_measured_says_why(change: Callable[..., Any], name: str, said: str) -> None:
    toy = Toy()
    moment = _moment(toy)
    change(toy, moment)
    got = _readings(GradientCurvature(), moment)
    assert got[name].status == "skipped"
    assert said in got[name].note
    assert got["directional"].status == "ok"


def test_without_an_optimizer_there_is_no_learning_rate() -> None:
    moment = _moment(Toy())
    alone = Moment(1, moment.model, None, moment.objective, moment.updates)
    got = _readings(GradientCurvature(**EVERYTHING), alone)
    assert got["step_ratio"].status == "ok"
    for name in ("critical_sharpness", "trace_ratio"):
        assert got[name].status == "skipped"
        assert "no optimizer" in got[name].note


def test_a_step_that_did_not_move_has_no_direction() -> None:
    toy = Toy(lr=0.0)
    moment = _moment(toy)
    got = _readings(GradientCurvature(), replace(moment, optimizer=None))
    assert "moved no parameter" in got["step_ratio"].note
    assert got["critical_sharpness"].status == "skipped"


def test_at_a_learning_rate_of_zero_there_is_no_next_step_and_above_it_there_is() -> None:
    """Also before the first step and where a closing Monitor has no update at hand."""
    said = {}
    for lr in (0.0, 0.1):
        toy = Toy(lr=lr)
        got = _readings(GradientCurvature(trace_products=4), Moment(0, toy.model, toy.optimizer, toy.objective))
        assert got["directional"].status == "ok"
        said[lr] = {name: got[name].note for name in ("step_ratio", "critical_sharpness", "trace_ratio")}
        assert {got[name].status for name in said[lr]} == {"skipped" if lr == 0.0 else "ok"}
    no_step = "the learning rate is 0: there is no next step"
    assert said[0.0] == {"step_ratio": no_step, "critical_sharpness": no_step, "trace_ratio": NO_EDGE}


def test_a_step_uphill_has_no_ratio() -> None:
    """Momentum carries the next step uphill: said, and not given as a number."""
    toy = Toy(lr=0.1, momentum=0.9)
    moment = _moment(toy)
    for parameter in toy.model.parameters():
        toy.optimizer.state[parameter]["momentum_buffer"] = -1000 * parameter.grad.clone()
    got = _readings(GradientCurvature(), moment)
    assert got["step_ratio"].status == "skipped"
    assert "not a descent direction" in got["step_ratio"].note
    assert got["critical_sharpness"].status == "skipped"


def test_a_diverged_model_gives_no_numbers() -> None:
    toy = Toy()
    moment = _moment(toy)
    with torch.no_grad():
        toy.model[0].weight.fill_(math.nan)
    got = _readings(GradientCurvature(**EVERYTHING), moment)
    assert all(reading.status == "skipped" and reading.value is None for reading in got.values())
    assert all("finite" in reading.note or "loss is nan" in reading.note for reading in got.values())


@pytest.mark.parametrize(
    "settings", [{"k": -1}, {"k": 1.5}, {"k": True}, {"trace_products": 3}, {"trace_products": -1}]
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(DiagnosticsError, match=next(iter(settings))):
        GradientCurvature(**settings)


def test_training_is_the_same_bit_for_bit(folder: Path) -> None:
    runs = []
    for probe in (GradientCurvature(**EVERYTHING), Watch()):
        torch.manual_seed(0)
        toy = Toy(torch.optim.Adam, lr=0.01)
        with Monitor(toy.model, toy.optimizer, toy.objective, out=folder / probe.name, probes=[probe], every=1):
            toy.train(5)
        runs.append([*toy.model.state_dict().values(), torch.rand(3)])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
