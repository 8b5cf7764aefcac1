"""Batch sharpness is its enumeration, in closed form where there is one; its interval covers; nothing is touched."""

from __future__ import annotations

import copy
import math
import random
import sys
from collections.abc import Callable
from typing import ClassVar

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from diagnostics import (
    DiagnosticsError,
    Hessian,
    Objective,
    batch_ladder,
    batch_sharpness,
    gradient_noise_interaction,
    stability,
    threshold,
)
from diagnostics.minibatches import Minibatches
from diagnostics.stability.minibatch_curvature import Directions, MinibatchCurvature
from diagnostics.stability.preconditioner import scaling
from tests.cases import WEIGHT_NORM, WHOLE_BATCH_CASES
from tests.cases.case import Case
from tests.reference.minibatch_enumeration import batch_sharpness_twin, gradient, rows, scaled_sharpness_twin

Pair = tuple[Tensor, Tensor]


def _regression(examples: int = 20, seed: int = 0) -> tuple[nn.Module, Pair, Objective]:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(0.6 * torch.randn(tensor.shape, generator=generator))
    x = torch.randn(examples, 3, generator=generator, dtype=torch.float64)
    batch = (x, x[:, :1] * x[:, 1:2])
    return model, batch, Objective(model, nn.MSELoss(), [batch])


def _plain(model: nn.Module, batch: Pair) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def _trained(model: nn.Module, batch: Pair, optimizer: Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        _plain(model, rows(batch, [step, step + 1])).backward()
        optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("case", WHOLE_BATCH_CASES, ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["one batch", "ragged"])
def test_all_minibatches_give_the_enumeration(case: Case, ragged: bool) -> None:
    model, whole = case.build()
    size = 7 if case.name in ("gpt2", "bert") else 2
    measured = batch_sharpness(case.objective(ragged=ragged), size)
    expected = batch_sharpness_twin(model, case.plain_loss, whole, size)
    assert measured.value.value == pytest.approx(expected, rel=max(1e-9, 10.0 ** (1 - case.digits)))
    assert (measured.value.kind, measured.draws, measured.converged) == ("exact", math.comb(8, size), True)
    assert measured.matvecs == measured.draws
    assert measured.ratio is measured.momentum is measured.threshold is None


def test_a_model_whose_double_backward_is_wrong_is_differenced() -> None:
    model, whole = WEIGHT_NORM.build()
    measured = batch_sharpness(WEIGHT_NORM.objective(), 6)
    expected = batch_sharpness_twin(model, WEIGHT_NORM.plain_loss, whole, 6, differenced=True)
    assert measured.value.value == pytest.approx(expected, rel=1e-6)
    assert "central differences" in measured.value.how


@pytest.mark.parametrize("size", [1, 3])
def test_linear_regression_with_its_closed_forms(size: int) -> None:
    """One example at a time, H = xxᵀ and g ∝ x: batch sharpness is the mean of ‖x‖², whatever the weights."""
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 1, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()

    def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (outputs - targets).square().mean()

    measured = float(batch_sharpness(Objective(model, half_squares, (x, y)), size).value)
    expected = batch_sharpness_twin(model, lambda m, b: half_squares(m(b[0]), b[1]), (x, y), size)
    assert measured == pytest.approx(expected, rel=1e-9)
    if size == 1:
        assert measured == pytest.approx(float(x.square().sum(1).mean()), rel=1e-12)
    doubled = batch_sharpness(Objective(model, nn.MSELoss(), (x, y)), size)
    assert float(doubled.value) == pytest.approx(2 * measured, rel=1e-9)
    summed = batch_sharpness(Objective(model, nn.MSELoss(reduction="sum"), (x, y)), size)
    assert float(summed.value) == pytest.approx(2 * size * measured, rel=1e-9), "a sum grows with the minibatch"


class Remembering(MinibatchCurvature):
    """Looks at no minibatch twice, so that hundreds of seeds are quick."""

    seen: ClassVar[dict[bytes, tuple[Tensor, list[Tensor]]]] = {}

    def __call__(self, minibatch: Objective, directions: Directions) -> tuple[Tensor, list[Tensor]]:
        rows_of = minibatch.batches[0][0].numpy().tobytes()
        if rows_of not in self.seen:
            self.seen[rows_of] = super().__call__(minibatch, directions)
        return self.seen[rows_of]


def test_intervals_of_draws_cover_the_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 95 %, over 400 seeds, with the early stop; four standard deviations of the share are .044 (seen: .952)."""
    _, _, objective = _regression(12)
    # Reached by its name: as an attribute, ``diagnostics.batch_sharpness`` is the function.
    monkeypatch.setattr(sys.modules["diagnostics.stability.batch_sharpness"], "MinibatchCurvature", Remembering)
    truth = batch_sharpness(objective, 3)
    assert truth.value.kind == "exact"
    found = [batch_sharpness(objective, 3, rtol=0.08, max_draws=200, seed=seed) for seed in range(400)]
    assert {measured.value.kind for measured in found} == {"standard error"}
    assert len({measured.draws for measured in found}) > 2, "they stop where they have to"
    inside = [low <= float(truth.value) <= high for low, high in (measured.value.interval() for measured in found)]
    assert 0.906 <= sum(inside) / len(inside) <= 0.994
    mean = sum(float(measured.value) for measured in found) / len(found)
    assert mean == pytest.approx(float(truth.value), rel=0.01), "and they are not off to one side"


def test_sgd_settles_at_the_edge_and_full_batch_sharpness_below_it() -> None:
    """Two rates, both at 1 (seen: .99 to 1.17 and .89 to 1.11) with λmax at .7; and one too small to get there."""
    seen = {}
    for rate in (0.5, 0.3, 0.02):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(20, 48, bias=False),
            nn.Tanh(),
            nn.Linear(48, 48, bias=False),
            nn.Tanh(),
            nn.Linear(48, 5, bias=False),
        )
        x, y = torch.randn(200, 20), torch.eye(5)[torch.randint(5, (200,))]
        optimizer = SGD(model.parameters(), lr=rate)

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return 0.5 * (outputs - targets).square().sum(1).mean()

        objective = Objective(model, loss, (x, y))
        ratios, largest = [], []
        for step in range(1, 3001):
            chosen = torch.randperm(200)[:16]
            optimizer.zero_grad()
            loss(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            if step >= 2000 and step % 250 == 0:
                ratios.append(float(batch_sharpness(objective, 16, optimizer=optimizer, rtol=0.05).ratio))
                largest.append(float(stability(objective, optimizer, tol=1e-2).ratio))
        seen[rate] = (sum(ratios) / len(ratios), max(largest))
    for rate in (0.5, 0.3):
        assert seen[rate][0] == pytest.approx(1.0, abs=0.15)
        assert seen[rate][1] < 0.8
    assert seen[0.02][0] < 0.5


def test_more_draws_until_the_error_is_small_and_no_more_than_allowed() -> None:
    _, _, objective = _regression(40)
    coarse, fine = (batch_sharpness(objective, 4, rtol=rtol, max_draws=3000) for rtol in (0.2, 0.02))
    assert coarse.draws == 30
    assert fine.draws > 100
    for measured, rtol in ((coarse, 0.2), (fine, 0.02)):
        assert measured.converged
        assert 0 < measured.value.error <= rtol * float(measured.value)
    capped = batch_sharpness(objective, 4, rtol=1e-6, max_draws=40)
    assert (capped.draws, capped.converged) == (40, False)


def test_the_same_seed_gives_the_same_number_and_another_does_not() -> None:
    _, _, objective = _regression(40)
    first, again, other = (batch_sharpness(objective, 4, max_draws=60, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first.value.value != other.value.value


@pytest.mark.parametrize("size", [1, 2])
def test_tiny_minibatches_are_said_to_have_heavy_tails(size: int) -> None:
    _, _, objective = _regression(40)
    assert "heavy tails" in batch_sharpness(objective, size, max_draws=35).value.how
    assert "heavy tails" not in batch_sharpness(objective, 8, max_draws=35).value.how


def test_one_minibatch_in_a_hundred_that_makes_the_mean_is_said_to() -> None:
    x = torch.ones(400, 1, dtype=torch.float64)
    x[0] = 100.0
    objective = Objective(nn.Linear(1, 1).double(), nn.MSELoss(), (x, torch.zeros_like(x)))
    seeds = [batch_sharpness(objective, 4, max_draws=100, seed=seed).value for seed in range(6)]
    met = [estimate for estimate in seeds if float(estimate) > 10]
    assert met, "some seed meets the example"
    assert all("heavy tails" in estimate.how for estimate in met)


def test_the_full_batch_is_the_curvature_along_the_gradient() -> None:
    model, _, objective = _regression()
    g = objective.gradient()
    measured = batch_sharpness(objective, 20, optimizer=SGD(model.parameters(), lr=0.1))
    assert measured.value.kind == "exact"
    assert float(measured.value) == pytest.approx(float(g @ (Hessian(objective) @ g)) / float(g @ g), rel=1e-9)
    assert measured.draws == 1


def test_without_momentum_the_ratio_is_the_value_over_two_over_eta() -> None:
    model, _, objective = _regression()
    measured = batch_sharpness(objective, 3, optimizer=SGD(model.parameters(), lr=0.3), max_draws=50)
    assert measured.ratio is not None
    assert float(measured.ratio) == pytest.approx(float(measured.value) * 0.3 / 2, rel=1e-12)
    assert measured.ratio.error == pytest.approx(measured.value.error * 0.3 / 2, rel=1e-9)
    assert (measured.threshold, measured.rule) == (pytest.approx(2 / 0.3), "sgd: 2/η")
    assert measured.momentum is None
    assert str(measured).startswith("batch sharpness ")
    assert "[sgd: 2/η]" in str(measured)


def test_decay_in_the_optimizer_is_decay_in_the_loss() -> None:
    model, batch, objective = _regression(8)
    decayed = batch_sharpness(objective, 3, optimizer=SGD(model.parameters(), lr=0.3, weight_decay=0.2))

    def with_decay(module: nn.Module, pair: Pair) -> Tensor:
        return _plain(module, pair) + 0.1 * sum(p.square().sum() for p in module.parameters())

    written = Objective.from_loss(model, with_decay, [batch])
    same = batch_sharpness(written, 3, optimizer=SGD(model.parameters(), lr=0.3))
    assert decayed.ratio is not None
    assert same.ratio is not None
    assert float(decayed.ratio) == pytest.approx(float(same.ratio), rel=1e-9)
    assert float(decayed.value) == pytest.approx(float(batch_sharpness(objective, 3).value), rel=1e-12)


@pytest.mark.parametrize(
    ("make", "decay"),
    [
        (lambda parameters: Adam(parameters, lr=0.01), 0.0),
        (lambda parameters: Adam(parameters, lr=0.01, weight_decay=0.1), 0.1),
        (lambda parameters: AdamW(parameters, lr=0.01, weight_decay=0.1), 0.0),
        (lambda parameters: SGD([{"params": [next(parameters)], "lr": 0.1}, {"params": parameters}], lr=0.3), 0.0),
    ],
    ids=["Adam", "Adam with decay", "AdamW", "SGD with two rates"],
)
def test_the_ratio_is_in_the_coordinates_of_the_optimizer(make: Callable[[object], Optimizer], decay: float) -> None:
    model, batch, objective = _regression(8)
    optimizer = make(model.parameters())
    _trained(model, batch, optimizer)
    measured = batch_sharpness(objective, 3, optimizer=optimizer)
    squares = scaling(optimizer, objective.space).root.square()
    expected = scaled_sharpness_twin(model, _plain, batch, 3, squares, decay)
    assert measured.ratio is not None
    assert float(measured.ratio) == pytest.approx(expected, rel=1e-9)
    if len(optimizer.param_groups) == 1:
        assert measured.threshold == threshold(optimizer).value
    else:
        assert measured.threshold == 1.0


@pytest.mark.parametrize(
    "settings",
    [{}, {"nesterov": True}, {"dampening": 0.4}, {"weight_decay": 0.1}, {"nesterov": True, "weight_decay": 0.1}],
    ids=str,
)
def test_the_momentum_quotient_is_along_the_step_that_torch_takes(settings: dict[str, float]) -> None:
    """The twin lets a copy of the optimizer take the step on each minibatch."""
    model, batch, objective = _regression(8)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.5, **settings)
    _trained(model, batch, optimizer)
    decay, quotients, slopes = settings.get("weight_decay", 0.0), [], []
    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    for minibatch in Minibatches(objective, 5).every():
        twin, mover = copy.deepcopy((model, optimizer))
        _plain(twin, minibatch.batches[0]).backward()
        mover.step()
        taken = (start - torch.cat([p.detach().reshape(-1) for p in twin.parameters()])) / 0.01
        g = gradient(model, lambda pair=minibatch.batches[0]: _plain(model, pair)) + decay * start
        curved = Hessian(minibatch) @ taken + decay * taken
        slopes.append(float(taken @ g))
        quotients.append(float(taken @ curved) / slopes[-1])
    measured = batch_sharpness(objective, 5, optimizer=optimizer).momentum
    assert measured is not None
    assert min(slopes) > 0, "this test is about steps that all lead down"
    assert float(measured) == pytest.approx(sum(quotients) / len(quotients), rel=1e-7)


def test_momentum_that_leads_uphill_has_no_mean_and_says_so() -> None:
    model, _, objective = _regression(8)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    assert "no momentum buffer yet" in batch_sharpness(objective, 3, optimizer=optimizer).momentum.how
    for tensor in model.parameters():
        optimizer.state[tensor]["momentum_buffer"] = 100 * torch.randn_like(tensor)
    measured = batch_sharpness(objective, 3, optimizer=optimizer)
    assert not measured.momentum.determined
    assert "uphill on" in measured.momentum.how
    assert "median quotient" in measured.momentum.how
    assert measured.value.determined
    assert measured.ratio.determined
    two = SGD([{"params": [p], "lr": 0.1 * i} for i, p in enumerate(model.parameters(), 1)], lr=1.0, momentum=0.9)
    two.state.update(optimizer.state)
    assert "groups differ" in batch_sharpness(objective, 3, optimizer=two).momentum.how


def test_examples_without_a_gradient_are_left_out_and_counted() -> None:
    """A ReLU that is off for some examples; and one that is off for all."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    x = torch.tensor([[1.0], [2.0], [-1.0], [-3.0]])
    some = batch_sharpness(Objective(model, nn.MSELoss(), (x, torch.full_like(x, 5.0))), 1)
    assert float(some.value) == pytest.approx(2 * (1 + 4) / 2)
    assert "2 minibatches without a gradient are left out" in some.value.how
    none = batch_sharpness(Objective(model, nn.MSELoss(), (-x.abs(), x)), 1)
    assert not none.value.determined
    assert "no minibatch has a gradient" in none.value.how


def test_dropout_in_train_mode_has_the_same_masks_on_every_call() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1)).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    train, calm = (Objective(model, nn.MSELoss(), (x, y), mode=mode) for mode in ("train", "eval"))
    first, again = batch_sharpness(train, 3), batch_sharpness(train, 3)
    assert first == again
    found = []
    for minibatch in Minibatches(train, 3).every():
        g = minibatch.gradient()
        found.append(float(g @ (Hessian(minibatch) @ g)) / float(g @ g))
    assert float(first.value) == pytest.approx(sum(found) / len(found), rel=1e-9)
    assert float(first.value) != pytest.approx(float(batch_sharpness(calm, 3).value), rel=1e-3)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    model, (x, y), _ = _regression(6)
    y[2] = math.nan
    with pytest.raises(DiagnosticsError, match="loss of a minibatch or its gradient is not finite"):
        batch_sharpness(Objective(model, nn.MSELoss(), (x, y)), 2)
    with torch.no_grad():
        next(model.parameters()).fill_(math.inf)
    with pytest.raises(DiagnosticsError, match="not finite"):
        batch_sharpness(Objective(model, nn.MSELoss(), (x, x[:, :1])), 2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"batch_size": 21}, "batch_size is larger"),
        ({"batch_size": 0}, "batch_size is not"),
        ({"batch_size": 2, "rtol": 0.0}, "rtol is not positive"),
        ({"batch_size": 2, "rtol": math.nan}, "rtol is not positive"),
        ({"batch_size": 2, "max_draws": 1}, "max_draws is not"),
    ],
)
def test_bad_arguments_are_named(settings: dict[str, object], named: str) -> None:
    _, _, objective = _regression()
    with pytest.raises(DiagnosticsError, match=named):
        batch_sharpness(objective, **settings)


def test_an_optimizer_without_a_rule_or_of_another_model_is_refused() -> None:
    model, _, objective = _regression()
    with pytest.raises(DiagnosticsError, match="Rprop"):
        batch_sharpness(objective, 3, optimizer=torch.optim.Rprop(model.parameters()))
    with pytest.raises(DiagnosticsError, match="none of the objective's parameters"):
        batch_sharpness(objective, 3, optimizer=SGD(nn.Linear(1, 1).parameters(), lr=0.1))


MEASURES: dict[str, Callable[[Objective, Optimizer], object]] = {
    "batch sharpness": lambda objective, optimizer: batch_sharpness(objective, 4, optimizer=optimizer, max_draws=35),
    "noise interaction": lambda objective, optimizer: gradient_noise_interaction(objective, 4, draws=5),
    "ladder": lambda objective, optimizer: batch_ladder(objective, [4, 12], draws=2),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("fails", [False, True], ids=["healthy", "with an error"])
def test_nothing_observable_has_changed_afterwards(name: str, mode: str, fails: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2))
    model[4].bias.requires_grad_(False)
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9, weight_decay=0.01)
    x, y = torch.randn(12, 3), torch.randint(2, (12,))
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    if fails:
        x[5] = math.nan
    objective = Objective(model, nn.CrossEntropyLoss(), [(x[:7], y[:7]), (x[7:], y[7:])], mode=mode)

    def state() -> list[object]:
        return [
            *((p.requires_grad, p._version, p.data_ptr(), p.tolist(), p.grad) for p in model.parameters()),
            *((b._version, b.tolist()) for b in model.buffers()),
            *((m.training, len(m._forward_hooks), len(m._backward_hooks)) for m in model.modules()),
            repr(optimizer.state_dict()),
            torch.get_rng_state().numpy().tobytes(),
            random.getstate(),
            numpy.random.get_state()[1].tobytes(),
            [batch[0].tolist() for batch in objective.batches],
            torch.is_grad_enabled(),
        ]

    before, result = repr(state()), None
    try:
        result = MEASURES[name](objective, optimizer)
    except DiagnosticsError:
        assert fails
    assert (result is None) is fails
    assert repr(state()) == before


def test_a_caller_in_inference_mode_or_autocast_gets_the_same() -> None:
    model, batch, objective = _regression(20)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    _trained(model, batch, optimizer)
    plain = batch_sharpness(objective, 3, optimizer=optimizer, max_draws=40)
    with torch.inference_mode():
        inferring = batch_sharpness(objective, 3, optimizer=optimizer, max_draws=40)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        casting = batch_sharpness(objective, 3, optimizer=optimizer, max_draws=40)
    assert repr(plain) == repr(inferring) == repr(casting)
    assert plain.value == inferring.value == casting.value
