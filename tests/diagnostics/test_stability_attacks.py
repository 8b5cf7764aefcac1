"""What users hand in that was never meant: odd optimizers, odd states, odd arguments. No number is made up for them."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import OneCycleLR

from diagnostics import (
    DiagnosticsError,
    Hessian,
    Objective,
    batch_ladder,
    batch_sharpness,
    gradient_noise_interaction,
    sharpness,
    stability,
    threshold,
    trace_ratio,
)
from diagnostics.stability.preconditioner import scaling
from diagnostics.stability.rules import unwrap_optimizer
from diagnostics.stability.trial_step import trial_step
from tests.reference.optimizers import SAM, Lion, Lookahead


def _network(mode: str = "eval") -> tuple[nn.Module, Objective]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    data = torch.randn(8, 3), torch.randn(8, 2)
    nn.functional.mse_loss(model(data[0]), data[1]).backward()
    return model, Objective(model, nn.MSELoss(), data, mode=mode)


class _Plain(Optimizer):
    """θ ← θ − ½ g, written by a user."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.5})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.move(parameter)

    def move(self, parameter: nn.Parameter) -> None:
        if parameter.grad is not None:
            self.state[parameter]["steps"] = self.state[parameter].get("steps", 0) + 1
            parameter.data.sub_(0.5 * parameter.grad)


class _LambdaOverSelf(_Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.act = {"on": [lambda parameter: _Plain.move(self, parameter)]}

    def move(self, parameter: nn.Parameter) -> None:
        self.act["on"][0](parameter)


class _ClosureOverParameters(_Plain):
    def __init__(self, params: Any) -> None:
        held = list(params)
        super().__init__(held)

        def go(others: list[nn.Parameter] = held) -> None:
            for parameter in held:
                parameter.data.sub_(0.25 * parameter.grad)
            for parameter in others:
                parameter.data.sub_(0.25 * parameter.grad)

        self.go = go

    def step(self, closure: Any = None) -> None:
        self.go()


class _RandomStreams(_Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.torch_stream, self.numpy_stream = torch.Generator().manual_seed(3), numpy.random.default_rng(0)

    def move(self, parameter: nn.Parameter) -> None:
        noise = torch.randn(parameter.shape, generator=self.torch_stream) * self.numpy_stream.random()
        parameter.data.sub_(0.5 * parameter.grad + 0.0 * noise)


class _HoldsItself(_Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.me, self.bound = self, self.move

    def move(self, parameter: nn.Parameter) -> None:
        _Plain.move(self.me, parameter)


class _InnerBeside(_Plain):
    """Half of the parameters by itself, the others by an optimizer of torch that a scheduler drives."""

    def __init__(self, params: Any) -> None:
        held = list(params)
        super().__init__(held[:2])
        self.optimizer = SGD(held[2:], lr=0.5)
        self.scheduler_of = OneCycleLR(self.optimizer, 0.5, total_steps=10, div_factor=1.0, cycle_momentum=False)

    def step(self, closure: Any = None) -> None:
        super().step()
        self.optimizer.step()


def _bits(model: nn.Module, optimizer: Any) -> str:
    state = [(id(key), sorted(value.items(), key=str)) for key, value in optimizer.state.items()]
    return repr(
        (
            [(id(p), p.tolist(), p.grad.tolist(), p.requires_grad) for p in model.parameters()],
            state,
            [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
            torch.get_rng_state().sum(),
            sorted(vars(optimizer)),
        )
    )


ODD = [_LambdaOverSelf, _ClosureOverParameters, _RandomStreams, _HoldsItself, _InnerBeside]


@pytest.mark.parametrize("kind", ODD)
def test_the_step_of_an_odd_optimizer_is_seen_and_nothing_of_it_is_moved(kind: type[_Plain]) -> None:
    model, objective = _network()
    optimizer = kind(model.parameters())
    before = _bits(model, optimizer)
    step = trial_step(objective, optimizer)
    assert torch.allclose(step, -0.5 * objective.gradient(), atol=1e-7)
    assert _bits(model, optimizer) == before
    if isinstance(optimizer, _RandomStreams):
        assert torch.equal(optimizer.torch_stream.get_state(), torch.Generator().manual_seed(3).get_state())
        assert optimizer.numpy_stream.random() == numpy.random.default_rng(0).random()


def test_a_compiled_function_on_the_optimizer_is_looked_through() -> None:
    model, objective = _network()
    optimizer = _LambdaOverSelf(model.parameters())
    optimizer.act["on"][0] = torch.compile(optimizer.act["on"][0], backend="eager")
    before = _bits(model, optimizer)
    assert torch.allclose(trial_step(objective, optimizer), -0.5 * objective.gradient(), atol=1e-7)
    assert _bits(model, optimizer) == before


_GLOBAL: list[nn.Parameter] = []


class _ByGlobalName(_Plain):
    def step(self, closure: Any = None) -> None:
        for parameter in _GLOBAL:
            parameter.data.add_(1.0)


def test_a_step_that_finds_the_model_by_itself_is_undone_and_refused() -> None:
    model, objective = _network()
    _GLOBAL[:] = list(model.parameters())
    optimizer = _ByGlobalName(model.parameters())
    before = _bits(model, optimizer)
    for measure in (trial_step, stability):
        with pytest.raises(DiagnosticsError, match=r"finds the model's parameters by itself.*4 of 4.*put back"):
            measure(objective, optimizer)
        assert _bits(model, optimizer) == before


@pytest.mark.parametrize("attribute", [threading.Lock(), (number for number in range(3))], ids=["lock", "generator"])
def test_what_cannot_be_copied_is_said(attribute: object) -> None:
    model, objective = _network()
    optimizer = _Plain(model.parameters())
    optimizer.kept = attribute
    before = _bits(model, optimizer)
    with pytest.raises(DiagnosticsError, match=r"cannot take a step by itself; given: _Plain: TypeError"):
        stability(objective, optimizer)
    assert _bits(model, optimizer) == before


def test_an_optimizer_that_cannot_even_be_looked_at_is_refused() -> None:
    model, objective = _network()
    optimizer = _Plain(model.parameters())

    def later() -> object:
        return missing

    optimizer.later = later
    if optimizer is None:
        missing = None
    with pytest.raises(DiagnosticsError, match=r"cannot take a step by itself.*Cell is empty"):
        trial_step(objective, optimizer)


@pytest.mark.parametrize("kind", [_Plain, _HoldsItself, _LambdaOverSelf])
def test_the_copies_are_gone_afterwards_without_the_collector(kind: type[_Plain]) -> None:
    model, objective = _network()
    optimizer = kind(model.parameters())
    trial_step(objective, optimizer)

    def copies() -> int:
        return sum(type(thing) is nn.Parameter for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = copies()
        for _ in range(3):
            trial_step(objective, optimizer)
        assert copies() == before
    finally:
        gc.enable()


def test_frozen_parameters_that_are_selected_stay_where_they_are() -> None:
    model, _ = _network()
    model[0].requires_grad_(False)
    data = torch.randn(8, 3), torch.randn(8, 2)
    everything = Objective(model, nn.MSELoss(), data, params=lambda name, tensor: True)
    trained = Objective(model, nn.MSELoss(), data)
    optimizer = SGD(model.parameters(), lr=0.1)
    ratios = [float(stability(objective, optimizer, tol=1e-6).ratio) for objective in (everything, trained)]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-4)
    assert not trial_step(everything, Lion(model.parameters()))[:16].any()
    assert trial_step(everything, Lion(model.parameters()))[16:].all()


def test_an_optimizer_beside_another_is_not_a_wrapper_around_it() -> None:
    class Auxiliary(SGD):
        """SGD that has an Adam for something else."""

    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    optimizer = Auxiliary(weights, lr=0.1)
    optimizer.optimizer = Adam(weights, lr=1e-3)
    assert threshold(optimizer).rule == "sgd: 2/η"
    itself = SGD(weights, lr=0.1)
    itself.optimizer = itself
    assert unwrap_optimizer(itself) is itself
    with pytest.raises(DiagnosticsError, match="no stability rule is known"):
        threshold(_InnerBeside([*weights, nn.Parameter(torch.zeros(1))]))


def test_what_a_wrapper_does_beside_an_optimizer_without_a_rule_is_told() -> None:
    model, objective = _network()
    note = stability(objective, SAM(model.parameters(), Lion)).note
    assert note.endswith("along one step of it, without the SAM around it, a lower bound")
    assert "around it" not in stability(objective, Lion(model.parameters())).note


@pytest.mark.parametrize("rho", [math.nan, -1.0, "x", None])
def test_a_radius_that_is_none(rho: Any) -> None:
    optimizer = SAM([nn.Parameter(torch.zeros(2))], SGD, lr=0.1)
    optimizer.param_groups[0]["rho"] = rho
    with pytest.raises(DiagnosticsError, match=r"rho of SAM is not a radius"):
        threshold(optimizer, gradient_norm=1.0)


@pytest.mark.parametrize(("steps", "share"), [(0, 0.5), (-1, 0.5), ("x", 0.5), (5, 0.0), (5, 2.0), (5, math.nan)])
def test_settings_of_lookahead_that_are_none(steps: Any, share: float) -> None:
    optimizer = Lookahead(SGD([nn.Parameter(torch.zeros(2))], lr=0.1), 5, 0.5)
    optimizer.k, optimizer.alpha = steps, share
    with pytest.raises(DiagnosticsError, match="of Lookahead is"):
        threshold(optimizer)


def test_no_curvature_is_named_as_the_edge_where_there_is_none() -> None:
    weights = [nn.Parameter(torch.ones(2))]
    for optimizer in (SAM(weights, SGD, lr=0.1, adaptive=True), SAM(weights, Adam, lr=0.1)):
        with pytest.raises(DiagnosticsError, match="depends on the direction"):
            threshold(optimizer, gradient_norm=1.0)
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in (0.1, 0.2)]
    model = nn.Module()
    model.one, model.two = (group["params"][0] for group in groups)
    space = Objective.from_loss(model, lambda m, b: (m.one + m.two).square().sum() * b.mean(), [torch.ones(1)]).space
    assert "right to a few percent" in scaling(Lookahead(SGD(groups, lr=0.1), 5, 0.5), space).note
    assert scaling(SGD(groups, lr=0.1), space).note == ""


@pytest.mark.parametrize("lr", [math.nan, math.inf, -0.1])
def test_a_learning_rate_that_is_none(lr: float) -> None:
    model, objective = _network()
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = lr
    for measure in (lambda: threshold(optimizer), lambda: stability(objective, optimizer)):
        with pytest.raises(DiagnosticsError, match="the learning rate is not one"):
            measure()


def _stepped(model: nn.Module, optimizer: Optimizer) -> Optimizer:
    optimizer.step()
    return optimizer


def test_states_that_do_not_go_with_the_settings() -> None:
    model, objective = _network()
    adam = _stepped(model, Adam(model.parameters()))
    adam.param_groups[0]["amsgrad"] = True
    rmsprop = _stepped(model, RMSprop(model.parameters()))
    rmsprop.param_groups[0]["centered"] = True
    for optimizer, missing in ((adam, "max_exp_avg_sq"), (rmsprop, "grad_avg")):
        with pytest.raises(DiagnosticsError, match=f"does not belong to its settings.*without '{missing}'"):
            stability(objective, optimizer)
    flat = _stepped(model, Adam(model.parameters()))
    flat.state[model[0].weight]["exp_avg_sq"] = torch.ones(12)
    with pytest.raises(DiagnosticsError, match=r"not of its shape; given: \(12,\) for a parameter of \(4, 3\)"):
        stability(objective, flat)
    old = SGD(model.parameters(), lr=0.1)
    del old.param_groups[0]["nesterov"]
    with pytest.raises(DiagnosticsError, match=r"a parameter group lacks a setting.*SGD without 'nesterov'"):
        threshold(old)


def test_a_group_that_joined_is_told_until_its_first_step() -> None:
    model, objective = _network()
    optimizer = _stepped(model, AdamW(model[2].parameters()))
    optimizer.add_param_group({"params": model[0].parameters()})
    assert (
        stability(objective, optimizer).note == "2 of 4 parameters have no optimizer state yet, and are taken to stay"
    )
    assert stability(objective, _stepped(model, optimizer)).note == ""


def test_autocast_does_not_reach_a_factored_preconditioner() -> None:
    model, objective = _network()
    optimizer = _stepped(model, Adafactor(model.parameters()))
    plain = scaling(optimizer, objective.space).root
    with torch.autocast("cpu"):
        assert torch.equal(scaling(optimizer, objective.space).root, plain)


@pytest.mark.parametrize("build", [lambda p: SGD(p, lr=1e-7), lambda p: Adam(p, lr=1e-3)], ids=["small", "adam"])
def test_half_precision_has_room_for_step_sizes(build: Callable[[Any], Optimizer]) -> None:
    model, _ = _network()
    optimizer = build(model.parameters())
    if isinstance(optimizer, Adam):
        _stepped(model, optimizer)
        optimizer.state[model[0].weight]["exp_avg_sq"][0] = 0.0
    whole = scaling(optimizer, Objective(model, nn.MSELoss(), (torch.zeros(1, 3), torch.zeros(1, 2))).space).root
    for parameter in model.parameters():
        parameter.data = parameter.data.half()
    half = scaling(optimizer, Objective(model, nn.MSELoss(), (torch.zeros(1, 3), torch.zeros(1, 2))).space).root
    assert half.dtype == torch.float16
    assert torch.allclose(half.float(), whole, rtol=2e-3)


def test_steps_too_small_for_the_dtype_leave_the_curvature_undetermined() -> None:
    model, objective = _network()
    s = stability(objective, SGD(model.parameters(), lr=1e-300))
    assert not s.curvature.determined
    assert s.curvature.how == "the steps are too small for the dtype"


def test_a_run_that_has_diverged_has_no_ratio() -> None:
    """The Hessian of a quadratic loss is finite where the weights are NaN."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.weight.data[0, 0] = math.nan
    objective, optimizer = (
        Objective(model, nn.MSELoss(), (torch.randn(8, 3), torch.randn(8, 2))),
        SGD([*model.parameters()]),
    )
    assert torch.isfinite(Hessian(objective) @ torch.ones(8)).all()
    for measure in (
        lambda: stability(objective, optimizer),
        lambda: sharpness(objective),
        lambda: trace_ratio(objective, optimizer),
        lambda: batch_ladder(objective, [4, 8]),
    ):
        with pytest.raises(DiagnosticsError, match="the loss is not finite"):
            measure()


def test_single_examples_under_batch_normalisation() -> None:
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    objective = Objective(flat, nn.MSELoss(), (torch.randn(8, 3), torch.randn(8, 2)), mode="train")
    for measure in (batch_sharpness, gradient_noise_interaction, lambda o, size: batch_ladder(o, [size, 8])):
        with pytest.raises(DiagnosticsError, match="batch_size is too small for batch normalisation"):
            measure(objective, 1)
    assert batch_sharpness(objective, 4, max_draws=5).value.determined
    assert len(batch_ladder(objective, [4, 8], draws=2).values) == 2
    images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    seen = Objective(images, nn.MSELoss(), (torch.randn(4, 1, 4, 4), torch.randn(4, 2)), mode="train")
    assert batch_sharpness(seen, 1).value.determined


def test_what_was_made_in_inference_mode_is_of_use_outside() -> None:
    model, objective = _network()
    optimizer = SGD(model.parameters(), lr=0.1)
    with torch.inference_mode(), torch.autocast("cpu"):
        inside, operator, gradient = stability(objective, optimizer), Hessian(objective), objective.gradient()
    outside = stability(objective, optimizer, start=inside.restart, hessian=operator)
    assert float(outside.ratio) == pytest.approx(float(inside.ratio), rel=1e-3)
    step: Tensor = trial_step(objective, optimizer, gradient)
    assert torch.equal(step, trial_step(objective, optimizer))
