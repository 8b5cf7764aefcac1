"""Gradients of single examples, of whole models and through every kind of loss, against one backward pass for each."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from diagnostics import (
    DiagnosticsError,
    Objective,
    gradient_gram,
    per_example_gradient_dots,
    per_example_gradient_norms,
)
from diagnostics.recorded import sheets
from tests.cases import CASES
from tests.cases.case import Case
from tests.cases.language import MASKED, bert, gpt2, llama
from tests.cases.models import Recurrent, Tagger, convolutional, dropped, mlp
from tests.reference.per_example_loops import Contribution, gradients


def agrees(objective: Objective, contribution: Contribution, *, recorded: bool = True, digits: int = 9) -> Tensor:
    """Compare everything with the loop, whose rows are returned."""
    count = sum(sheets.lengths(objective))
    twin = gradients(objective.model, contribution, count, objective.space.names)
    size = 10.0**-digits * float(twin.norm(dim=1).max())
    measured = per_example_gradient_norms(objective)
    torch.testing.assert_close(measured.norms, twin.norm(dim=1), rtol=10.0**-digits, atol=size)
    assert measured.mean_square.value == pytest.approx(float(twin.mean(0).square().sum()), rel=10.0**-digits)
    gradient = objective.gradient().double()
    assert float((twin.mean(0) - gradient).norm()) <= 10.0**-digits * float(twin.norm(dim=1).mean())
    gram = gradient_gram(objective)
    torch.testing.assert_close(
        gram.matrix, twin @ twin.T, rtol=10.0**-digits, atol=size * float(twin.norm(dim=1).max())
    )
    assert float(gram.matrix.mean()) == pytest.approx(measured.mean_square.value, rel=10.0**-digits)
    dots = per_example_gradient_dots(objective, gradient)
    torch.testing.assert_close(dots, twin @ gradient, rtol=10.0**-digits, atol=size * float(gradient.norm()))
    routes = set(measured.routes.values())
    assert (routes == {"recorded"}) is recorded, measured.routes
    return twin


def double(model: nn.Module) -> nn.Module:
    return model.double().eval()


def sentences(count: int, length: int, shortest: int) -> dict[str, Tensor]:
    """Padded on the right, with labels masked there and here and there."""
    ids = torch.randint(1, 9, (count, length))
    mask = torch.arange(length) < torch.randint(shortest, length + 1, (count, 1))
    mask[0] = True
    labels = ids.where(mask & (torch.rand(count, length) > 0.2), MASKED)
    labels[:, 1] = ids[:, 1]
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


LANGUAGE: dict[str, Callable[[], nn.Module]] = {"gpt2": lambda: gpt2(double=True), "llama": llama, "bert": bert}


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_models_with_ragged_sentences_and_masked_labels(name: str) -> None:
    """A sentence counts by its labels: the mean of the gradients is the gradient that training would see."""
    torch.manual_seed(1)
    model = double(LANGUAGE[name]())
    batches = [sentences(6, 5, 3), sentences(5, 6, 2)]
    objective = Objective.huggingface(model, batches)
    singles = [
        {key: leaf[i : i + 1] for key, leaf in batch.items()} for batch in batches for i in range(len(batch["labels"]))
    ]
    shifted = name != "bert"
    terms = [float((one["labels"][:, int(shifted) :] != MASKED).sum()) for one in singles]

    def contribution(module: nn.Module, place: int) -> Tensor:
        return len(singles) * terms[place] / sum(terms) * module(**singles[place]).loss

    # Hugging Face takes some losses in float32.
    agrees(objective, contribution, digits=5 if name == "bert" else 9)


def test_language_model_in_float32() -> None:
    torch.manual_seed(1)
    model, batch = gpt2().eval(), sentences(6, 5, 3)
    measured = per_example_gradient_norms(Objective.huggingface(model, [batch]))
    exact = per_example_gradient_norms(Objective.huggingface(double(model), [batch]))
    torch.testing.assert_close(measured.norms, exact.norms, rtol=1e-4, atol=1e-6)
    assert set(measured.routes.values()) == {"recorded"}


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.first, self.second = (nn.GroupNorm(2, channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.two(F.relu(self.first(self.one(x)), inplace=True))), inplace=True)


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        Block(4),
        nn.Conv2d(4, 6, 3, stride=2),
        Block(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


def test_residual_network_with_group_norm_in_ragged_batches() -> None:
    model, loss = double(resnet()), nn.CrossEntropyLoss(label_smoothing=0.1)
    x, y = torch.randn(12, 3, 8, 8, dtype=torch.float64), torch.randint(5, (12,))
    objective = Objective(model, loss, [(x[:7], y[:7]), (x[7:11], y[7:11]), (x[11:], y[11:])])
    agrees(objective, lambda m, i: loss(m(x[i : i + 1]), y[i : i + 1]))
    # No plan is made for three examples; one is looked over, and one that another batch has made is used.
    few = Objective(model, loss, [(x[:3], y[:3]), (x[3:], y[3:])])
    agrees(few, lambda m, i: loss(m(x[i : i + 1]), y[i : i + 1]), recorded=False)
    few = Objective(model, loss, [(x[:3], y[:3]), (x[3:], y[3:])])
    assert set(per_example_gradient_norms(few).routes.values()) == {"example by example: few examples"}
    assert set(per_example_gradient_norms(few).routes.values()) == {"recorded"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_of_this_suite_in_ragged_batches(case: Case) -> None:
    """The mean of all inner products is the squared norm of the gradient, whatever the batches."""
    objective = case.objective(ragged=True)
    expected = pytest.approx(float(objective.gradient().double().square().sum()), rel=10.0 ** -min(9, case.digits))
    measured, gram = per_example_gradient_norms(objective), gradient_gram(objective)
    assert measured.mean_square.value == expected
    assert float(gram.matrix.mean()) == expected
    close = 10.0 ** -min(9, case.digits)
    torch.testing.assert_close(gram.matrix.diagonal().sqrt(), measured.norms, rtol=close, atol=close)


LOSSES: dict[str, nn.Module] = {
    "mean of squares": nn.MSELoss(),
    "sum of squares": nn.MSELoss(reduction="sum"),
    "huber": nn.HuberLoss(delta=0.5),
    "logits": nn.BCEWithLogitsLoss(),
    "sum of logits": nn.BCEWithLogitsLoss(reduction="sum"),
    "l1": nn.L1Loss(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_element_wise_losses(name: str) -> None:
    loss, model = LOSSES[name], double(mlp())
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.rand(9, 2, dtype=torch.float64)
    objective = Objective(model, loss, [(x[:4], y[:4]), (x[4:], y[4:])])
    # A sum over a batch counts as the trainer has it: the objective is the mean of the two sums.
    share = 9 / 2 if loss.reduction == "sum" else 1.0
    agrees(objective, lambda m, i: share * loss(m(x[i : i + 1]), y[i : i + 1]))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ignored_and_weighted_labels_and_an_example_without_any(reduction: str) -> None:
    weight = torch.tensor([0.5, 1.0, 3.0, 2.0], dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=weight, ignore_index=3, label_smoothing=0.05, reduction=reduction)
    model, tokens, labels = double(Tagger()), torch.randint(6, (7, 5)), torch.randint(3, (7, 5))
    labels[torch.rand(7, 5) < 0.3] = 3
    labels[0], labels[4] = 3, 3
    terms = [float(weight[row[row != 3]].sum()) for row in labels]
    empty = [not term for term in terms]
    assert empty[0]

    def contribution(module: nn.Module, place: int) -> Tensor:
        if empty[place]:
            return torch.zeros(())
        share = 7.0 if reduction == "sum" else 7 * terms[place] / sum(terms)
        return share * loss(module(tokens[place : place + 1]), labels[place : place + 1])

    twin = agrees(Objective(model, loss, (tokens, labels)), contribution)
    assert float(twin[0].norm()) == 0.0


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 5), (torch.bfloat16, 1)])
def test_lower_precision(dtype: torch.dtype, digits: int) -> None:
    model, loss = resnet().to(dtype).eval(), nn.CrossEntropyLoss()
    x, y = torch.randn(8, 3, 8, 8).to(dtype), torch.randint(5, (8,))
    measured = per_example_gradient_norms(Objective(model, loss, (x, y)))
    exact = per_example_gradient_norms(Objective(double(model), loss, (x.double(), y)))
    torch.testing.assert_close(measured.norms, exact.norms, rtol=10.0**-digits, atol=0.0)


def test_a_batch_without_terms_holds_examples_whose_gradient_is_zero() -> None:
    model, loss = double(Tagger()), nn.CrossEntropyLoss(ignore_index=3)
    tokens, labels = torch.randint(6, (8, 5)), torch.randint(3, (8, 5))
    labels[:3] = 3
    objective = Objective(model, loss, [(tokens[:3], labels[:3]), (tokens[3:], labels[3:])])
    agrees(
        objective,
        lambda m, i: torch.zeros(()) if i < 3 else 8 / 5 * loss(m(tokens[i : i + 1]), labels[i : i + 1]),
    )


def test_frozen_and_selected_parameters() -> None:
    model = double(mlp())
    model[0].bias.requires_grad_(False)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    loss = nn.MSELoss()
    agrees(Objective(model, loss, (x, y)), lambda m, i: loss(m(x[i : i + 1]), y[i : i + 1]))
    agrees(Objective(model, loss, (x, y), params="2.*"), lambda m, i: loss(m(x[i : i + 1]), y[i : i + 1]))
    wanted = Objective(model, loss, (x, y), params=lambda name, _: name == "0.bias")
    assert set(per_example_gradient_norms(wanted).squares) == {"0.bias"}
    assert float(per_example_gradient_norms(wanted).norms.min()) > 0.0


def test_layers_that_are_not_known_are_differentiated_by_example_and_only_those() -> None:
    model, loss = double(Recurrent()), nn.MSELoss()
    x, y = torch.randn(6, 4, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    objective = Objective(model, loss, (x, y))
    agrees(objective, lambda m, i: loss(m(x[i : i + 1]), y[i : i + 1]), recorded=False)
    measured = per_example_gradient_norms(objective)
    assert measured.routes["head.weight"] == "recorded"
    assert measured.routes["rnn.weight_hh_l0"] == "vmap, an operation that is not known"
    assert "4 of 6 parameters by vmap" in measured.how


def _own(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().pow(1.5).sum(1).mean()


def test_losses_of_the_users_own() -> None:
    model = double(mlp())
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    agrees(Objective(model, _own, (x, y)), lambda m, i: _own(m(x[i : i + 1]), y[i : i + 1]))
    agrees(
        Objective(model, lambda a, b: len(a) * _own(a, b), (x, y)),
        lambda m, i: 7 * _own(m(x[i : i + 1]), y[i : i + 1]),
    )

    def with_decay(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return _own(module(batch[0]), batch[1]) + 0.1 * sum(p.square().sum() for p in module.parameters())

    # The decay is in the loss of every example, and is found by looping.
    agrees(
        Objective.from_loss(model, with_decay, [(x, y)]),
        lambda m, i: with_decay(m, (x[i : i + 1], y[i : i + 1])),
        recorded=False,
    )


def test_log_probabilities_which_other_measures_refuse() -> None:
    model = double(nn.Sequential(mlp(outputs=3), nn.LogSoftmax(1)))
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(3, (6,))
    agrees(Objective(model, nn.NLLLoss(), (x, y)), lambda m, i: F.nll_loss(m(x[i : i + 1]), y[i : i + 1]))


def test_checkpointed_segments() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = mlp(outputs=4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.inner, x, use_reentrant=False))

    model = double(Checkpointed())
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    agrees(Objective(model, nn.MSELoss(), (x, y)), lambda m, i: F.mse_loss(m(x[i : i + 1]), y[i : i + 1]))


def test_asking_again_makes_no_new_plan_and_follows_a_model_that_goes_another_way(monkeypatch: Any) -> None:
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.turned = nn.Linear(3, 2), nn.Linear(3, 2), False

        def forward(self, x: Tensor) -> Tensor:
            return self.other(torch.tanh(x)) * 2.0 if self.turned else self.one(x)

    made = []
    plan = sheets.make_plan
    monkeypatch.setattr(sheets, "make_plan", lambda *given: made.append(given) or plan(*given))
    model = double(Switch())
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    objective = Objective(model, nn.MSELoss(), (x, y))
    contribution: Contribution = lambda m, i: F.mse_loss(m(x[i : i + 1]), y[i : i + 1])  # noqa: E731
    agrees(objective, contribution)
    with torch.no_grad():
        model.one.weight.mul_(-2.0)
    agrees(objective, contribution)
    assert len(made) == 1
    model.turned = True
    agrees(objective, contribution)
    assert len(made) == 2


def test_a_model_whose_examples_go_different_ways() -> None:
    """Experts see the examples that are sent to them: rows of other sizes than the batch, which are looped over."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            first = x[:, 0] > 0
            result = x.new_zeros(len(x), 2)
            result[first] = self.one(x[first])
            result[~first] = self.other(x[~first])
            return result

    class Sometimes(nn.Module):
        """One layer for all, and once more for some: none of the two that the plan is made of."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            again, result = x[:, 0] > 0, torch.zeros(len(x), 2, dtype=x.dtype)
            result[again] = self.layer(x[again].square())
            return torch.tanh(self.layer(x)) + result

    x, y = torch.randn(9, 3, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    for model in (double(Experts()), double(Sometimes())):
        for sign in (1.0, -1.0):
            # Both examples that the plan is made of go the same way: what they say is not true of the others.
            x[:2, 0] = sign * x[:2, 0].abs()
            agrees(
                Objective(model, nn.MSELoss(), (x, y)),
                lambda m, i: F.mse_loss(m(x[i : i + 1]), y[i : i + 1]),
                recorded=False,
            )


def _data(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(6, *shape, dtype=torch.float64), torch.randint(3, (6,))


def _contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))


@pytest.mark.parametrize("measure", [per_example_gradient_norms, gradient_gram])
def test_coupled_examples_are_refused_with_the_reason(measure: Callable[[Objective], object]) -> None:
    loss = nn.CrossEntropyLoss()
    model = double(convolutional())
    with pytest.raises(DiagnosticsError, match="batch normalisation couples"):
        measure(Objective(model, loss, _data(1, 5, 5), mode="train"))
    untracked = double(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)))
    with pytest.raises(DiagnosticsError, match="batch normalisation couples"):
        measure(Objective(untracked, loss, _data(3)))
    with pytest.raises(DiagnosticsError, match="dropout"):
        measure(Objective(double(dropped()), loss, _data(3), mode="train"))
    with pytest.raises(DiagnosticsError, match="not the mean of its examples"):
        measure(Objective(double(mlp(outputs=3)), _contrastive, _data(3)))
    centred = double(nn.Sequential(mlp(outputs=3), Centred()))
    with pytest.raises(DiagnosticsError, match="not the mean of its examples"):
        measure(Objective(centred, loss, _data(3)))


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize("measure", [per_example_gradient_norms, gradient_gram])
@pytest.mark.parametrize("count", [2, 6])
def test_what_is_not_finite_is_refused(measure: Callable[[Objective], object], count: int) -> None:
    model, (x, y) = double(mlp(outputs=3)), _data(3)
    x[count - 1, 0] = math.nan
    with pytest.raises(DiagnosticsError, match="not finite"):
        measure(Objective(model, nn.CrossEntropyLoss(), (x[:count], y[:count])))
    # A finite loss with an infinite gradient: the root at zero.
    rooted = double(nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        rooted.weight.fill_(1.0)
    ones, wanted = torch.ones(count, 1, dtype=torch.float64), torch.zeros(count, 1, dtype=torch.float64)
    wanted[-1] = 1.0

    def distance(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(1).sqrt().mean()

    with pytest.raises(DiagnosticsError, match="not finite" if count < 4 else "example 5 is not finite"):
        measure(Objective(rooted, distance, (ones, wanted)))


def test_a_loss_that_goes_around_the_model_is_refused() -> None:
    model, (x, y) = double(mlp(outputs=3)), _data(3)
    held = list(model.parameters())

    def around(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + held[0].square().sum()

    with pytest.raises(DiagnosticsError, match="other than through the model"):
        per_example_gradient_norms(Objective(model, around, (x, y)))


def test_a_vector_of_another_shape_is_refused() -> None:
    model, data = double(mlp(outputs=3)), _data(3)
    with pytest.raises(DiagnosticsError, match="vector"):
        per_example_gradient_dots(Objective(model, nn.CrossEntropyLoss(), data), torch.ones(3))


MEASURES: dict[str, Callable[[Objective], Any]] = {
    "norms": per_example_gradient_norms,
    "gram": gradient_gram,
    "dots": lambda objective: per_example_gradient_dots(objective, torch.ones(objective.num_parameters)),
}


def _start() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):
        seed(3)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3))
    return model, (torch.randn(12, 3), torch.randint(3, (12,)))


def _train(measure: Callable[[Objective], Any] | None, mode: Any = "eval") -> list[Tensor]:
    model, (x, y) = _start()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if measure is not None and mode == "train":
            with pytest.raises(DiagnosticsError):
                measure(Objective(model, nn.CrossEntropyLoss(), (x, y), mode="train"))
        elif measure is not None:
            measure(Objective(model, nn.CrossEntropyLoss(), (x, y)))
        optimizer.step()
    drawn = torch.tensor([torch.rand(1).item(), random.random(), numpy.random.rand(), float(model.training)])
    return [*model.state_dict().values(), *(p.grad for p in model.parameters()), drawn]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", MEASURES)
def test_training_with_a_measure_in_every_step_is_bit_identical(name: str, mode: str) -> None:
    """In train mode the measure refuses, and that must leave no trace either."""
    for probed, plain in zip(_train(MEASURES[name], mode), _train(None), strict=True):
        assert torch.equal(probed, plain)


@pytest.mark.parametrize("name", MEASURES)
def test_the_same_in_inference_mode_and_without_gradients(name: str) -> None:
    model, data = _start()
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    plain = str(MEASURES[name](objective))
    for context in (torch.inference_mode(), torch.no_grad()):
        with context, warnings.catch_warnings():
            assert str(MEASURES[name](objective)) == plain
    assert torch.is_grad_enabled()


def test_what_is_printed() -> None:
    model, data = _start()
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    assert "gradients of 12 examples" in str(per_example_gradient_norms(objective))
    assert "gradients of 12 examples" in repr(gradient_gram(objective))


class Writes(nn.Module):
    """Writes into its weight, or into what it is given."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.linear, self.where = nn.Linear(3, 2), where

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "weight":
            self.linear.weight.data.clamp_(max=0.1)
        if self.where == "input":
            x.mul_(0.5)
        return self.linear(x)


@pytest.mark.parametrize("where", ["weight", "input", "nowhere"])
def test_what_the_model_writes_into_is_left_as_it_was(where: str) -> None:
    """Parameters and batches are copied only for models that write into them, and never changed."""
    torch.manual_seed(2)
    model, loss = double(Writes(where)), nn.MSELoss()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    objective = Objective(model, loss, (x, y))
    before = model.linear.weight.detach().clone()
    assert float(before.max()) > 0.1
    first = per_example_gradient_norms(objective)
    for _ in range(2):
        assert torch.equal(per_example_gradient_norms(objective).norms, first.norms)
        assert torch.equal(model.linear.weight, before)
        assert torch.equal(objective.batches[0][0], x)
    (plan,) = sheets._PLANS[objective].values()
    assert plan.writes is (where != "nowhere")
