"""An Objective is the function the trainer minimises: right values, right gradients, ragged batches averaged as one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from diagnostics import Objective, quiet
from tests.cases import CASES, WHOLE_BATCH_CASES, Case, cut, mlp


@pytest.mark.parametrize("case", WHOLE_BATCH_CASES, ids=str)
def test_loss_is_the_one_a_trainer_would_write(case: Case) -> None:
    model, whole = case.build()
    expected = case.plain_loss(model, whole).item()
    assert case.objective().loss() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("case", WHOLE_BATCH_CASES, ids=str)
def test_gradient_is_the_one_backward_leaves(case: Case) -> None:
    model, whole = case.build()
    case.plain_loss(model, whole).backward()
    expected = [
        (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in model.parameters() if p.requires_grad
    ]
    torch.testing.assert_close(case.objective().gradient(), torch.cat(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ragged_batches_average_like_one_whole_batch(case: Case) -> None:
    whole, ragged = case.objective(), case.objective(ragged=True)
    assert len(ragged.batches) == 3
    assert sum(ragged.terms) == pytest.approx(sum(whole.terms), rel=1e-12)
    assert ragged.loss() == pytest.approx(whole.loss(), rel=1e-12 if case.digits == 10 else 1e-7)
    torch.testing.assert_close(ragged.gradient(), whole.gradient(), rtol=0.1**case.digits, atol=0.01 * 0.1**case.digits)


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("gpt2", "bert", "lstm")], ids=str)
def test_weighting_by_examples_would_have_been_wrong_where_terms_differ(case: Case) -> None:
    """The control: the raggedness of these cases is real for token losses and absent for the LSTM regression."""
    model, whole = case.build()
    parts = cut(whole)
    sizes = [len(next(iter(part.values())) if isinstance(part, dict) else part[0]) for part in parts]
    by_examples = sum(size * case.plain_loss(model, part).item() for size, part in zip(sizes, parts, strict=True)) / 8
    off = abs(by_examples - case.objective().loss())
    assert (off > 1e-4) == (case.name != "lstm")


def test_sum_reduction_averages_the_batch_losses_the_trainer_sees() -> None:
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    model = mlp()
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    per_batch = [nn.MSELoss(reduction="sum")(model(a), b).item() for a, b in batches]
    objective = Objective(model, nn.MSELoss(reduction="sum"), batches)
    assert objective.loss() == pytest.approx(sum(per_batch) / 2, rel=1e-6)


def test_a_batch_whose_labels_are_all_ignored_counts_for_nothing() -> None:
    model = nn.Linear(3, 4)
    x, y = torch.randn(6, 3), torch.randint(4, (6,))
    y[:3] = -100
    ragged = Objective(model, nn.CrossEntropyLoss(), [(x[:3], y[:3]), (x[3:], y[3:])])
    assert ragged.weights == (0.0, 1.0)
    assert ragged.loss() == pytest.approx(nn.CrossEntropyLoss()(model(x[3:]), y[3:]).item(), rel=1e-6)
    assert bool(torch.isfinite(ragged.gradient()).all())


def test_limit_keeps_the_first_batches_and_stops_drawing() -> None:
    drawn = []

    def endless() -> object:
        while True:
            drawn.append(1)
            yield torch.randn(2, 3), torch.randn(2, 2)

    objective = Objective(mlp(), nn.MSELoss(), endless(), limit=3)
    assert (len(objective.batches), len(drawn)) == (3, 3)


def test_params_narrow_the_gradient_to_a_slice_of_the_whole() -> None:
    model, data = mlp(), (torch.randn(6, 3), torch.randn(6, 2))
    everything = Objective(model, nn.MSELoss(), data).gradient()
    for params, names in (
        ("2.*", ("2.weight", "2.bias")),
        (["*.bias"], ("0.bias", "2.bias")),
        (lambda name, tensor: tensor.ndim == 2, ("0.weight", "2.weight")),
    ):
        objective = Objective(model, nn.MSELoss(), data, params=params)
        assert objective.space.names == names
        parts = dict(zip(("0.weight", "0.bias", "2.weight", "2.bias"), everything.split([15, 5, 10, 2]), strict=True))
        torch.testing.assert_close(objective.gradient(), torch.cat([parts[name] for name in names]))


def test_a_callable_may_select_frozen_parameters_and_a_glob_may_not() -> None:
    model, data = mlp(), (torch.randn(6, 3), torch.randn(6, 2))
    model[0].weight.requires_grad_(False)
    assert Objective(model, nn.MSELoss(), data, params="*.weight").space.names == ("2.weight",)
    chosen = Objective(model, nn.MSELoss(), data, params=lambda name, _: name == "0.weight")
    assert float(chosen.gradient().norm()) > 0
    assert not model[0].weight.requires_grad


def test_an_objective_follows_its_model_and_not_its_batches() -> None:
    """θ is read anew on every call; the data are copies that the caller may overwrite."""
    model, x, y = nn.Linear(2, 1), torch.randn(4, 2), torch.randn(4, 1)
    objective = Objective(model, nn.MSELoss(), (x, y))
    before = objective.loss()
    x.zero_()
    y.fill_(1e6)
    assert objective.loss() == before
    with torch.no_grad():
        model.weight.add_(1.0)
    assert objective.loss() != before


def test_a_data_loader_and_a_list_of_its_batches_are_the_same_objective() -> None:
    dataset = TensorDataset(torch.randn(7, 3), torch.randn(7, 2))
    model = mlp()
    loader = DataLoader(dataset, batch_size=3)
    assert Objective(model, nn.MSELoss(), loader).loss() == Objective(model, nn.MSELoss(), list(loader)).loss()


def test_a_model_that_begins_in_place_sees_the_same_batch_every_time() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2))
    x = torch.randn(5, 3)
    kept = x.clone()
    objective = Objective(model, nn.MSELoss(), (x, torch.randn(5, 2)))
    assert objective.loss() == objective.loss()
    torch.testing.assert_close(objective.batches[0][0], kept, rtol=0, atol=0)


def test_dropout_in_train_mode_is_a_deterministic_function_and_differs_from_eval() -> None:
    model = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 2))
    data = (torch.randn(6, 3), torch.randn(6, 2))
    train = Objective(model, nn.MSELoss(), data, mode="train")
    first = train.loss()
    torch.rand(5)
    assert train.loss() == first
    assert Objective(model, nn.MSELoss(), data).loss() != first


def test_the_loss_of_a_batch_does_not_depend_on_what_was_drawn_before_it() -> None:
    """Else a kept graph, a skipped batch or another order would be another function."""
    model = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 2))
    batches = [(torch.randn(6, 3), torch.randn(6, 2)) for _ in range(2)]
    objective = Objective(model, nn.MSELoss(), batches, mode="train")
    with quiet(model, "train"):
        first = objective.batch_loss(1, objective.space.values())
        objective.batch_loss(0, objective.space.values())
        assert torch.equal(objective.batch_loss(1, objective.space.values()), first)
