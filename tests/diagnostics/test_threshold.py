"""The edge of each optimizer is where the real torch optimizer stops contracting a quadratic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Muon, Optimizer, RMSprop

from diagnostics import DiagnosticsError, threshold
from tests.reference.optimizer_simulation import freeze_second_moment, simulated_edge
from tests.reference.optimizers import Lion

RATE = 0.1
MOMENT, EPS = 0.25, 0.01
SGD_RULES = [
    ({}, 2 / RATE, "2/η"),
    ({"momentum": 0.9}, 3.8 / RATE, "(2+2β)/η"),
    ({"momentum": 0.9, "dampening": 0.5}, 7.6 / RATE, "(2+2β)/((1−τ)η)"),
    ({"momentum": 0.9, "nesterov": True}, 3.8 / 2.8 / RATE, "(2+2β)/(η(1+2β))"),
    ({"weight_decay": 3.0}, 2 / RATE - 3, "2/η − λ"),
    ({"momentum": 0.9, "weight_decay": 3.0}, 3.8 / RATE - 3, "(2+2β)/η − λ"),
    ({"momentum": 0.5, "nesterov": True, "weight_decay": 3.0}, 3 / 2 / RATE - 3, "(2+2β)/(η(1+2β)) − λ"),
    ({"dampening": 0.7}, 2 / RATE, "2/η"),
    ({"foreach": True}, 2 / RATE, "2/η"),
    ({"fused": True, "momentum": 0.9}, 3.8 / RATE, "(2+2β)/η"),
]
ADAPTIVE_RULES = [
    (Adam, {"eps": EPS}, 38 / RATE, "adam: (2+2β1)/((1-β1)η)"),
    (Adam, {"eps": EPS, "betas": (0.5, 0.99)}, 6 / RATE, "adam"),
    (Adam, {"eps": EPS, "weight_decay": 2.0}, 38 / RATE, "adam"),
    (Adam, {"eps": EPS, "amsgrad": True}, 38 / RATE, "adam"),
    (Adam, {"eps": EPS, "fused": True}, 38 / RATE, "adam"),
    (Adam, {"eps": EPS, "weight_decay": 1.0, "decoupled_weight_decay": True}, 19 * 1.9 / RATE, "adamw"),
    (AdamW, {"eps": EPS, "weight_decay": 0.0}, 38 / RATE, "adamw"),
    (AdamW, {"eps": EPS, "weight_decay": 1.0}, 19 * 1.9 / RATE, "adamw: (1+β1)(2−ηλ)/((1−β1)η)"),
    (AdamW, {"eps": EPS, "weight_decay": 10.0}, 19 / RATE, "adamw"),
    (AdamW, {"eps": EPS, "weight_decay": 1.0, "amsgrad": True}, 19 * 1.9 / RATE, "adamw"),
    (RMSprop, {"eps": EPS}, 2 / RATE, "rmsprop: 2/η"),
    (RMSprop, {"eps": EPS, "momentum": 0.9}, 3.8 / RATE, "rmsprop: (2+2μ)/η"),
    (RMSprop, {"eps": EPS, "weight_decay": 2.0}, 2 / RATE, "rmsprop"),
    (RMSprop, {"eps": EPS, "centered": True}, 2 / RATE, "rmsprop"),
]


def _weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2, dtype=torch.float64))]


@pytest.mark.parametrize(("settings", "expected", "rule"), SGD_RULES)
def test_sgd(settings: dict[str, object], expected: float, rule: str) -> None:
    build = partial(SGD, lr=RATE, **settings)
    edge = threshold(build(_weights()))
    assert edge.value == pytest.approx(expected, rel=1e-12)
    assert edge.rule == f"sgd: {rule}"
    assert simulated_edge(build, None, expected / 2, expected * 2) == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize(("kind", "settings", "expected", "rule"), ADAPTIVE_RULES)
def test_adaptive(kind: type[Optimizer], settings: dict[str, object], expected: float, rule: str) -> None:
    """The grid finds the edge in units of curvature: that of P^-½ (H + λ) P^-½ times P, less the coupled decay λ."""
    build = partial(kind, lr=RATE, **settings)
    edge = threshold(build(_weights()))
    assert edge.value == pytest.approx(expected, rel=1e-12)
    assert edge.rule.startswith(rule.replace("(1-β1)", "(1−β1)"))
    mean = 0.3 if settings.get("centered") else 0.0
    variance = MOMENT * (4 if settings.get("amsgrad") else 1) - mean**2
    coupled = 0.0 if "decoupled_weight_decay" in settings or kind is AdamW else settings.get("weight_decay", 0.0)
    curvature = expected * (variance**0.5 + EPS) - coupled
    freeze = partial(freeze_second_moment, moment=MOMENT, mean=mean)
    assert simulated_edge(build, freeze, curvature / 2, curvature * 2) == pytest.approx(curvature, rel=3e-3)


def test_a_zero_learning_rate_has_no_edge() -> None:
    assert threshold(SGD(_weights(), lr=0.0)).value == float("inf")


def test_the_rate_is_read_when_asked_and_may_be_a_tensor() -> None:
    optimizer = SGD(_weights(), lr=torch.tensor(0.5), momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    first = threshold(optimizer).value
    optimizer.step()
    scheduler.step()
    assert (first, threshold(optimizer).value) == (pytest.approx(7.6), pytest.approx(15.2))


def test_groups_that_differ_are_listed_and_have_no_single_value() -> None:
    optimizer = SGD([{"params": _weights()}, {"params": _weights(), "lr": 0.5, "momentum": 0.9}], lr=0.1)
    edge = threshold(optimizer)
    assert [(group.group, group.value, group.lr) for group in edge.by_group] == [
        (0, pytest.approx(20.0), 0.1),
        (1, pytest.approx(7.6), 0.5),
    ]
    assert edge.rule == "sgd: 2/η; sgd: (2+2β)/η"
    assert str(edge) == "group 0: 20 (sgd: 2/η), group 1: 7.6 (sgd: (2+2β)/η)"
    with pytest.raises(DiagnosticsError, match=r"different thresholds.*20, 7.6.*by_group"):
        _ = edge.value


def test_groups_that_agree_have_one_value() -> None:
    optimizer = SGD([{"params": _weights()}, {"params": _weights()}], lr=0.1)
    assert threshold(optimizer).value == 20.0


def test_a_wrapper_that_keeps_its_optimizer_is_looked_through() -> None:
    assert threshold(SimpleNamespace(optimizer=SGD(_weights(), lr=0.1))).value == 20.0


class Tweaked(SGD):
    """Who knows what its step does."""

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Another one."""


class Renamed(SGD):
    """The same step under another name."""


def test_a_subclass_with_the_same_step_has_the_same_edge() -> None:
    assert threshold(Renamed(_weights(), lr=0.1)).value == 20.0


def _with_few_bits() -> Optimizer:
    optimizer = Adam(_weights(), lr=0.1)
    (weight,) = optimizer.param_groups[0]["params"]
    optimizer.state[weight] = {"step": 3, "state2": torch.zeros(2, dtype=torch.uint8)}
    return optimizer


class Adam8bit(Adam):
    """As bitsandbytes calls its own, before it has any state."""


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: LBFGS(_weights()), "no stability rule.*given: LBFGS; expected: ASGD, Adadelta.*try: stability"),
        (lambda: Tweaked(_weights(), lr=0.1), "given: Tweaked"),
        (lambda: Lion(_weights()), "Lion has no curvature threshold.*the sign of its momentum.*never contracts"),
        (lambda: Muon([nn.Parameter(torch.zeros(2, 2))]), "Muon has no curvature threshold.*orthogonal matrix"),
        (_with_few_bits, "8 bits or fewer; given: Adam;.*32-bit variant"),
        (lambda: Adam8bit(_weights()), "8 bits or fewer; given: Adam8bit"),
        (lambda: SGD(_weights(), lr=0.1, maximize=True), "maximises; given: maximize=True"),
        (lambda: AdamW(_weights(), lr=0.5, weight_decay=4.0), "weight decay alone overshoots.*0.5.*4"),
    ],
)
def test_refusals(build: Callable[[], Optimizer], words: str) -> None:
    with pytest.raises(DiagnosticsError, match=words):
        threshold(build())
