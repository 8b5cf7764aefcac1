"""The stability ratio is 1 where the real optimizer stops contracting, also when parameter groups differ."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from diagnostics import DiagnosticsError, Hessian, Objective, sharpness, stability
from tests.cases import mlp
from tests.reference.optimizer_simulation import SETTLED, freeze_second_moment, grows, prepare


class Quadratic(nn.Module):
    """½ θᵀHθ in two tensors."""

    def __init__(self, hessian: Tensor) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.second = nn.Parameter(torch.zeros(len(hessian) - 2, 1, dtype=torch.float64))
        self.hessian = hessian

    def objective(self) -> Objective:
        def loss(model: Quadratic, scale: Tensor) -> Tensor:
            theta = torch.cat([model.first, model.second.reshape(-1)])
            return scale.mean() * 0.5 * theta @ model.hessian @ theta

        return Objective.from_loss(self, loss, [torch.ones(1, dtype=torch.float64)])


def _hessian(size: int = 5) -> Tensor:
    root = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return root @ root.T


def _groups(model: Quadratic, kind: type[Optimizer], first: dict[str, object], second: dict[str, object]) -> Optimizer:
    return kind([{"params": [model.first], **first}, {"params": [model.second], **second}])


JOINT = {
    "sgd: rates": (SGD, {"lr": 0.1}, {"lr": 0.02}),
    "sgd: momentum against nesterov": (
        SGD,
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.05, "momentum": 0.6, "nesterov": True},
    ),
    "sgd: decay in one group": (SGD, {"lr": 0.1, "weight_decay": 2.0}, {"lr": 0.1, "momentum": 0.5}),
    "adam: rates and betas": (Adam, {"lr": 0.1, "betas": (0.5, 0.9)}, {"lr": 0.01}),
    "adam: coupled decay": (Adam, {"lr": 0.1, "weight_decay": 0.5}, {"lr": 0.05}),
    "adamw: decays": (AdamW, {"lr": 0.1, "weight_decay": 5.0}, {"lr": 0.1, "weight_decay": 0.0}),
    "rmsprop: momentum": (RMSprop, {"lr": 0.1, "momentum": 0.9}, {"lr": 0.1}),
    "one rule for all": (Adam, {"lr": 0.1}, {"lr": 0.1}),
}


@pytest.mark.parametrize("name", JOINT)
def test_ratio_one_is_the_joint_edge_of_groups_that_differ(name: str) -> None:
    kind, first, second = JOINT[name]
    moments = {"first": torch.tensor([0.04, 1.0]).double(), "second": torch.tensor([[0.5], [0.01], [2.0]]).double()}

    def built(scale: float) -> tuple[Quadratic, Optimizer, Callable[..., None] | None]:
        model = Quadratic(scale * _hessian())
        optimizer = _groups(model, kind, first, second)
        prepare(optimizer, model.parameters())
        by_id = {id(getattr(model, key)): moment for key, moment in moments.items()}

        def freeze(running: Optimizer, parameter: nn.Parameter, ahead: bool = True) -> None:
            freeze_second_moment(running, parameter, by_id[id(parameter)], ahead=ahead)

        return model, optimizer, None if kind is SGD else freeze

    def ratio(scale: float) -> float:
        model, optimizer, freeze = built(scale)
        if freeze is not None:
            for parameter in model.parameters():
                freeze(optimizer, parameter, ahead=False)
        return float(stability(model.objective(), optimizer, tol=1e-9).ratio)

    low, high = 1e-3, 1e4
    while high / low > 1.0001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if ratio(middle) < 1 else (low, middle)
    for scale, expected in ((0.985 * low, False), (1.015 * high, True)):
        model, optimizer, freeze = built(scale)
        assert grows(optimizer, list(model.parameters()), model.hessian, freeze) is expected


def test_one_rule_gives_curvature_and_threshold_in_the_fields_units() -> None:
    H = _hessian()
    model = Quadratic(H)
    top = float(torch.linalg.eigvalsh(H)[-1])
    s = stability(model.objective(), SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2.0), tol=1e-8)
    assert float(s.curvature) == pytest.approx(top, rel=1e-8)
    assert s.threshold == pytest.approx(38.0 - 2.0)
    assert float(s.ratio) == pytest.approx((top + 2.0) / 38.0, rel=1e-8)
    assert (s.preconditioned, s.converged, s.note) == (False, True, "")
    assert "(2+2β)/η − λ" in str(s)
    assert "1 is the edge" in str(s)
    assert repr(s) == f"Stability({s})"


def test_a_diagonal_quadratic_with_chosen_second_moments_is_exact() -> None:
    """Adam at t = 3 by hand: bias corrections and ε as torch applies them, from a state that torch wrote."""
    h = torch.tensor([3.0, 40.0, 1e3, 0.1, 7.0], dtype=torch.float64)
    model = Quadratic(torch.diag(h))
    optimizer = Adam(model.parameters(), lr=0.01, eps=1e-3, betas=(0.9, 0.99))
    prepare(optimizer, model.parameters())
    v = torch.tensor([0.3, 4.0, 1e4, 1e-8, 0.02], dtype=torch.float64)
    optimizer.state[model.first]["exp_avg_sq"].copy_(v[:2])
    optimizer.state[model.second]["exp_avg_sq"].copy_(v[2:, None])
    for parameter in model.parameters():
        optimizer.state[parameter]["step"].fill_(3.0)
    divisor = ((v / (1 - 0.99**3)).sqrt() + 1e-3) * (1 - 0.9**3)
    expected = float((h / divisor).max())
    s = stability(model.objective(), optimizer, tol=1e-10)
    assert float(s.curvature) == pytest.approx(expected, rel=1e-10)
    assert s.threshold == pytest.approx(3800.0)
    assert float(s.ratio) == pytest.approx(expected / 3800, rel=1e-10)
    assert s.preconditioned


def test_amsgrad_and_centred_rmsprop_use_the_moment_that_torch_divides_by() -> None:
    h = torch.tensor([3.0, 40.0, 5.0], dtype=torch.float64)
    for kind, settings, state, moment in (
        (Adam, {"amsgrad": True}, {"exp_avg_sq": 1.0, "max_exp_avg_sq": 9.0, "step": SETTLED}, 9.0),
        (RMSprop, {"centered": True}, {"square_avg": 1.0, "grad_avg": 0.6}, 0.64),
    ):
        model = Quadratic(torch.diag(h))
        optimizer = kind(model.parameters(), lr=0.01, eps=0.0, **settings)
        for parameter in model.parameters():
            optimizer.state[parameter] = {key: torch.full_like(parameter, value) for key, value in state.items()}
            if "step" in state:
                optimizer.state[parameter]["step"] = torch.tensor(SETTLED)
        s = stability(model.objective(), optimizer, tol=1e-9)
        assert float(s.curvature) == pytest.approx(40 / moment**0.5, rel=1e-9)


def test_deep_linear_chain() -> None:
    """Three balanced layers with product 2: λmax = L s^(2−2/L)."""
    chain = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(3)]).double()
    for layer in chain:
        nn.init.constant_(layer.weight, 2 ** (1 / 3))
    x = torch.ones(4, 1, dtype=torch.float64)
    objective = Objective(chain, lambda outputs, targets: 0.5 * (outputs - targets).square().mean(), (x, 2 * x))
    pairs = sharpness(objective, tol=1e-8)
    estimate = pairs.estimate()
    assert float(estimate) == pytest.approx(3 * 2 ** (4 / 3), rel=1e-9)
    assert float(estimate) == pytest.approx(7.55953, abs=1e-5)
    assert pairs.converged
    assert pairs.how.startswith("Lanczos, ")
    assert pairs.how.endswith(f"; {objective.description}")
    assert repr(pairs) == f"Eigenpairs({pairs})", "no tensors in a notebook"
    assert repr(pairs).startswith("Eigenpairs(7.5595 ± 0.0001 (Lanczos, ")
    assert float(stability(objective, SGD(chain.parameters(), lr=0.2)).ratio) == pytest.approx(0.755953, abs=1e-5)


def _trained(kind: Callable[..., Optimizer], **settings: object) -> tuple[Objective, Optimizer]:
    model, data = mlp(), (torch.randn(12, 3), torch.randn(12, 2))
    optimizer = kind(model.parameters(), lr=0.01, **settings)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(data[0]), data[1]).backward()
        optimizer.step()
    return Objective(model, nn.MSELoss(), data), optimizer


def test_fused_and_foreach_states_are_read_like_plain_ones() -> None:
    ratios = []
    for settings in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        torch.manual_seed(0)
        ratios.append(float(stability(*_trained(AdamW, **settings), tol=1e-5).ratio))
    assert ratios[1:] == pytest.approx([ratios[0]] * 2, rel=1e-4)


def test_a_zero_learning_rate_is_never_at_the_edge() -> None:
    objective, optimizer = _trained(SGD)
    optimizer.param_groups[0]["lr"] = 0.0
    s = stability(objective, optimizer)
    assert float(s.ratio) == 0.0
    assert s.threshold == float("inf")
    assert not s.curvature.determined


def test_a_warm_start_and_a_shared_hessian_change_nothing_but_the_cost() -> None:
    objective, optimizer = _trained(SGD)
    hessian = Hessian(objective)
    cold = stability(objective, optimizer, hessian=hessian, tol=1e-4)
    warm = stability(objective, optimizer, hessian=hessian, tol=1e-4, start=cold.restart)
    assert float(warm.ratio) == pytest.approx(float(cold.ratio), rel=1e-3)
    assert hessian.matvecs == cold.matvecs + warm.matvecs


def test_partial_coverage_is_a_lower_bound_and_frozen_tensors_are_no_part_of_it() -> None:
    objective, optimizer = _trained(SGD)
    part = Objective(objective.model, nn.MSELoss(), objective.batches, params="2.*")
    s = stability(part, optimizer)
    assert s.note == "2 of the optimizer's 4 trainable parameters are not in the objective: a lower bound"
    assert float(s.ratio) <= float(stability(objective, optimizer).ratio) * 1.001
    objective.model[0].requires_grad_(False)
    assert stability(Objective(objective.model, nn.MSELoss(), objective.batches), optimizer).note == ""


def test_parameters_the_optimizer_does_not_hold_do_not_move() -> None:
    objective, _ = _trained(SGD)
    only_head = SGD(objective.model[2].parameters(), lr=0.1)
    head = Objective(objective.model, nn.MSELoss(), objective.batches, params="2.*")
    both = [float(stability(chosen, only_head, tol=1e-6).ratio) for chosen in (objective, head)]
    assert both[0] == pytest.approx(both[1], rel=1e-4)


def test_a_parameter_without_a_gradient_so_far_is_not_moved_by_adam() -> None:
    objective, optimizer = _trained(Adam)
    late = nn.Linear(2, 2)
    objective.model.append(late)
    optimizer.add_param_group({"params": late.parameters()})
    assert float(stability(Objective(objective.model, nn.MSELoss(), objective.batches), optimizer).ratio) > 0


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: (_trained(SGD)[0], Adam(mlp().parameters())), "holds none of the objective's parameters.*same module"),
        (
            lambda: (o := _trained(SGD)[0], Adam(o.model.parameters())),
            "no preconditioner yet.*Adam.*'0.weight'.*one opt",
        ),
        (
            lambda: (o := _trained(SGD)[0], torch.optim.Adagrad(o.model.parameters())),
            "no preconditioner yet.*Adagrad without state for '0.weight'.*one opt",
        ),
    ],
)
def test_refusals(build: Callable[[], tuple[Objective, Optimizer]], words: str) -> None:
    with pytest.raises(DiagnosticsError, match=words):
        stability(*build())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (0.0, "is not positive; given: eps=0"),
        (float("nan"), "is not finite; given: a second moment that makes 2 of 2 values"),
        (float("inf"), "is not finite; given: a second moment that makes 2 of 2 values"),
    ],
)
def test_a_damaged_second_moment_is_refused(damage: float, words: str) -> None:
    objective, optimizer = _trained(partial(RMSprop, eps=0.0))
    assert float(stability(objective, optimizer).ratio) > 0
    optimizer.state[objective.model[2].bias]["square_avg"].fill_(damage)
    with pytest.raises(DiagnosticsError, match=f"preconditioner of '2.bias' {words}"):
        stability(objective, optimizer)


def test_near_the_edge_every_direction_at_it_is_followed() -> None:
    ratios = torch.tensor([1.2, 1.1, 1.1, 0.95, 0.91, 0.6, 0.3, 0.1], dtype=torch.float64)
    model = Quadratic(torch.diag(20 * ratios))
    s = stability(model.objective(), SGD(model.parameters(), lr=0.1), tol=1e-6, near=0.9)
    assert [round(float(ratio), 4) for ratio in s.tracked] == [1.2, 1.1, 1.1, 0.95, 0.91]
    assert (s.directions(), s.directions(1.0)) == (5, 3)
    far = stability(model.objective(), SGD(model.parameters(), lr=0.01), tol=1e-6, near=0.9)
    assert [round(float(ratio), 4) for ratio in far.tracked] == [0.12]
    assert far.directions() == 0


def test_directions_that_come_along_are_told_and_never_too_many() -> None:
    ratios = torch.cat([torch.tensor([1.2, 1.0]), torch.linspace(0.0, 0.5, 60)]).double()
    model = Quadratic(torch.diag(20 * ratios))
    s = stability(model.objective(), SGD(model.parameters(), lr=0.1), tol=1e-3)
    assert s.directions() == 2
    assert all(min(abs(float(ratio) - ratios)) <= ratio.error + 1e-9 for ratio in s.tracked)
