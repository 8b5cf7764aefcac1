"""Edges of SAM, ASAM and Lookahead, and of optimizers without a rule, against steps that they really take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Muon, Optimizer
from torch.optim.lr_scheduler import StepLR

from diagnostics import DiagnosticsError, Objective, stability, threshold
from diagnostics.stability.rules import unwrap_optimizer, wrappers_around
from diagnostics.stability.trial_step import trial_step
from tests.reference.optimizers import SAM, Lion, Lookahead

SLOPE = 0.7


class Valley(nn.Module):
    """½ xᵀHx along some coordinates, a constant slope along another: the gradient keeps its length."""

    def __init__(self, hessian: Tensor, centre: float = 0.0) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.full((len(hessian),), centre, dtype=torch.float64))
        self.drift = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.hessian, self.centre = hessian, centre

    def loss(self) -> Tensor:
        away = self.x - self.centre
        return 0.5 * away @ self.hessian @ away + SLOPE * self.drift.sum()

    def objective(self) -> Objective:
        def loss(model: Valley, scale: Tensor) -> Tensor:
            return scale.mean() * model.loss()

        return Objective.from_loss(self, loss, [torch.ones(1, dtype=torch.float64)])


def _hessian(scale: float) -> Tensor:
    root = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return scale * root @ root.T


def _grows(model: Valley, optimizer: SAM, steps: int = 400) -> bool:
    """The length of the step's own oscillation, which does not depend on where the slope has led."""
    with torch.no_grad():
        model.x.add_(1e-9 * torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    start = float((model.x.detach() - model.centre).norm())
    for _ in range(steps):
        for half in (optimizer.first_step, optimizer.second_step):
            optimizer.zero_grad()
            model.loss().backward()
            half()
        with torch.no_grad():
            # ASAM scales by θ²: the drift must not change that.
            model.drift.fill_(1.0)
        size = float((model.x.detach() - model.centre).norm())
        if not 1e-3 * start < size < 1e3 * start:
            return size > start
    return size > start


SHARPNESS_AWARE: dict[str, tuple[dict[str, Any], float]] = {
    "sgd": ({"rho": 0.3, "lr": 0.2}, 0.0),
    "sgd with momentum": ({"rho": 0.1, "lr": 0.05, "momentum": 0.8}, 0.0),
    "sgd with nesterov": ({"rho": 0.1, "lr": 0.05, "momentum": 0.8, "nesterov": True}, 0.0),
    "asam": ({"rho": 0.2, "lr": 0.2, "adaptive": True}, 1.5),
}


@pytest.mark.parametrize("name", SHARPNESS_AWARE)
def test_sam_grows_where_its_ratio_passes_one(name: str) -> None:
    arguments, centre = SHARPNESS_AWARE[name]

    def built(scale: float) -> tuple[Valley, SAM]:
        model = Valley(_hessian(scale), centre)
        return model, SAM(model.parameters(), SGD, **arguments)

    low, high = 1e-3, 1e3
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        model, optimizer = built(middle)
        low, high = (
            (middle, high) if float(stability(model.objective(), optimizer, tol=1e-9).ratio) < 1 else (low, middle)
        )
    assert not _grows(*built(0.98 * low))
    assert _grows(*built(1.02 * low))


def test_the_published_edge_of_sam() -> None:
    """Unnormalised ρ .05, η .1: 12.3607 where plain descent has 20; with ‖g‖ large SAM is plain descent."""
    optimizer = SAM([nn.Parameter(torch.zeros(2))], SGD, rho=0.05, lr=0.1)
    assert threshold(optimizer, gradient_norm=1.0).value == pytest.approx(12.3607, abs=1e-4)
    assert threshold(optimizer, gradient_norm=1e9).value == pytest.approx(20.0)
    assert threshold(optimizer, gradient_norm=0.0).value == 0.0
    with pytest.raises(DiagnosticsError, match=r"depends on the size of the gradient.*gradient_norm="):
        threshold(optimizer)


def test_one_rule_of_sam_keeps_the_units_of_the_hessian() -> None:
    model = Valley(_hessian(1.0))
    optimizer = SAM(model.parameters(), SGD, rho=0.3, lr=0.2)
    s = stability(model.objective(), optimizer, tol=1e-9)
    top = float(torch.linalg.eigvalsh(model.hessian)[-1])
    assert float(s.curvature) == pytest.approx(top, rel=1e-7)
    assert s.threshold == pytest.approx(threshold(optimizer, gradient_norm=SLOPE).value)
    assert s.rule.startswith("sam, λ(1+ρλ/‖g‖) in sgd: 2/η")
    assert not s.preconditioned


def test_sam_around_adam_is_adams_ratio_on_the_ascended_curvature() -> None:
    model = Valley(_hessian(1.0))
    optimizer = SAM(model.parameters(), Adam, rho=0.3, lr=0.2)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.base_optimizer.step()
    with torch.no_grad():
        model.x.zero_()
    H = model.hessian
    ascended = H + 0.3 / SLOPE * H @ H
    # One step of unit gradients: √v̂ = 1, and 1 − β1 corrects the first moment.
    expected = float(torch.linalg.eigvalsh(ascended)[-1]) / (1.0 - 0.9) / (38 / 0.2)
    assert float(stability(model.objective(), optimizer, tol=1e-9).ratio) == pytest.approx(expected, rel=1e-6)


def test_a_variant_of_sam_is_not_taken_for_sam() -> None:
    class GSAM(SAM):
        """Another gradient."""

    with pytest.raises(DiagnosticsError, match=r"not known here; given: GSAM"):
        threshold(GSAM([nn.Parameter(torch.zeros(2))], SGD, lr=0.1), gradient_norm=1.0)


def test_lookahead_is_named_and_looked_through() -> None:
    inner = SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    edge = threshold(Lookahead(inner, 5, 0.5))
    assert edge.value == pytest.approx(20 * (1 + 3 ** (1 / 5)) / 2, rel=1e-6)
    assert edge.rule == "lookahead (k=5, α=0.5) around sgd: 2/η × 1.123"
    assert threshold(Lookahead(inner, 6, 0.5)).value == pytest.approx(20, rel=1e-6)
    assert unwrap_optimizer(Lookahead(inner)) is inner


def _small_network(kind: Callable[..., Optimizer], **arguments: Any) -> tuple[nn.Module, Objective, Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 2, bias=False)).double()
    data = torch.randn(20, 4).double(), torch.randn(20, 2).double()
    optimizer = kind(model.parameters(), **arguments)
    loss = nn.MSELoss()
    for _ in range(3):
        optimizer.zero_grad()
        loss(model(data[0]), data[1]).backward()
        optimizer.step()
    return model, Objective(model, loss, data), optimizer


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        (Adam, {"lr": 0.01, "amsgrad": True}),
        (Lion, {"lr": 0.01}),
        (Muon, {"lr": 0.01}),
    ],
)
def test_a_trial_step_is_the_next_step_and_moves_nothing(kind: Any, arguments: dict[str, Any]) -> None:
    model, objective, optimizer = _small_network(kind, **arguments)
    schedule = StepLR(optimizer, 1)
    fired: list[int] = []
    optimizer.register_step_post_hook(lambda *_: fired.append(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    planned = trial_step(objective, optimizer)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not fired
    optimizer.zero_grad()
    nn.MSELoss()(model(objective.batches[0][0]), objective.batches[0][1]).backward()
    optimizer.step()
    schedule.step()
    taken = torch.cat([(tensor - before[name]).flatten() for name, tensor in model.state_dict().items()])
    assert torch.allclose(planned, taken, rtol=1e-9, atol=1e-15)
    assert fired == [1]


@pytest.mark.parametrize("kind", [Lion, Muon])
def test_without_a_rule_the_ratio_is_that_of_a_step(kind: Any) -> None:
    _, objective, optimizer = _small_network(kind, lr=0.01)
    s = stability(objective, optimizer)
    assert s.rule == f"realised update of {kind.__name__}: ΔᵀHΔ / (−g·Δ) against 2"
    assert s.restart is None
    assert f"{kind.__name__} has no curvature threshold" in s.note
    step = trial_step(objective, optimizer)

    theta = objective.space.flatten(objective.space.values())

    def loss(share: float) -> float:
        return objective.loss_at(objective.space.unflatten(theta + share * step))

    # The quadratic model along the step, from three values of the loss.
    slope, curved = (loss(0.01) - loss(-0.01)) / 0.02, (loss(0.01) - 2 * loss(0.0) + loss(-0.01)) / 0.01**2
    assert float(s.ratio) == pytest.approx(curved / (-2 * slope), rel=1e-3)


def test_an_optimizer_that_needs_a_closure_says_what_to_do() -> None:
    _, objective, _ = _small_network(SGD, lr=0.1)
    optimizer = torch.optim.LBFGS(objective.model.parameters())
    with pytest.raises(DiagnosticsError, match=r"copy of the optimizer cannot take a step.*LBFGS.*critical_sharpness"):
        stability(objective, optimizer)


def test_wrappers_that_change_steps_are_named_from_the_outside_in_with_their_settings() -> None:
    def model() -> nn.Module:
        return nn.Linear(1, 1)

    class Passing(Optimizer):
        """As accelerate's: every step is passed on."""

        def __init__(self, inner: Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.optimizer = inner
            self.param_groups = inner.param_groups

        def step(self, closure: Any = None) -> Any:
            return self.optimizer.step(closure)

    plain = SGD(model().parameters(), lr=0.1)
    sam = SAM(model().parameters(), SGD, rho=0.3, lr=0.1)
    assert wrappers_around(plain) == wrappers_around(Passing(plain)) == []
    assert wrappers_around(sam) == [("SAM", {"rho": 0.3})]
    assert wrappers_around(Passing(sam)) == [("SAM", {"rho": 0.3})]
    [(name, settings)] = wrappers_around(Lookahead(plain, 5, 0.5))
    assert (name, settings) == ("Lookahead", {"k": 5, "alpha": 0.5})
    del sam.param_groups[0]["rho"]
    assert wrappers_around(sam) == [("SAM", {})], "a setting kept elsewhere is left out"
