"""Every optimizer contracts at 0.99 of its threshold and grows at 1.01, whatever its settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from tests.reference.edge_of_optimizer import Freeze, frozen, grows, schedule_free_frozen
from tests.reference.optimizers import Lookahead

some = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
rates = st.floats(1e-4, 1.0)
betas = st.one_of(st.just(0.0), st.floats(0.1, 0.97))
decays = st.one_of(st.just(0.0), st.floats(0.01, 1.0))
steps = st.sampled_from([1, 2, 5, 30, 1000, 100_000])
moments = st.floats(1e-4, 10.0)
ways = st.sampled_from([{}, {"foreach": True}, {"tensor": True}])


def _straddles(build: Callable[[list[nn.Parameter]], Any], freeze: Freeze | None = None, **options: Any) -> None:
    assert not grows(build, 0.99, freeze, **options)
    assert grows(build, 1.01, freeze, **options)


def _builder(kind: type[Optimizer], lr: float, way: dict[str, Any], **arguments: Any) -> Callable[..., Optimizer]:
    way = dict(way)
    rate = torch.tensor(lr, dtype=torch.float64) if way.pop("tensor", False) else lr
    return lambda weights: kind(weights, lr=rate, **way, **arguments)


@some
@given(lr=rates, momentum=betas, dampening=st.floats(0, 0.9), nesterov=st.booleans(), decay=decays, way=ways)
def test_sgd(lr: float, momentum: float, dampening: float, nesterov: bool, decay: float, way: dict[str, Any]) -> None:
    nesterov = nesterov and momentum > 0
    build = _builder(
        SGD,
        lr,
        way,
        momentum=momentum,
        dampening=0.0 if nesterov else dampening,
        nesterov=nesterov,
        weight_decay=decay,
    )
    _straddles(build)


@some
@given(lr=rates, decay=st.floats(0, 0.5), lambd=st.sampled_from([0.0, 1e-4, 0.1]))
def test_asgd(lr: float, decay: float, lambd: float) -> None:
    """Its rate falls with its own count, which is frozen here through α = 0."""
    _straddles(lambda weights: ASGD(weights, lr=lr, weight_decay=decay, lambd=lambd, alpha=0.0))


@pytest.mark.parametrize("kind", [Adam, AdamW, NAdam, RAdam])
@some
@given(data=st.data())
def test_adam_and_its_kind(kind: type[Optimizer], data: st.DataObject) -> None:
    lr, beta1, decay, step, moment, way = (data.draw(one) for one in (rates, betas, decays, steps, moments, ways))
    beta2, eps = data.draw(st.floats(0.9, 0.9995)), data.draw(st.sampled_from([1e-8, 1e-2, 1.0]))
    arguments: dict[str, Any] = {"betas": (beta1, beta2), "eps": eps, "weight_decay": decay}
    if kind is not AdamW:
        arguments["decoupled_weight_decay"] = data.draw(st.booleans())
    if kind in (Adam, AdamW):
        arguments["amsgrad"] = data.draw(st.booleans())
        if not way and data.draw(st.booleans()):
            arguments["fused"] = True
    if kind is NAdam:
        # Its state product is built step by step in the reference.
        step = min(step, 1000)
    _straddles(_builder(kind, lr, way, **arguments), frozen(step, moment))


@some
@given(lr=rates, beta1=betas, decay=decays, step=steps, moment=moments, way=ways)
def test_adamax(lr: float, beta1: float, decay: float, step: int, moment: float, way: dict[str, Any]) -> None:
    build = _builder(Adamax, lr, way, betas=(beta1, 0.99), weight_decay=decay)
    _straddles(build, frozen(step, moment))


@some
@given(lr=rates, momentum=betas, decay=decays, centered=st.booleans(), moment=moments, way=ways)
def test_rmsprop(lr: float, momentum: float, decay: float, centered: bool, moment: float, way: dict[str, Any]) -> None:
    build = _builder(RMSprop, lr, way, momentum=momentum, weight_decay=decay, centered=centered, eps=1e-3)
    _straddles(build, frozen(5, moment))


@some
@given(lr=rates, lr_decay=st.sampled_from([0.0, 0.1]), decay=decays, step=steps, moment=moments)
def test_adagrad(lr: float, lr_decay: float, decay: float, step: int, moment: float) -> None:
    build = _builder(Adagrad, lr, {}, lr_decay=lr_decay, weight_decay=decay, eps=1e-3)
    _straddles(build, frozen(step, moment))


@some
@given(lr=rates, rho=st.floats(0.5, 0.99), decay=decays, moment=moments)
def test_adadelta(lr: float, rho: float, decay: float, moment: float) -> None:
    _straddles(_builder(Adadelta, lr, {}, rho=rho, weight_decay=decay), frozen(5, moment))


@some
@given(lr=rates, decay=decays, step=steps, moment=moments, shape=st.sampled_from([(1,), (3, 2)]))
def test_adafactor(lr: float, decay: float, step: int, moment: float, shape: tuple[int, ...]) -> None:
    """Also where its second moment is factored. Its update is too small here to be clipped."""
    _straddles(_builder(Adafactor, lr, {}, weight_decay=decay), frozen(step, moment), shape=shape)


@some
@given(lr=rates, momentum=betas, steps=st.integers(1, 7), alpha=st.floats(0.2, 1.0), nesterov=st.booleans())
def test_lookahead(lr: float, momentum: float, steps: int, alpha: float, nesterov: bool) -> None:
    nesterov = nesterov and momentum > 0

    def build(weights: list[nn.Parameter]) -> Lookahead:
        return Lookahead(SGD(weights, lr=lr, momentum=momentum, nesterov=nesterov), steps, alpha)

    _straddles(build, steps=12_000)


@pytest.mark.parametrize("name", ["SGDScheduleFree", "AdamWScheduleFree"])
@some
@given(data=st.data())
def test_schedule_free(name: str, data: st.DataObject) -> None:
    schedulefree = pytest.importorskip("schedulefree")
    lr, beta, decay = data.draw(rates), data.draw(st.floats(0.1, 0.97)), data.draw(decays)
    share, taken = data.draw(st.floats(0.001, 0.9)), data.draw(st.sampled_from([1, 10, 1000]))

    def build(weights: list[nn.Parameter]) -> Optimizer:
        own = {"momentum": beta} if name.startswith("SGD") else {"betas": (beta, 0.99), "eps": 1e-3}
        made = getattr(schedulefree, name)(weights, lr=lr, weight_decay=decay, foreach=False, **own)
        made.train()
        optimizer: Optimizer = made
        return optimizer

    _straddles(build, schedule_free_frozen(taken, share, 0.3), steps=20_000)
