"""What the outputs and the loss look like from outside: forms that are recognised, and those that are refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import DiagnosticsError, EmpiricalFisher, Fisher, GaussNewton, Hessian, Objective


class Routed(nn.Module):
    """Two experts; a batch goes through one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

    def forward(self, batch: Tensor) -> Tensor:
        return torch.tanh(self.experts[int(batch[0, 0] > 0)](batch))


@pytest.mark.parametrize("operator", [Hessian, GaussNewton, EmpiricalFisher])
def test_a_batch_that_does_not_reach_the_selection_counts_as_zero(operator: type[Hessian]) -> None:
    torch.manual_seed(0)
    model, x = Routed().double(), torch.randn(4, 3, dtype=torch.float64)
    x[:, 0] = x[:, 0].abs()
    y = torch.randint(3, (4,))
    both = Objective(model, nn.CrossEntropyLoss(), [(-x, y), (x, y)], params="experts.1.*")
    only = Objective(model, nn.CrossEntropyLoss(), [(x, y)], params="experts.1.*")
    V = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(operator(both) @ V, 0.5 * (operator(only) @ V), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(both.gradient(), 0.5 * only.gradient())


@pytest.mark.parametrize("operator", [Hessian, GaussNewton, EmpiricalFisher])
def test_a_selection_that_no_batch_reaches_is_refused(operator: type[Hessian]) -> None:
    model, x = Routed(), torch.ones(4, 3)
    objective = Objective(model, nn.CrossEntropyLoss(), (x, torch.zeros(4).long()), params="experts.0.*")
    with pytest.raises(DiagnosticsError, match="does not depend on any selected parameter"):
        operator(objective) @ torch.ones(12)


class Wrapped(nn.Module):
    """A Hugging Face model of old: ``model(**batch)`` gives .loss and .logits."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.body, self.criterion = nn.Linear(3, 4), loss

    def forward(self, x: Tensor, labels: Tensor) -> SimpleNamespace:
        logits = torch.tanh(self.body(x))
        return SimpleNamespace(logits=logits, loss=self.criterion(logits, labels))


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.MSELoss(), nn.CrossEntropyLoss()], ids=str)
@pytest.mark.parametrize("operator", [GaussNewton, Fisher, EmpiricalFisher])
def test_a_loss_inside_the_model_is_recognised_by_its_value(operator: type[GaussNewton], loss: nn.Module) -> None:
    torch.manual_seed(0)
    model, x = Wrapped(loss).double(), torch.randn(6, 3, dtype=torch.float64)
    labels = torch.randint(4, (6,)) if isinstance(loss, nn.CrossEntropyLoss) else torch.rand(6, 4).double()
    inside = Objective.huggingface(model, [{"x": x, "labels": labels}])
    outside = Objective(nn.Sequential(model.body, nn.Tanh()), loss, (x, labels))
    V = torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(operator(inside) @ V, operator(outside) @ V, rtol=1e-10, atol=1e-12)


def test_a_loss_inside_the_model_that_is_not_recognised_is_differentiated() -> None:
    torch.manual_seed(0)
    model, x = Wrapped(nn.HuberLoss(delta=0.3)).double(), torch.randn(6, 3, dtype=torch.float64)
    labels = torch.randn(6, 4, dtype=torch.float64)
    inside = Objective.huggingface(model, [{"x": x, "labels": labels}])
    outside = Objective(nn.Sequential(model.body, nn.Tanh()), nn.HuberLoss(delta=0.3), (x, labels))
    V = torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(GaussNewton(inside) @ V, GaussNewton(outside) @ V, rtol=1e-10, atol=1e-12)
    with pytest.raises(DiagnosticsError, match="labels cannot be drawn"):
        Fisher(inside) @ V


def test_poisson_terms_are_counted_by_element() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(5, (6, 4)).double()
    loss = nn.PoissonNLLLoss()
    by_hand = torch.zeros(16, 16, dtype=torch.float64)
    for row, target in zip(x, y, strict=True):
        total = nn.PoissonNLLLoss(reduction="sum")(model(row), target)
        g = torch.cat([part.reshape(-1) for part in torch.autograd.grad(total, tuple(model.parameters()))])
        by_hand += torch.outer(g, g) / y.numel()
    F_ = EmpiricalFisher(Objective(model, loss, (x, y))) @ torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(F_, by_hand, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", [nn.NLLLoss(), nn.KLDivLoss(reduction="batchmean")], ids=str)
def test_losses_linear_in_the_outputs_are_refused_for_what_would_be_zero(loss: nn.Module) -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.LogSoftmax(dim=1)), torch.randn(6, 3)
    y = torch.randint(4, (6,)) if isinstance(loss, nn.NLLLoss) else F.softmax(torch.randn(6, 4), dim=1)
    with pytest.raises(DiagnosticsError, match=r"linear in the model's outputs.*CrossEntropyLoss"):
        GaussNewton(Objective(model, loss, (x, y))) @ torch.ones(16)


def test_what_cannot_see_outputs_names_the_constructors_that_can() -> None:
    objective = Objective.from_loss(nn.Linear(3, 1), lambda m, x: m(x).square().mean(), [torch.randn(4, 3)])
    with pytest.raises(DiagnosticsError, match=r"cannot be seen inside loss_fn.*Objective\.huggingface"):
        GaussNewton(objective) @ torch.ones(4)
