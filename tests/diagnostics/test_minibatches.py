"""Minibatches are the trainer's: its examples, its loss on them, drawn without replacement and reproducibly."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Objective
from diagnostics.averages import looks, mean, quotient
from diagnostics.minibatches import Minibatches
from diagnostics.stability.minibatch_curvature import MinibatchCurvature
from tests.cases import TRAIN_BATCH_NORM, WEIGHT_NORM, WHOLE_BATCH_CASES
from tests.cases.case import Case
from tests.reference.dense_hessian import differenced_hessian
from tests.reference.minibatch_enumeration import gradient, rows


def _numbered(count: int, loss: nn.Module | None = None, cuts: tuple[int, ...] = ()) -> Objective:
    """Examples that are their own numbers."""
    x = torch.arange(count, dtype=torch.float64)[:, None]
    edges = (0, *cuts, count)
    batches = [(x[a:b], 2 * x[a:b] + 1) for a, b in pairwise(edges)]
    model = nn.Linear(1, 1).double()
    return Objective(model, loss or nn.MSELoss(), batches)


def _numbers(minibatch: Objective) -> list[int]:
    return sorted(int(number) for inputs, _ in minibatch.batches for number in inputs.flatten())


@pytest.mark.parametrize("case", WHOLE_BATCH_CASES, ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["one batch", "ragged"])
def test_a_minibatch_is_the_loss_of_the_trainer_on_those_rows(case: Case, ragged: bool) -> None:
    model, whole = case.build()
    chosen = [0, 2, 5, 7]
    minibatch = Minibatches(case.objective(ragged=ragged), 4).of(chosen)
    expected = case.plain_loss(model, rows(whole, chosen)).detach()
    assert len(minibatch.batches) == 1, "rows of one shape are put together"
    assert minibatch.loss() == pytest.approx(float(expected), rel=10.0**-case.digits)
    slope = gradient(model, lambda: case.plain_loss(model, rows(whole, chosen)))
    assert torch.allclose(minibatch.gradient(), slope, rtol=0, atol=10.0**-case.digits)


@pytest.mark.parametrize("cuts", [(), (1,), (3, 4)])
@pytest.mark.parametrize("size", [1, 2, 6, 7])
def test_every_distinct_minibatch_once_and_no_example_twice(size: int, cuts: tuple[int, ...]) -> None:
    minibatches = Minibatches(_numbered(7, cuts=cuts), size)
    seen = [tuple(_numbers(minibatch)) for minibatch in minibatches.every()]
    assert len(seen) == len(set(seen)) == minibatches.distinct == math.comb(7, size)
    assert all(len(set(numbers)) == size for numbers in seen)


@pytest.mark.parametrize(("count", "size"), [(6, 2), (40, 3)], ids=["by permutation", "by rejection"])
def test_draws_have_no_example_twice_and_take_each_equally_often(count: int, size: int) -> None:
    minibatches, generator = Minibatches(_numbered(count), size), torch.Generator().manual_seed(1)
    counts = torch.zeros(count)
    for _ in range(600):
        numbers = _numbers(minibatches.draw(generator))
        assert len(set(numbers)) == size
        counts[numbers] += 1
    expected = 600 * size / count
    assert float(((counts - expected) ** 2 / expected).sum()) < count + 4 * math.sqrt(2 * count)


def test_the_same_seed_draws_the_same_and_another_seed_does_not() -> None:
    minibatches = Minibatches(_numbered(30), 3)

    def drawn(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return [_numbers(minibatches.draw(generator)) for _ in range(5)]

    assert drawn(0) == drawn(0) != drawn(1)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "4"])
def test_a_size_that_is_no_number_of_examples_is_refused(size: object) -> None:
    with pytest.raises(DiagnosticsError, match="batch_size is not a number of examples"):
        Minibatches(_numbered(5), size)


def test_more_examples_than_there_are_is_refused_with_both_numbers() -> None:
    with pytest.raises(DiagnosticsError, match=r"batch_size is larger.*given: 6 of 5"):
        Minibatches(_numbered(5), 6)


class Pooling(nn.Module):
    """Averages over however many positions there are."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean(1).tanh())


def _lengths(loss: object) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Objective]:
    """Batches of sequences padded to different lengths."""
    model = Pooling().double()
    batches = [
        (torch.randn(3, length, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)) for length in (4, 6)
    ]
    return model, batches, Objective(model, loss, batches)


def _own_sum(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum()


def _own_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.MSELoss(reduction="sum"), _own_mean, _own_sum])
def test_rows_of_different_shapes_stay_pieces_and_the_loss_is_that_of_all_together(loss: object) -> None:
    model, batches, objective = _lengths(loss)
    minibatch = Minibatches(objective, 3).of([0, 2, 4])
    outputs = torch.cat([model(batches[0][0][[0, 2]]), model(batches[1][0][[1]])])
    targets = torch.cat([batches[0][1][[0, 2]], batches[1][1][[1]]])
    assert len(minibatch.batches) == 2
    assert minibatch.loss() == pytest.approx(float(loss(outputs, targets).detach()), rel=1e-12)


def test_pieces_count_by_their_labels_that_are_not_ignored() -> None:
    class Labels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.table(tokens).transpose(1, 2)

    model, loss = Labels().double(), nn.CrossEntropyLoss()
    long = (torch.randint(5, (2, 6)), torch.randint(3, (2, 6)))
    short = (torch.randint(5, (2, 3)), torch.tensor([[-100, 1, -100], [-100, -100, -100]]))
    minibatch = Minibatches(Objective(model, loss, [long, short]), 2).of([0, 2])
    scores = torch.cat([model(long[0][:1])[0].T, model(short[0][:1])[0].T])
    expected = loss(scores, torch.cat([long[1][0], short[1][0]])).detach()
    assert minibatch.loss() == pytest.approx(float(expected), rel=1e-12)
    # The last example has no label at all: alone it is no minibatch.
    alone = Minibatches(Objective(model, loss, [long, short]), 1)
    assert len(list(alone.every())) == alone.distinct - 1
    assert all(sum(alone.draw(torch.Generator().manual_seed(seed)).terms) > 0 for seed in range(30))


def test_nothing_but_ignored_labels_in_sight_is_an_error_and_no_endless_search() -> None:
    labels = torch.full((5000,), -100)
    labels[0] = 1
    objective = Objective(nn.Linear(1, 2), nn.CrossEntropyLoss(), (torch.ones(5000, 1), labels))
    minibatches, generator = Minibatches(objective, 1), torch.Generator().manual_seed(0)
    with pytest.raises(DiagnosticsError, match="hold no loss terms"):
        minibatches.draw(generator)


def test_coupled_examples_in_several_pieces_are_refused() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    batches = [(torch.randn(3, 4, length), torch.randn(3, 4)) for length in (5, 6)]
    minibatches = Minibatches(Objective(model, nn.MSELoss(), batches, mode="train"), 2)
    assert math.isfinite(minibatches.of([0, 1]).loss()), "of one shape they are what training does"
    with pytest.raises(DiagnosticsError, match="batch normalisation couples"):
        minibatches.of([0, 5])


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.MSELoss(reduction="sum"), _own_mean, _own_sum])
@pytest.mark.parametrize("cuts", [(), (3,)])
def test_the_scale_is_that_of_the_average_minibatch(loss: nn.Module, cuts: tuple[int, ...]) -> None:
    objective = _numbered(6, loss, cuts)
    minibatches = Minibatches(objective, 2)
    average = sum(minibatch.loss() for minibatch in minibatches.every()) / minibatches.distinct
    assert average == pytest.approx(minibatches.scale * objective.loss(), rel=1e-12)


# A dense Hessian of a language model takes minutes; in test_batch_sharpness they have one product each.
SMALL = [case for case in (*WHOLE_BATCH_CASES, WEIGHT_NORM) if case.name not in ("gpt2", "bert")]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_products_through_one_graph_are_those_of_differenced_gradients(case: Case) -> None:
    """Of the second minibatch: the first has shown whether double backward can be trusted with this model."""
    model, whole = case.build()
    curvature, minibatches = MinibatchCurvature(), Minibatches(case.objective(), 3)
    curvature(minibatches.of([0, 1, 2]), lambda g: [g])
    vector = torch.randn(minibatches.objective.num_parameters, dtype=torch.float64)
    slope, [product, along] = curvature(minibatches.of([2, 4, 6]), lambda g: [vector, g])
    H = differenced_hessian(model, lambda: case.plain_loss(model, rows(whole, [2, 4, 6])))
    assert torch.allclose(product, H @ vector, rtol=0, atol=1e-5 * float((H @ vector).abs().max()))
    assert torch.allclose(along, H @ slope, rtol=0, atol=1e-5 * float((H @ slope).abs().max()) + 1e-9)
    expected = "central differences" if case is WEIGHT_NORM else "double backward"
    assert curvature.route.startswith(expected)
    assert curvature.matvecs == 3


def test_batch_norm_in_train_mode_takes_its_statistics_from_the_minibatch() -> None:
    model, whole = TRAIN_BATCH_NORM.build()
    minibatch = Minibatches(TRAIN_BATCH_NORM.objective(), 3).of([0, 1, 2])
    with torch.no_grad():
        trained = float(TRAIN_BATCH_NORM.plain_loss(model.train(), rows(whole, [0, 1, 2])))
        fixed = float(TRAIN_BATCH_NORM.plain_loss(model.eval(), rows(whole, [0, 1, 2])))
    assert minibatch.loss() == pytest.approx(trained)
    assert minibatch.loss() != pytest.approx(fixed)


def test_a_mean_has_students_interval_and_skewed_draws_a_wider_one() -> None:
    values = [-3.0, -1.0, 1.0, 3.0]
    low, high = mean(values, "").interval()
    student, deviation = 3.18245, 2.58199  # t(.975, 3)
    # Symmetric draws with light tails: what the expansion adds is for a kurtosis of −1.36 alone.
    expected = (student + 1.36 / 12 * (1.96**3 - 3 * 1.96) / 4) * deviation / 2
    assert (high - low) / 2 == pytest.approx(expected, rel=1e-5)
    assert quotient(values, [1.0] * 4, "").interval() == pytest.approx((low, high)), "a mean over ones is a mean"
    generator = torch.Generator().manual_seed(0)
    for skewed, wanted in ((False, 0.95), (True, 0.94)):
        hits = 0
        for _ in range(1000):
            draws = torch.randn(60, generator=generator, dtype=torch.float64)
            low, high = mean((draws.square() if skewed else draws).tolist(), "").interval()
            hits += low <= float(skewed) <= high
        assert hits / 1000 == pytest.approx(wanted, abs=0.02)


def test_looks_grow() -> None:
    assert (min(looks(1000)), max(looks(1000))) == (30, 1000)
    assert list(looks(12)) == [12]
