"""What the outputs and the loss look like from outside: forms that are recognised, and those that are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import (
    DiagnosticsError,
    EmpiricalFisher,
    Fisher,
    GaussNewton,
    Hessian,
    Objective,
    gauss_newton_spectrum,
)
from diagnostics.forms import PairForm
from diagnostics.output_loss import Categorical


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


class Focal(nn.CrossEntropyLoss):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        terms = F.cross_entropy(outputs, targets, reduction="none")
        return ((1 - (-terms).exp()) ** 2 * terms).mean()


class Scaled(nn.CrossEntropyLoss):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.1 * super().forward(outputs, targets)


class ScaledSquares(nn.MSELoss):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.1 * super().forward(outputs, targets)


def _hooked() -> nn.Module:
    loss = nn.CrossEntropyLoss()
    loss.register_forward_hook(lambda module, inputs, value: 0.1 * value)
    return loss


class Disguised(nn.CrossEntropyLoss):
    """Has the forward of its base: only its value shows the factor."""

    def _call_impl(self, *arguments: Tensor) -> Tensor:
        return 0.1 * super()._call_impl(*arguments)


@pytest.mark.parametrize("make", [Focal, Scaled, ScaledSquares, _hooked, Disguised], ids=lambda make: make.__name__)
def test_subclasses_with_a_loss_of_their_own_are_taken_as_functions(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    loss, model, x = make(), nn.Linear(3, 4).double(), torch.randn(6, 3, dtype=torch.float64)
    y = torch.randn(6, 4).double() if isinstance(loss, nn.MSELoss) else torch.randint(4, (6,))
    V = torch.eye(16, dtype=torch.float64)
    objective, function = (Objective(model, own, (x, y)) for own in (loss, lambda outputs, y: loss(outputs, y)))
    torch.testing.assert_close(GaussNewton(objective) @ V, Hessian(objective) @ V, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(EmpiricalFisher(objective) @ V, EmpiricalFisher(function) @ V, rtol=1e-10, atol=1e-12)
    spectra = gauss_newton_spectrum(objective), torch.linalg.eigvalsh(Hessian(objective) @ V)
    assert float(spectra[0].values.max()) == pytest.approx(float(spectra[1].max()), rel=1e-8)
    with pytest.raises(DiagnosticsError, match="labels cannot be drawn"):
        Fisher(objective) @ V


def test_a_sum_of_the_users_own_is_not_averaged() -> None:
    class Summed(nn.MSELoss):
        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().forward(outputs, targets)

    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 1).double(), torch.randn(6, 3).double(), torch.randn(6, 1).double()
    own, known = (Objective(model, kind(reduction="sum"), (x, y)) for kind in (Summed, nn.MSELoss))
    V = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(EmpiricalFisher(own) @ V, EmpiricalFisher(known) @ V, rtol=1e-10, atol=1e-12)


W = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()


@pytest.mark.parametrize(
    "loss",
    [nn.BCEWithLogitsLoss(weight=W), partial(F.binary_cross_entropy_with_logits, weight=W)],
    ids=["module", "partial"],
)
def test_weighted_binary_cross_entropy_is_no_likelihood(loss: nn.Module) -> None:
    objective = Objective(nn.Linear(3, 4).double(), loss, (torch.randn(6, 3).double(), torch.rand(6, 4).double()))
    with pytest.raises(DiagnosticsError, match=r"labels cannot be drawn.*without pos_weight or weight.*GaussNewton"):
        Fisher(objective) @ torch.ones(16, dtype=torch.float64)
    torch.testing.assert_close(
        GaussNewton(objective) @ torch.eye(16).double(), Hessian(objective) @ torch.eye(16).double()
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_masked_weighted_and_soft_targets_are_still_recognised(reduction: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4).double(), torch.randn(6, 3, dtype=torch.float64)
    hard, soft = torch.tensor([0, -100, 2, 3, 1, -100]), torch.rand(6, 4).double().softmax(dim=1)
    for targets in (hard, soft):
        for smoothing in (0.0, 0.2):
            loss = nn.CrossEntropyLoss(weight=W, reduction=reduction, label_smoothing=smoothing)
            objective = Objective(model, loss, (x, targets))
            at = objective.batch_outputs(0, objective.space.values())
            assert isinstance(at.kind, Categorical)


class Total(nn.Module):
    """One number for a whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).sum()


def test_an_output_without_dimensions_is_one_example() -> None:
    torch.manual_seed(0)
    model, x, y = Total().double(), torch.randn(6, 3).double(), torch.tensor(2.0).double()
    objective = Objective(model, lambda outputs, y: F.mse_loss(outputs, y[0]), (x, y.expand(1)))
    known = Objective(nn.Sequential(model, nn.Flatten(0)), nn.MSELoss(), (x, y.expand(1)))
    V = torch.eye(4, dtype=torch.float64)
    for operator in (GaussNewton, EmpiricalFisher):
        torch.testing.assert_close(operator(objective) @ V, operator(known) @ V, rtol=1e-10, atol=1e-12)
    assert float(gauss_newton_spectrum(objective).values.max()) == pytest.approx(
        float(torch.linalg.eigvalsh(GaussNewton(objective) @ V).max())
    )
    scalar = Objective.from_loss(model, lambda m, b: m(b), [x])
    scalar.form = PairForm(nn.MSELoss())
    scalar.batches = ((x, y),)
    torch.testing.assert_close(Fisher(scalar, seed=1) @ V, Fisher(known, seed=1) @ V, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "given"),
    [(nn.CrossEntropyLoss(reduction="none"), "shape .6,"), (lambda outputs, y: float(outputs.sum()), "float")],
)
@pytest.mark.parametrize("measure", [lambda o: GaussNewton(o) @ torch.ones(16), gauss_newton_spectrum])
def test_a_loss_that_is_no_scalar_is_refused_where_the_outputs_are_seen(
    measure: Callable[[Objective], object], loss: Callable[[Tensor, Tensor], Tensor], given: str
) -> None:
    objective = Objective(nn.Linear(3, 4), loss, (torch.randn(6, 3), torch.randint(4, (6,))))
    with pytest.raises(DiagnosticsError, match=f"the loss is not a scalar; given: .*{given}"):
        measure(objective)
