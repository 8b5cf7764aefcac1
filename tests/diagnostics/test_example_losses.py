"""Losses of single examples, whatever the model, loss and batches, against each example run by itself; their mean is L.

What is not made of the losses of examples is refused, and training does not notice.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import DiagnosticsError, Objective, noise_scale, per_example_losses
from diagnostics.noise import losses as module
from tests.cases import CASES
from tests.cases.case import Case
from tests.cases.language import MASKED, bert, gpt2, llama
from tests.cases.models import Tagger, convolutional, dropped, mlp
from tests.reference.per_example_loops import Contribution, losses


def agrees(objective: Objective, contribution: Contribution, digits: int = 9) -> Tensor:
    """Compare with the loop, and the mean with L."""
    measured = per_example_losses(objective)
    assert measured.dtype == torch.float64
    twin = losses(objective.model, contribution, len(measured))
    size = float(twin.abs().max())
    torch.testing.assert_close(measured, twin, rtol=10.0**-digits, atol=10.0**-digits * size)
    assert float(measured.mean()) == pytest.approx(objective.loss(), rel=10.0**-digits, abs=1e-14)
    return measured


def double(model: nn.Module) -> nn.Module:
    return model.double().eval()


def data(count: int = 7, outputs: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, dtype=torch.float64), torch.randn(count, outputs, dtype=torch.float64)


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which ways were gone."""
    gone: list[str] = []
    for name in ("_mapped", "_alone"):
        real = getattr(module._Batch, name)

        def noted(self: Any, *given: Any, name: str = name, real: Callable[..., Any] = real) -> Any:
            gone.append(name)
            return real(self, *given)

        monkeypatch.setattr(module._Batch, name, noted)
    return gone


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_of_this_suite_in_ragged_batches(case: Case, routes: list[str]) -> None:
    objective = case.objective(ragged=True)
    _, whole = case.build()
    count = len(per_example_losses(objective))
    singles = [_one(whole, place) for place in range(count)]
    terms = [objective.count_terms(single) for single in singles]

    def contribution(model: nn.Module, place: int) -> Tensor:
        return count * terms[place] / sum(terms) * case.plain(model, singles[place])

    agrees(objective, contribution, min(9, case.digits))
    # Two alone in each of three batches (one of a single example), twice: nothing else was run by itself.
    assert routes.count("_alone") == 10


def _one(whole: Any, place: int) -> Any:
    if isinstance(whole, dict):
        return {name: leaf[place : place + 1] for name, leaf in whole.items()}
    return tuple(leaf[place : place + 1] for leaf in whole)


def sentences(count: int, length: int) -> dict[str, Tensor]:
    """Padded on the right, with labels masked there and here and there, and one sentence without any label."""
    ids = torch.randint(1, 9, (count, length))
    mask = torch.arange(length) < torch.randint(3, length + 1, (count, 1))
    mask[0] = True
    labels = ids.where(mask & (torch.rand(count, length) > 0.2), MASKED)
    labels[:, 1] = ids[:, 1]
    labels[1] = MASKED
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


LANGUAGE: dict[str, Callable[[], nn.Module]] = {"gpt2": lambda: gpt2(double=True), "llama": llama, "bert": bert}


@pytest.mark.parametrize("name", LANGUAGE)
def test_sentences_count_by_their_labels(name: str, routes: list[str]) -> None:
    torch.manual_seed(1)
    model, batches = double(LANGUAGE[name]()), [sentences(6, 5), sentences(5, 6)]
    singles = [_one(batch, place) for batch in batches for place in range(len(batch["labels"]))]
    terms = [float((one["labels"][:, int(name != "bert") :] != MASKED).sum()) for one in singles]

    def contribution(model: nn.Module, place: int) -> Tensor:
        if not terms[place]:
            return torch.zeros(())
        return len(singles) * terms[place] / sum(terms) * model(**singles[place]).loss

    # Hugging Face takes some losses in float32.
    measured = agrees(Objective.huggingface(model, batches), contribution, digits=5 if name == "bert" else 9)
    assert float(measured[1]) == 0.0
    assert "_mapped" not in routes


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ignored_and_weighted_labels_and_an_example_without_any(reduction: str) -> None:
    weight = torch.tensor([0.5, 1.0, 3.0, 2.0], dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=weight, ignore_index=3, label_smoothing=0.05, reduction=reduction)
    model, tokens, labels = double(Tagger()), torch.randint(6, (8, 5)), torch.randint(3, (8, 5))
    labels[torch.rand(8, 5) < 0.3] = 3
    labels[0], labels[4] = 3, 3
    terms = [float(weight[row[row != 3]].sum()) for row in labels]

    def contribution(module: nn.Module, place: int) -> Tensor:
        if not terms[place]:
            return torch.zeros(())
        # Sums over a batch count as the trainer has them: the objective is the mean of the two sums.
        share = 8 / 2 if reduction == "sum" else 8 * terms[place] / sum(terms)
        return share * loss(module(tokens[place : place + 1]), labels[place : place + 1])

    agrees(Objective(model, loss, [(tokens[:3], labels[:3]), (tokens[3:], labels[3:])]), contribution)
    nothing = Objective(model, loss, [(tokens[:1], labels[:1]), (tokens[1:], labels[1:])])
    assert float(per_example_losses(nothing)[0]) == 0.0


LOSSES: dict[str, nn.Module] = {
    "huber": nn.HuberLoss(delta=0.5),
    "smooth l1": nn.SmoothL1Loss(beta=0.3),
    "sum of squares": nn.MSELoss(reduction="sum"),
    "logits": nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 0.5], dtype=torch.float64)),
    "weights of outputs": nn.BCEWithLogitsLoss(weight=torch.tensor([2.0, 0.5], dtype=torch.float64)),
    "counts": nn.PoissonNLLLoss(),
    "soft targets": nn.CrossEntropyLoss(label_smoothing=0.2),
    "divergence": nn.KLDivLoss(reduction="batchmean"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_torch(name: str) -> None:
    loss, model = LOSSES[name], double(mlp())
    x, y = data()[0], torch.rand(7, 2, dtype=torch.float64)
    y = y / y.sum(1, keepdim=True)
    share = 7 / 2 if loss.reduction == "sum" else 1.0
    objective = Objective(model, loss, [(x[:3], y[:3]), (x[3:], y[3:])])
    agrees(objective, lambda m, i: share * loss(m(x[i : i + 1]), y[i : i + 1]))


def _own(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().pow(1.5).sum(1).mean()


def test_losses_of_the_users_own_are_mapped_over_the_examples(routes: list[str]) -> None:
    model, (x, y) = double(mlp()), data()
    agrees(Objective(model, _own, (x, y)), lambda m, i: _own(m(x[i : i + 1]), y[i : i + 1]))
    agrees(
        Objective(model, lambda a, b: len(a) * _own(a, b), (x, y)),
        lambda m, i: 7 * _own(m(x[i : i + 1]), y[i : i + 1]),
    )
    assert routes.count("_mapped") == 2
    assert routes.count("_alone") == 4

    def with_decay(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return _own(module(batch[0]), batch[1]) + 0.1 * sum(p.square().sum() for p in module.parameters())

    agrees(Objective.from_loss(model, with_decay, [(x, y)]), lambda m, i: with_decay(m, (x[i : i + 1], y[i : i + 1])))


class Potential(nn.Module):
    """An energy and, with ``forces``, its slope in the inputs."""

    def __init__(self, forces: bool) -> None:
        super().__init__()
        self.net, self.forces = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)), forces

    def forward(self, x: Tensor) -> Tensor:
        return slope(self.net, x) if self.forces else self.net(x)


def slope(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return found


def test_losses_that_take_derivatives_themselves() -> None:
    """Differential equations and gradient penalties in the loss; force fields in the model."""
    torch.manual_seed(0)
    x = torch.randn(9, 2).double()
    equation, field = double(Potential(forces=False)), double(Potential(forces=True))

    def residual(model: nn.Module, x: Tensor) -> Tensor:
        return (slope(model, x).sum(1, keepdim=True) - model(x)).square().mean()

    mse = nn.MSELoss()
    of_equation = Objective.from_loss(equation, residual, x.split((5, 4)))
    of_field = Objective(field, mse, (x, -x))
    for objective, one in (
        (of_equation, lambda x: residual(equation, x)),
        (of_field, lambda x: mse(field(x), -x)),
    ):
        twin = torch.stack([one(x[i : i + 1]).detach() for i in range(9)])
        torch.testing.assert_close(per_example_losses(objective), twin, rtol=1e-9, atol=1e-12)
        assert objective.loss() == pytest.approx(float(twin.mean()), rel=1e-9)
        assert noise_scale(objective, draws=2).trace_covariance.determined
    whole = Objective.from_loss(equation, lambda m, x: torch.autograd.grad(m(x), list(m.parameters()))[0].mean(), [x])
    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        whole.loss()


def test_log_probabilities_and_a_model_that_cannot_be_mapped(routes: list[str]) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            first = x[:, 0] > 0
            result = x.new_zeros(len(x), 3)
            result[first], result[~first] = self.one(x[first]), self.other(x[~first])
            return result.log_softmax(1)

    model, x, y = double(Experts()), data()[0], torch.randint(3, (7,))
    agrees(Objective(model, nn.NLLLoss(), (x, y)), lambda m, i: F.nll_loss(m(x[i : i + 1]), y[i : i + 1]))
    assert routes.count("_alone") == 7


@pytest.mark.parametrize("summed", [False, True])
def test_a_mean_or_a_sum_is_told_apart_where_the_losses_are_zero_to_rounding(summed: bool) -> None:
    """A perfect fit tells nothing by itself, and both answers are nearly zero: which it is decides by how much."""
    x, _ = data(6)
    model = double(mlp())
    with torch.no_grad():
        y = model(x) + 1e-9

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (len(outputs) if summed else 1) * (outputs - targets).square().mean()

    agrees(Objective(model, loss, (x, y)), lambda m, i: (6 if summed else 1) * loss(m(x[i : i + 1]), y[i : i + 1]))


def test_other_parameters_and_many_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOGETHER", 3)
    model, (x, y) = double(mlp()), data()
    objective = Objective(model, _own, (x, y))
    values = [2 * value for value in objective.space.values()]
    there = per_example_losses(objective, values)
    with torch.no_grad():
        for tensor, value in zip(objective.space.tensors, values, strict=True):
            tensor.copy_(value)
    torch.testing.assert_close(there, per_example_losses(objective), rtol=1e-12, atol=0.0)
    for wrong in (values[:-1], values[0], [*values[1:], values[0]], "values"):
        with pytest.raises(DiagnosticsError, match="values are not those"):
            per_example_losses(objective, wrong)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 5), (torch.bfloat16, 1)])
def test_lower_precision(dtype: torch.dtype, digits: int) -> None:
    model, loss = convolutional().to(dtype).eval(), nn.CrossEntropyLoss()
    x, y = torch.randn(8, 1, 5, 5).to(dtype), torch.randint(3, (8,))
    measured = per_example_losses(Objective(model, loss, (x, y)))
    exact = per_example_losses(Objective(double(model), loss, (x.double(), y)))
    torch.testing.assert_close(measured, exact, rtol=10.0**-digits, atol=0.0)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_coupled_examples_are_refused_with_the_reason() -> None:
    loss, x, y = nn.CrossEntropyLoss(), data()[0], torch.randint(3, (7,))
    images = torch.randn(7, 1, 5, 5, dtype=torch.float64)
    with pytest.raises(DiagnosticsError, match="batch normalisation couples"):
        per_example_losses(Objective(double(convolutional()), loss, (images, y), mode="train"))
    with pytest.raises(DiagnosticsError, match="dropout"):
        per_example_losses(Objective(double(dropped()), loss, (x, y), mode="train"))
    with pytest.raises(DiagnosticsError, match="not made of the losses of its examples"):
        per_example_losses(Objective(double(nn.Sequential(mlp(outputs=3), Centred())), loss, (x, y)))

    def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))

    with pytest.raises(DiagnosticsError, match="not made of the losses of its examples"):
        per_example_losses(Objective(double(mlp(outputs=3)), contrastive, (x, y)))


def test_what_is_not_finite_or_no_objective_is_refused() -> None:
    x, y = data()
    x[5, 0] = math.nan
    for loss in (nn.MSELoss(), _own):
        with pytest.raises(DiagnosticsError, match="not finite"):
            per_example_losses(Objective(double(mlp()), loss, (x, y)))
    with pytest.raises(DiagnosticsError, match="objective is not an Objective"):
        per_example_losses(mlp())


@pytest.mark.parametrize("own", [False, True])
def test_training_with_the_measure_in_every_step_is_bit_identical(own: bool) -> None:
    def train(measured: bool) -> list[Tensor]:
        for seed in (torch.manual_seed, random.seed, numpy.random.seed):
            seed(3)
        model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3))
        x, y = torch.randn(12, 3), torch.randint(3, (12,))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if measured:
                per_example_losses(Objective(model, F.cross_entropy if not own else lambda a, b: _ce(a, b), (x, y)))
            optimizer.step()
        drawn = torch.tensor([torch.rand(1).item(), random.random(), numpy.random.rand(), float(model.training)])
        return [*model.state_dict().values(), *(p.grad for p in model.parameters()), drawn]

    for probed, plain in zip(train(True), train(False), strict=True):
        assert torch.equal(probed, plain)


def _ce(outputs: Tensor, targets: Tensor) -> Tensor:
    return -outputs.log_softmax(1)[torch.arange(len(targets)), targets].mean()
