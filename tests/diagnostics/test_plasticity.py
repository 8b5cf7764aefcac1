"""Plasticity is what a plain training loop on deep copies says; dead networks have none, trained ones keep it; what
cannot be compared says why.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from diagnostics import DiagnosticsError, Objective, churn, plasticity, quiet
from diagnostics.curvature.draws import random_stream
from diagnostics.units.random_targets import RandomTargets
from reports.demo.digits import digits
from tests.cases import CASES, TRAIN_BATCH_NORM
from tests.cases.case import Case
from tests.reference.plasticity_loops import best_constant, loss_after

Make = Callable[[], nn.Module]


def mlp(outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


def data(targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(len(targets), 4, dtype=torch.float64)
    return [(x[:7], targets[:7]), (x[7:], targets[7:])]


CLASSES = torch.randint(3, (12,), generator=torch.Generator().manual_seed(0))
NUMBERS = 5 + 2 * torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LOSSES = {
    "cross-entropy": (nn.CrossEntropyLoss(), CLASSES),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), CLASSES),
    "weighted": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)), CLASSES),
    "ignored": (nn.CrossEntropyLoss(ignore_index=1), CLASSES),
    "soft labels": (nn.CrossEntropyLoss(), torch.softmax(NUMBERS, 1)),
    "squared error": (nn.MSELoss(), NUMBERS),
    "huber": (nn.HuberLoss(), NUMBERS),
    "bits": (nn.BCEWithLogitsLoss(), (NUMBERS > 5).double()),
}


@pytest.mark.parametrize("unlearn", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_both_fits_are_those_of_a_plain_loop(name: str, unlearn: bool) -> None:
    criterion, targets = LOSSES[name]
    model, steps = mlp(), 9
    objective = Objective(model, criterion, data(targets))
    fresh: list[nn.Module] = []

    def make() -> nn.Module:
        fresh.append(mlp())
        return fresh[-1]

    measured = plasticity(objective, steps=steps, lr=0.05, fresh=make, unlearn=unlearn, draws=2, seed=5)
    stream, shares = random_stream(5), []
    for other in fresh:
        with quiet(model, "eval"):
            task = RandomTargets(objective, None, not unlearn).draw(stream)
            torch.randint(2**31, (), generator=stream)
        assert task.constant is not None
        ends = [
            loss_after(
                one,
                criterion,
                task.objective.batches,
                partial(torch.optim.Adam, lr=0.05),
                steps,
                centred=not unlearn,
                shares=task.objective.weights,
            )
            for one in (model, other)
        ]
        shares.append([(task.constant - end) / (task.constant - task.perfect) for end in ends])
    expected = torch.tensor(shares, dtype=torch.float64).mean(0).tolist()
    assert [float(measured.fitted), float(measured.fresh_fitted)] == pytest.approx(expected, rel=1e-9)
    assert float(measured.lost) == pytest.approx(expected[1] - expected[0], rel=1e-6, abs=1e-12)
    assert measured.gradients == 2 * 2 * steps
    assert (measured.accuracy is None) == (name in ("squared error", "huber", "bits"))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("huber", "ignored")])
def test_the_scale_begins_at_the_best_constant_prediction(name: str) -> None:
    """Of the Huber error the mean is not quite the best, and says so; ignored labels are in the test above."""
    criterion, targets = LOSSES[name]
    batch = (torch.randn(12, 4, dtype=torch.float64), targets)
    objective = Objective(mlp(), criterion, batch)
    with quiet(objective.model, "eval"):
        task = RandomTargets(objective, None, True).draw(random_stream(0))
    assert task.constant == pytest.approx(best_constant(criterion, task.objective.batches, 3), rel=1e-6)


def test_a_linear_model_is_always_as_good_as_new() -> None:
    """On X = √N·1 every step of descent shrinks the residual by 1 − 2η, from whatever weights."""
    model = nn.Linear(64, 1, bias=False).double()
    x, y = 8 * torch.eye(64, dtype=torch.float64), torch.randn(64, 1, dtype=torch.float64)
    objective = Objective(model, nn.MSELoss(), (x, y))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    measured = plasticity(objective, steps=3, optimizer=optimizer, draws=2)
    assert float(measured.ratio) == pytest.approx(1.0, rel=1e-9)
    stream, shares = random_stream(0), []
    for _ in range(2):
        with quiet(model, "eval"):
            task = RandomTargets(objective, None, True).draw(stream)
            torch.randint(2**31, (), generator=stream)
        drawn = task.objective.batches[0][1]
        shares.append(1 - 0.8**6 * float(drawn.square().mean() / drawn.var(correction=0)))
    assert float(measured.fitted) == pytest.approx(sum(shares) / 2, rel=1e-9)


def classifier(examples: int = 64) -> tuple[nn.Module, Objective]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4))
    return model, Objective(model, nn.CrossEntropyLoss(), (torch.randn(examples, 8), torch.randint(4, (examples,))))


def test_a_dead_layer_learns_nothing_and_a_new_network_everything() -> None:
    model, objective = classifier()
    new = plasticity(objective, steps=30, lr=1e-2, draws=3)
    assert new.ratio.interval()[0] < 1.05
    assert new.ratio.interval()[1] > 0.95
    assert new.accuracy is not None
    assert float(new.accuracy) > 0.8
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    dead = plasticity(objective, steps=30, lr=1e-2, draws=3)
    assert dead.ratio.interval()[1] < 0.3
    assert dead.lost.interval()[0] > 0.5
    assert "ratio" in str(dead)
    assert f"{2 * 3 * 30} gradients" in str(dead)


def test_a_trained_network_keeps_it_and_seems_to_lose_it_when_unlearning_counts() -> None:
    torch.manual_seed(0)
    images, labels = digits(200)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    objective = Objective(model, nn.CrossEntropyLoss(), (images, labels))
    kept = plasticity(objective, steps=60, lr=1e-2, draws=2)
    assert kept.ratio.value > 0.9
    counted = plasticity(objective, steps=60, lr=1e-2, draws=2, unlearn=True)
    assert counted.ratio.value < 0.9


def test_one_step_and_one_class_in_the_labels() -> None:
    model, _ = classifier()
    objective = Objective(model, nn.CrossEntropyLoss(), (torch.randn(32, 8), torch.zeros(32, dtype=torch.int64)))
    measured = plasticity(objective, steps=1, draws=2)
    assert measured.gradients == 4
    assert abs(measured.fitted.value) < 0.5
    lone = nn.Linear(8, 1)
    with pytest.raises(DiagnosticsError, match="one class only"):
        plasticity(Objective(lone, nn.CrossEntropyLoss(), (torch.randn(3, 8), torch.zeros(3, dtype=torch.int64))))
    with pytest.raises(DiagnosticsError, match="do not vary"):
        plasticity(Objective(lone, nn.MSELoss(), (torch.randn(3, 8), torch.ones(3, 1))))


def test_where_a_fresh_network_learns_nothing_either_the_ratio_is_undetermined() -> None:
    _, objective = classifier()
    measured = plasticity(objective, steps=1, lr=1e-9, draws=2)
    assert not measured.ratio.determined
    assert "fresh network does not fit" in measured.ratio.how
    one = Objective(objective.model, nn.CrossEntropyLoss(), (torch.randn(1, 8), torch.zeros(1, dtype=torch.int64)))
    alike = plasticity(one, steps=1, draws=2)
    assert not alike.fitted.determined
    assert "all alike" in alike.fitted.how


def test_a_fit_that_runs_away_is_no_number() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 1, bias=False))
    objective = Objective(model, nn.MSELoss(), (torch.randn(16, 8), torch.randn(16, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e6)
    measured = plasticity(objective, steps=30, optimizer=optimizer, draws=2)
    assert not measured.fitted.determined
    assert "ran away in 2 of 2" in measured.fitted.how


def test_from_loss_needs_targets_and_takes_them() -> None:
    model, _ = classifier()
    batch = (torch.randn(24, 8), torch.randint(4, (24,)))
    objective = Objective.from_loss(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), [batch])
    with pytest.raises(DiagnosticsError, match="targets="):
        plasticity(objective)

    def targets(batch: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return batch[0], torch.randint(4, (len(batch[0]),), generator=generator)

    measured = plasticity(objective, steps=40, lr=1e-2, targets=targets, draws=2)
    assert 0.5 < measured.fitted.value <= 1.0
    assert measured.accuracy is None
    own = Objective(model, lambda f, y: nn.functional.cross_entropy(f, y), batch)
    with pytest.raises(DiagnosticsError, match="random targets cannot be made"):
        plasticity(own)


class Scaled(nn.Module):
    """Owns a parameter that nobody initialises."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gain = nn.Linear(8, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.linear(x)


class ByItself(nn.Linear):
    """As in models that walk over their modules."""

    def _init_weights(self, module: nn.Module) -> None:
        raise AssertionError("never called")


def attention() -> nn.Module:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x[:, None] * torch.ones(1, 3, 1)
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    return Pooled()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Scaled, "no module initialises gain"),
        (lambda: nn.Sequential(weight_norm(nn.Linear(8, 4))), "parametrizations.weight.original"),
        (lambda: ByItself(8, 4), "_init_weights"),
        (attention, ""),
    ],
)
def test_what_cannot_be_initialised_is_named_and_a_factory_helps(make: Make, reason: str) -> None:
    objective = Objective(make(), nn.CrossEntropyLoss(), (torch.randn(16, 8), torch.randint(4, (16,))))
    without = plasticity(objective, steps=2, draws=2)
    assert without.fitted.determined
    assert without.fresh_fitted.determined == (not reason)
    if reason:
        assert reason in without.ratio.how
        assert "fresh=" in without.ratio.how
        assert without.gradients == 4
    assert plasticity(objective, steps=2, draws=2, fresh=make).fresh_fitted.determined


TAKEN = [*(case for case in CASES if "batch norm" not in case.name), TRAIN_BATCH_NORM]
"""Batch normalisation in evaluation mode is refused, see the arguments below."""


@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
def test_every_model_and_loss_is_taken_or_refused_with_a_reason(case: Case) -> None:
    objective = case.objective()
    if "from_loss" in case.name:
        with pytest.raises(DiagnosticsError, match="targets="):
            plasticity(objective, steps=2, draws=2)
        with pytest.raises(DiagnosticsError, match="cannot be seen"):
            churn(objective, torch.zeros(objective.num_parameters))
        return
    before = objective.space.flatten(objective.space.values())
    measured = plasticity(objective, steps=2, draws=2)
    assert measured.fitted.determined
    assert measured.fresh_fitted.determined or "fresh=" in measured.fresh_fitted.how
    made = plasticity(objective, steps=2, draws=2, fresh=lambda: case.objective().model)
    assert made.fresh_fitted.determined
    assert float(churn(objective, torch.zeros(objective.num_parameters)).mean_change) == 0.0
    assert torch.equal(objective.space.flatten(objective.space.values()), before)


def test_factories_of_other_networks_are_refused() -> None:
    model, objective = classifier()
    for made, what in ((lambda: model, "measured"), (lambda: nn.Linear(8, 4), "another network"), (int, "no module")):
        with pytest.raises(DiagnosticsError, match=what):
            plasticity(objective, steps=1, draws=2, fresh=made)  # type: ignore[arg-type]


def test_frozen_layers_stay_in_both_and_tied_weights_are_one() -> None:
    model, _ = classifier()
    model[0].requires_grad_(False)
    objective = Objective(model, nn.CrossEntropyLoss(), (torch.randn(16, 8), torch.randint(4, (16,))))
    measured = plasticity(objective, steps=20, lr=1e-2, draws=2)
    assert measured.ratio.determined
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    # Behind a frozen layer that is blind a fresh network learns nothing of any example either.
    assert abs(plasticity(objective, steps=20, lr=1e-2, draws=2).fresh_fitted.value) < 0.3
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    twice = Objective(tied, nn.CrossEntropyLoss(), (torch.randn(16, 4), torch.randint(4, (16,))))
    assert plasticity(twice, steps=3, draws=2).fresh_fitted.determined
    assert twice.num_parameters == 16 + 8


def test_old_moments_hold_the_network_back_and_only_with_moments() -> None:
    model, objective = classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    nn.functional.cross_entropy(model(objective.batches[0][0]), objective.batches[0][1]).backward()
    optimizer.step()
    for state in optimizer.state.values():
        state["exp_avg_sq"].fill_(1e4)
        state["step"].fill_(1e5)
    before = [state["exp_avg_sq"].clone() for state in optimizer.state.values()]
    without = plasticity(objective, steps=20, optimizer=optimizer, draws=2)
    held = plasticity(objective, steps=20, optimizer=optimizer, moments=True, draws=2)
    assert without.ratio.value > 0.8
    assert held.ratio.value < 0.2
    assert "with its moments" in held.fitted.how
    for state, kept in zip(optimizer.state.values(), before, strict=True):
        assert torch.equal(state["exp_avg_sq"], kept)


def test_arguments_out_of_range_are_named() -> None:
    model, objective = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for settings, what in (
        ({"steps": 0}, "steps"),
        ({"draws": 1}, "draws"),
        ({"lr": -1.0}, "lr"),
        ({"lr": 0.1, "optimizer": optimizer}, "lr goes"),
        ({"moments": True}, "moments"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)}, "none of the objective"),
        ({"optimizer": torch.optim.LBFGS(model.parameters())}, "cannot take a step"),
    ):
        with pytest.raises(DiagnosticsError, match=what):
            plasticity(objective, **settings)  # type: ignore[arg-type]
    with pytest.raises(DiagnosticsError, match="not an Objective"):
        plasticity(model)  # type: ignore[arg-type]
    normed = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    batch = (torch.randn(16, 8), torch.randint(4, (16,)))
    with pytest.raises(DiagnosticsError, match="mode='train'"):
        plasticity(Objective(normed, nn.CrossEntropyLoss(), batch))
    assert plasticity(Objective(normed, nn.CrossEntropyLoss(), batch, mode="train"), steps=2, draws=2).fitted.determined
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    with pytest.raises(DiagnosticsError, match="finite"):
        plasticity(objective)


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    _, objective = classifier()
    first, again, other = (plasticity(objective, steps=5, draws=2, seed=seed) for seed in (1, 1, 2))
    assert str(first) == str(again) != str(other)
