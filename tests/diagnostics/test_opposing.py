"""Opposing signals: every number against copies of the model a step apart; two planted groups are found, no others.

The planted data: 2 % of the examples share a large feature and want opposite answers. Gradient descent at the edge of
stability swings between them: the groups are these examples exactly, their gradients opposite, the changes alternate.
At a small rate, or without them, nothing of the kind is seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import DiagnosticsError, Objective, OpposingSignals, opposing_signals, sharpness
from diagnostics.noise.opposing import _gaussian, _largest
from diagnostics.stability.trial_step import trial_steps
from tests.cases.language import gpt2
from tests.cases.models import mlp
from tests.probes.toy import Toy
from tests.reference.opposing_loops import changes, cosine, stepped
from tests.reference.per_example_loops import Contribution

UP, DOWN = [17, 63], [110, 180]


@dataclass
class Planted:
    """Logistic regression on 200 examples, of which four share a large feature; those in ``UP`` are of class 1."""

    lr: float
    outliers: bool = True

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(200, 6, dtype=torch.float64, generator=generator)
        y = (x[:, 0] + torch.randn(200, dtype=torch.float64, generator=generator) > 0).double()
        x[:, 5] = 0.0
        if self.outliers:
            x[UP + DOWN, 5] = 14.0
            y[UP], y[DOWN] = 1.0, 0.0
        self.model = nn.Linear(6, 1, bias=False).double()
        with torch.no_grad():
            self.model.weight.zero_()
        self.loss, self.data = nn.BCEWithLogitsLoss(), (x, y[:, None])
        self.objective = Objective(self.model, self.loss, [(x[:70], y[:70, None]), (x[70:], y[70:, None])])

    def update(self) -> Tensor:
        return -self.lr * self.objective.gradient()

    def following(self) -> Tensor:
        return trial_steps(self.objective, torch.optim.SGD(self.model.parameters(), lr=self.lr), 2)[1]

    def train(self, steps: int) -> None:
        for _ in range(steps):
            update = self.update()
            with torch.no_grad():
                self.model.weight.add_(update.view_as(self.model.weight))


def test_planted_groups_are_found_exactly_at_the_edge_and_alternate() -> None:
    planted = Planted(lr=3.2)
    planted.train(300)
    assert planted.lr * float(sharpness(planted.objective).values[0]) / 2 > 0.9
    found = opposing_signals(planted.objective, planted.update(), following=planted.following())
    assert {frozenset(found.rising.tolist()), frozenset(found.falling.tolist())} == {frozenset(UP), frozenset(DOWN)}
    assert float(found.carried) > 0.8
    assert float(found.cosine) < -0.95
    assert found.alternation is not None
    assert float(found.alternation) < -0.95
    assert float(found.net) < 0.5
    assert found.growth is not None
    assert float(found.growth) == pytest.approx(1.0, abs=0.05)
    # In the next step the two groups have changed places.
    planted.train(1)
    after = opposing_signals(planted.objective, planted.update())
    assert set(after.rising.tolist()) == set(found.falling.tolist())
    assert float(numpy.corrcoef(found.changes, after.changes)[0, 1]) == pytest.approx(
        float(found.alternation), abs=1e-6
    )


@pytest.mark.parametrize(("lr", "outliers", "steps"), [(0.1, True, 30), (0.1, False, 30), (3.2, False, 10)])
def test_at_a_small_rate_or_without_them_nothing_is_seen(lr: float, outliers: bool, steps: int) -> None:
    planted = Planted(lr, outliers)
    planted.train(steps)
    found = opposing_signals(planted.objective, planted.update(), following=planted.following())
    assert float(found.carried) < 3 * found.gaussian
    assert float(found.alternation) > 0.5


def compare(objective: Objective, contribution: Contribution, update: Tensor, share: float = 0.2) -> OpposingSignals:
    following = 0.3 * update.flip(0)
    found = opposing_signals(objective, update, share=share, following=following)
    count = len(found.changes)
    twin = changes(objective.model, contribution, count, update)
    torch.testing.assert_close(found.changes, twin, rtol=1e-9, atol=1e-12)
    after = changes(stepped(objective.model, update), contribution, count, following)
    assert float(found.alternation) == pytest.approx(float(numpy.corrcoef(after, twin)[0, 1]), rel=1e-8)
    assert float(found.growth) == pytest.approx(float(after.std() / twin.std()), rel=1e-8)
    size = max(1, round(share * count))
    order = sorted(range(count), key=lambda place: float(twin[place]))
    rising = [place for place in order[::-1][:size] if twin[place] > 0]
    falling = [place for place in order[:size] if twin[place] < 0]
    assert (found.rising.tolist(), found.falling.tolist()) == (rising, falling)
    both = twin[rising + falling]
    assert float(found.carried) == pytest.approx(float(both.abs().sum() / twin.abs().sum()), rel=1e-9)
    assert float(found.net) == pytest.approx(float(both.sum().abs() / both.abs().sum()), rel=1e-8, abs=1e-12)
    if rising and falling:
        twin_cosine = cosine(objective.model, contribution, count, rising, falling)
        assert float(found.cosine) == pytest.approx(twin_cosine, rel=1e-9, abs=1e-12)
    else:
        assert not found.cosine.determined
    assert found.carried.kind == "residual"
    assert found.carried.error < 1e-6
    return found


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_every_number_in_ragged_batches(reduction: str) -> None:
    torch.manual_seed(0)
    model, loss = mlp().double(), nn.MSELoss(reduction=reduction)
    x, y = torch.randn(23, 3, dtype=torch.float64), torch.randn(23, 2, dtype=torch.float64)
    objective = Objective(model, loss, [(x[:9], y[:9]), (x[9:10], y[9:10]), (x[10:], y[10:])])
    # Sums over a batch count as the trainer has them: the objective is the mean of three sums.
    share = 23 / 3 if reduction == "sum" else 1.0
    update = 0.05 * torch.randn(objective.num_parameters, dtype=torch.float64)
    found = compare(objective, lambda m, i: share * loss(m(x[i : i + 1]), y[i : i + 1]), update)
    before = objective.loss()
    with torch.no_grad():
        for tensor, part in zip(objective.space.tensors, objective.space.unflatten(update), strict=True):
            tensor.add_(part)
    assert float(found.loss_change) == pytest.approx(objective.loss() - before, rel=1e-9)


def test_sentences_of_a_language_model() -> None:
    torch.manual_seed(0)
    model = gpt2(double=True).double().eval()
    ids = torch.randint(1, 9, (10, 6))
    labels = ids.where(torch.rand(10, 6) > 0.3, -100)
    labels[:, 2] = ids[:, 2]
    batch = {"input_ids": ids, "labels": labels}
    terms = (labels[:, 1:] != -100).sum(1).double()

    def contribution(module: nn.Module, place: int) -> Tensor:
        one = {name: leaf[place : place + 1] for name, leaf in batch.items()}
        return 10 * terms[place] / terms.sum() * module(**one).loss

    objective = Objective.huggingface(model, [batch])
    compare(objective, contribution, 0.05 * torch.randn(objective.num_parameters, dtype=torch.float64))


def test_where_every_loss_falls_there_is_one_group() -> None:
    model, x = nn.Linear(1, 1, bias=False).double(), torch.rand(20, 1, dtype=torch.float64) + 0.5
    with torch.no_grad():
        model.weight.fill_(2.0)
    found = opposing_signals(Objective(model, nn.MSELoss(), (x, 0 * x)), torch.tensor([-1.0]))
    assert found.rising.tolist() == []
    assert found.falling.tolist() == [int(x.argmax())]
    assert float(found.net) == 1.0
    assert "rises" in found.cosine.how
    assert "undetermined" in str(found)


@pytest.mark.parametrize("fraction", [0.005, 0.01, 0.1, 0.5])
def test_what_gaussian_changes_would_carry(fraction: float) -> None:
    drawn = numpy.sort(numpy.abs(numpy.random.default_rng(0).normal(size=400_000)))[::-1]
    # Both tails of a fraction each are the largest of twice that fraction in size.
    tails = drawn[: int(2 * fraction * len(drawn))].sum() / drawn.sum()
    assert 2 * _gaussian(fraction) == pytest.approx(tails, rel=0.02)
    assert _gaussian(0.0) == 0.0


def test_changes_that_are_only_rounding_are_no_signal() -> None:
    toy = Toy()
    step = torch.randn(toy.objective.num_parameters, generator=torch.Generator().manual_seed(0))
    found = opposing_signals(toy.objective, 1e-8 * step)
    assert not found.carried.determined
    assert not found.cosine.determined
    assert "no more than rounding" in str(found)
    assert found.rising.tolist() == found.falling.tolist() == []
    clear = opposing_signals(toy.objective, 0.1 * step, following=1e-8 * step)
    assert clear.carried.determined
    assert not clear.alternation.determined
    # What is said to be the error covers what single precision does to the same model.
    exact = Objective(toy.model.double(), F.cross_entropy, (toy.x.double(), toy.y))
    true = opposing_signals(exact, 0.1 * step)
    assert bool(((clear.changes - true.changes).abs() <= clear.errors).all())
    assert abs(float(clear.carried) - float(true.carried)) <= clear.carried.error


def test_a_change_that_may_be_rounding_is_in_no_group() -> None:
    changes, errors = torch.tensor([5.0, 1.0, -3.0, 0.0]), torch.tensor([6.0, 0.1, 0.1, 0.1])
    assert _largest(changes, errors, 1).tolist() == [1]
    assert _largest(-changes, errors, 3).tolist() == [2]


def test_what_is_printed_names_the_examples() -> None:
    planted = Planted(lr=3.2)
    planted.train(100)
    update, following = planted.update(), planted.following()
    text = str(opposing_signals(planted.objective, update, following=following, share=0.05))
    assert "20 of 200 examples carry" in text
    assert "correlation with the changes of the step after it -1" in text
    assert "and 5 more" in text
    plain = str(opposing_signals(planted.objective, update))
    assert "rising: " in plain
    assert "correlation" not in plain


def test_bad_input_is_refused() -> None:
    toy = Toy()
    step = torch.ones(toy.objective.num_parameters)
    for share in (0.0, 0.6, math.nan, "1"):
        with pytest.raises(DiagnosticsError, match="share"):
            opposing_signals(toy.objective, step, share=share)
    for update in (torch.ones(3), 0 * step, math.nan * step, None):
        with pytest.raises(DiagnosticsError, match="update"):
            opposing_signals(toy.objective, update)
    with pytest.raises(DiagnosticsError, match="following"):
        opposing_signals(toy.objective, step, following=torch.ones(2))
    few = Objective(toy.model, F.cross_entropy, (toy.x[:3], toy.y[:3]))
    with pytest.raises(DiagnosticsError, match="too few examples"):
        opposing_signals(few, step)


def test_training_with_the_measure_in_every_step_is_bit_identical() -> None:
    ends = []
    for measured in (True, False):
        torch.manual_seed(0)
        toy = Toy(torch.optim.Adam, lr=0.05)
        for _ in range(3):
            toy.step()
            if measured:
                update = torch.ones(toy.objective.num_parameters)
                opposing_signals(toy.objective, update, following=-update)
        ends.append([*toy.model.state_dict().values(), *(p.grad for p in toy.model.parameters()), torch.rand(2)])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
