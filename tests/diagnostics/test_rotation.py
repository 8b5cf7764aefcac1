"""Angles against Kahan's formula term by term; equilibria against torch's optimizers on random gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from diagnostics import DiagnosticsError, equilibrium_rotation, rotation
from tests.reference.optimizers import Lookahead
from tests.reference.rotation_walk import Lion, angle, settled_walk

Build = Callable[[list[nn.Parameter]], Optimizer]


def _turned(w: torch.Tensor, by: float) -> torch.Tensor:
    """Every row turned by the angle towards a random direction orthogonal to it, its length kept."""
    side = torch.randn(w.shape, dtype=w.dtype)
    side = side - (side * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True) * w
    side = side / side.norm(dim=1, keepdim=True) * w.norm(dim=1, keepdim=True)
    return math.cos(by) * w + math.sin(by) * side


@pytest.mark.parametrize("by", [1e-6, 1e-5, 1e-3, 0.1, 1.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_planted_angle_is_found_down_to_a_millionth(by: float, dtype: torch.dtype) -> None:
    """In float32 an arc cosine sees nothing below 3e-4; what is left here is the rounding of the weights."""
    w = torch.randn(6, 2000, dtype=torch.float64)
    found = rotation(w.to(dtype), _turned(w, by).to(dtype))
    assert found.rows.value == pytest.approx(by, rel=2e-2 if (dtype, by) == (torch.float32, 1e-6) else 1e-3)
    assert found.whole.value == pytest.approx(by, rel=2e-2 if (dtype, by) == (torch.float32, 1e-6) else 1e-3)


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 2, 2), (9,), (300, 400)])
def test_angles_against_the_twin(shape: tuple[int, ...]) -> None:
    before = torch.randn(shape, dtype=torch.float64)
    after = before * 0.9 + 0.01 * torch.randn(shape, dtype=torch.float64)
    found = rotation(before, after)
    rows = zip(before.reshape(found.by_row.numel(), -1), after.reshape(found.by_row.numel(), -1), strict=True)
    expected = [angle(old.tolist(), new.tolist()) for old, new in rows]
    assert found.by_row.tolist() == pytest.approx(expected, rel=1e-9)
    assert found.rows.value == pytest.approx(math.sqrt(sum(x * x for x in expected) / len(expected)), rel=1e-9)
    assert found.whole.value == pytest.approx(angle(before.flatten().tolist(), after.flatten().tolist()), rel=1e-9)
    assert found.rows.kind == "spread"
    assert found.rows.error == pytest.approx(float(torch.tensor(expected).double().std(correction=0)), abs=1e-9)


def test_a_change_of_length_is_no_rotation_and_a_zero_row_has_none() -> None:
    w = torch.randn(3, 50)
    assert rotation(w, 0.999 * w).whole.value < 1e-7
    w[1] = 0
    found = rotation(w, w + 0.01)
    assert found.by_row.isfinite().tolist() == [True, False, True]
    assert found.rows.how.endswith("over 2 rows")
    assert not rotation(torch.zeros(2, 2), torch.ones(2, 2)).rows.determined
    assert rotation(w[:1], -w[:1]).whole.value == pytest.approx(math.pi)
    with pytest.raises(DiagnosticsError, match=r"not one weight at two times; given: shapes \(3, 50\) and \(3, 49\)"):
        rotation(w, w[:, :49])


def test_a_step_of_gradient_descent_on_an_invariant_weight_has_its_closed_form() -> None:
    """tan θ = η‖g‖/‖w‖ and ‖w'‖² = ‖w‖² + η²‖g‖², for the gradient is orthogonal to the weight."""
    layer = nn.Linear(30, 1, bias=False).double()
    x, y = torch.randn(20, 30).double(), torch.randn(20).double()
    optimizer = SGD(layer.parameters(), lr=0.5)
    nn.functional.mse_loss((x @ (layer.weight[0] / layer.weight[0].norm())).tanh(), y).backward()
    before, gradient = layer.weight.detach().clone(), layer.weight.grad.clone()
    optimizer.step()
    expected = math.atan(0.5 * float(gradient.norm()) / float(before.norm()))
    assert rotation(before, layer.weight).whole.value == pytest.approx(expected, rel=1e-12)
    square = float(before.norm()) ** 2 + 0.25 * float(gradient.norm()) ** 2
    assert float(layer.weight.detach().norm()) ** 2 == pytest.approx(square, rel=1e-13)


SGD_CASES: list[tuple[Build, float, float]] = [
    # The optimizer; F(1); √ of the angle's square over 2ηλ.
    (lambda p: SGD(p, lr=0.1, weight_decay=0.01), 1.0, 1.0),
    (lambda p: SGD(p, lr=0.01, momentum=0.9, weight_decay=0.04), 10.0, math.sqrt(1 / 1.9)),
    (lambda p: SGD(p, lr=0.04, momentum=0.9, dampening=0.5, weight_decay=0.04), 5.0, math.sqrt(0.5 / 1.9)),
    (lambda p: SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.04), 10.0, math.sqrt(1.342 / 1.9)),
    (lambda p: SGD(p, lr=0.02, momentum=0.5, nesterov=True, weight_decay=0.1), 2.0, math.sqrt(1.75 / 1.5)),
]


@pytest.mark.parametrize(("build", "at_one", "factor"), SGD_CASES)
def test_equilibrium_of_gradient_descent(build: Build, at_one: float, factor: float) -> None:
    """The walk begins where ‖w‖ = ‖g‖ √(ηF(1)/2λ), and must stay there."""
    optimizer = build([nn.Parameter(torch.ones(2))])
    (group,) = optimizer.param_groups
    (found,) = equilibrium_rotation(optimizer)
    assert found.rotation.value == pytest.approx(factor * math.sqrt(2 * group["lr"] * group["weight_decay"]), rel=1e-12)
    assert found.timescale.value == pytest.approx(1 / (group["lr"] * group["weight_decay"] * at_one))
    assert not found.weight_rms.determined
    scale = math.sqrt(2 * group["weight_decay"] / (group["lr"] * at_one))
    walked, size = settled_walk(build, steps=1500, measured=1000, scale=scale)
    assert walked == pytest.approx(found.rotation.value, rel=3e-3)
    assert size == pytest.approx(1.0, rel=5e-3)


@pytest.mark.parametrize("start", [0.5, 2.0])
def test_the_equilibrium_is_reached_from_both_sides_within_a_few_timescales(start: float) -> None:
    """What makes it an equilibrium: too short or too long, after three timescales the angle is the predicted one."""

    def build(p: list[nn.Parameter]) -> Optimizer:
        return AdamW(p, lr=0.02, weight_decay=0.2, betas=(0.9, 0.99))

    (found,) = equilibrium_rotation(build([nn.Parameter(torch.ones(2))]))
    assert found.timescale.value == pytest.approx(250)
    first, _ = settled_walk(build, steps=30, measured=20, start=start * found.weight_rms.value)
    last, _ = settled_walk(build, steps=1000, measured=250, start=start * found.weight_rms.value)
    assert abs(first / found.rotation.value - 1) > 0.25
    assert last == pytest.approx(found.rotation.value, rel=2e-2)


@pytest.mark.parametrize(
    ("build", "tolerance"),
    [
        (lambda p: AdamW(p, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99)), 2e-3),
        (lambda p: AdamW(p, lr=9e-3, weight_decay=0.1), 2e-3),
        (lambda p: RAdam(p, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99), decoupled_weight_decay=True), 1e-2),
        (lambda p: Lion(p, lr=1e-2, weight_decay=0.02), 1e-2),
    ],
)
def test_equilibrium_of_adaptive_steps(build: Build, tolerance: float) -> None:
    """Angle and size: √(ηd/2λ) for Adam's kind."""
    (found,) = equilibrium_rotation(build([nn.Parameter(torch.ones(2))]))
    walked, size = settled_walk(build, steps=4000, measured=2000, start=found.weight_rms.value, rows=8)
    assert walked == pytest.approx(found.rotation.value, rel=tolerance)
    assert size == pytest.approx(found.weight_rms.value, rel=2e-2)


def test_the_figures_of_the_source() -> None:
    """√(2ηλ) alone would be 4.36 times too large for AdamW at β1 = .9."""
    weights = [nn.Parameter(torch.ones(2))]
    plain = math.sqrt(2 * 1e-3 * 0.9)
    (adamw,) = equilibrium_rotation(AdamW(weights, lr=1e-3, weight_decay=0.9))
    assert adamw.rotation.value == pytest.approx(0.00973, rel=1e-3)
    assert plain / adamw.rotation.value == pytest.approx(4.36, rel=1e-3)
    assert adamw.weight_rms.value == pytest.approx(math.sqrt(1e-3 / 1.8), rel=1e-12)
    (lion,) = equilibrium_rotation(Lion(weights, lr=1e-3, weight_decay=0.9))
    energy = 0.1**2 + 0.81 * 0.01 / 1.99
    assert lion.rotation.value == pytest.approx(math.sqrt(math.pi / 2) * plain * math.sqrt(energy), rel=1e-12)


def test_nadam_settles_with_its_momentum_of_the_moment() -> None:
    def build(p: list[nn.Parameter]) -> Optimizer:
        return NAdam(p, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99), momentum_decay=1.0, decoupled_weight_decay=True)

    walked, _ = settled_walk(build, steps=3000, measured=1500, start=0.22, rows=8)
    w = nn.Parameter(torch.ones(2))
    optimizer = build([w])
    for _ in range(300):
        w.grad = torch.ones(2)
        optimizer.step()
    (found,) = equilibrium_rotation(optimizer)
    assert found.rotation.how == "√(2ηλ Σf²)/F(1), f of momentum"
    assert walked == pytest.approx(found.rotation.value, rel=5e-3)


class Unknown(Optimizer):
    """A step nobody knows."""


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda p: SGD(p, lr=0.1), "no equilibrium without decay: norms grow for ever"),
        (lambda p: AdamW(p, weight_decay=0.0), "no equilibrium without decay: norms grow for ever"),
        (lambda p: AdamW(p, lr=0.0), "the learning rate is zero"),
        (lambda p: SGD(p, lr=0.1, momentum=1.0, weight_decay=0.1), "momentum passes inf times"),
        (lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=1.0, weight_decay=0.1), "momentum passes 0 times"),
        (lambda p: Adam(p, weight_decay=0.1), "coupled decay is divided by √v̂ as gradients are"),
        (lambda p: RMSprop(p, weight_decay=0.1), "no formula is known for this step (rmsprop"),
        (lambda p: Unknown(p, {"lr": 0.1}), "no stability rule is known for this optimizer"),
    ],
)
def test_where_there_is_no_prediction_the_reason_is_said(build: Build, reason: str) -> None:
    (found,) = equilibrium_rotation(build([nn.Parameter(torch.ones(2))]))
    assert not found.rotation.determined
    assert not found.timescale.determined
    assert found.rotation.how.startswith(reason)
    assert reason in str(found)


def test_groups_have_their_own_equilibria_and_amsgrad_no_known_size() -> None:
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [first], "weight_decay": 0.4}, {"params": [second], "weight_decay": 0.0}]
    one, other = equilibrium_rotation(AdamW(groups, lr=1e-3, amsgrad=True))
    assert (one.group, other.group) == (0, 1)
    assert one.rotation.determined
    assert not other.rotation.determined
    assert "AMSGrad" in one.weight_rms.how


def test_an_optimizer_in_a_wrapper_has_no_known_equilibrium() -> None:
    """Lookahead with k = 6 leaves the edge of plain descent where it is, and pulls weights back all the same."""
    descent = SGD([nn.Parameter(torch.ones(2))], lr=0.1, weight_decay=0.01)
    assert equilibrium_rotation(descent)[0].rotation.determined
    (found,) = equilibrium_rotation(Lookahead(descent, k=6))
    assert found.rotation.how.startswith("no formula is known for this step (lookahead (k=6")


def test_complex_tensors_have_no_angle_here() -> None:
    tensor = torch.ones(2, 2, dtype=torch.complex64)
    with pytest.raises(DiagnosticsError, match=r"complex64.*real numbers"):
        rotation(tensor, 1j * tensor)
