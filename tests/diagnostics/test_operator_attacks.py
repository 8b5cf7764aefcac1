"""What an attack on the operators brought up: each case was a wrong number, or a right one refused."""

from __future__ import annotations

import copy

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import (
    DiagnosticsError,
    GaussNewton,
    Hessian,
    Objective,
    Preconditioned,
    spectral_density,
    top_eigenpairs,
    trace,
)


def _data(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, generator=generator), torch.randint(4, (count,), generator=generator)


def _mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))


def test_parameters_reached_around_the_model_are_no_constants() -> None:
    model, data = _mlp(), _data()
    held = list(model.parameters())

    def decayed(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(m(batch[0]), batch[1]) + sum(parameter.square().sum() for parameter in held)

    objective = Objective.from_loss(model, decayed, [data])
    for use in (objective.gradient, lambda: Hessian(objective) @ torch.ones(44)):
        with pytest.raises(DiagnosticsError, match="reaches the model's parameters other than through"):
            use()


def test_a_loss_of_another_model_is_not_flat_but_refused() -> None:
    model, data = _mlp(), _data()
    objective = Objective.from_loss(
        copy.deepcopy(model), lambda _, batch: F.cross_entropy(model(batch[0]), batch[1]), [data]
    )
    with pytest.raises(DiagnosticsError, match="does not depend on any selected parameter"):
        Hessian(objective) @ torch.ones(44)


@pytest.mark.parametrize("low", ["bfloat16 inside", "one layer in bfloat16"])
def test_products_of_models_that_compute_in_less_than_their_dtype_say_how_much_less(low: str) -> None:
    class Low(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = _mlp()

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(F.linear(x.bfloat16(), self.body[0].weight.bfloat16(), self.body[0].bias.bfloat16()))
            return self.body[2](x.float())

    model, data = Low(), _data(64)
    if low == "one layer in bfloat16":
        model.body[0].bfloat16()
    exact = Hessian(Objective(_mlp(), nn.CrossEntropyLoss(), data))
    rough = Hessian(Objective(model, nn.CrossEntropyLoss(), data))
    v = torch.randn(44, generator=torch.Generator().manual_seed(1))
    off = float((rough @ v - exact @ v).norm() / (exact @ v).norm())
    assert rough.product_error > 1e-4
    assert off < 20 * rough.product_error


def test_writes_through_data_outside_the_selection_are_noticed() -> None:
    model = _mlp()
    H = Hessian(Objective(model, nn.CrossEntropyLoss(), _data(), params="0.*"))
    H @ torch.ones(20)
    model[2].weight.data.mul_(3.0)
    with pytest.raises(DiagnosticsError, match="the model has changed"):
        H @ torch.ones(20)


def test_a_product_within_another_operators_steady_action() -> None:
    objective = Objective(_mlp(), nn.CrossEntropyLoss(), _data())
    H, G = Hessian(objective), GaussNewton(objective)
    v = torch.ones(44)
    alone = G @ v
    torch.testing.assert_close(H.steadily(lambda: G @ v), alone)


def test_a_step_out_of_the_domain_of_the_loss_does_not_cost_the_route() -> None:
    class Likelihood(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.full((3,), 1e-3))

        def forward(self, x: Tensor) -> Tensor:
            return -(x * torch.log(self.p)).mean(1)

    H = Hessian(Objective.from_loss(Likelihood(), lambda m, x: m(x).mean(), [torch.ones(4, 3)]))
    torch.testing.assert_close(H @ torch.ones(3), torch.full((3,), 1e6 / 3), rtol=1e-4, atol=0)
    assert H.route == "double backward, kept graph"


def test_one_unlucky_vector_does_not_spoil_the_error_of_differences() -> None:
    model = nn.Linear(3, 4)
    H = Hessian(Objective(model, nn.CrossEntropyLoss(), _data()), route="central differences")
    H @ torch.ones(16)
    assert H.product_error < 0.05


@pytest.mark.parametrize("error", [ValueError, TypeError, AssertionError])
def test_whatever_a_hand_written_backward_raises_is_a_refusal(error: type[Exception]) -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise error("once is enough")
            (x,) = ctx.saved_tensors
            return 2 * x * grad

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return Square.apply(self.layer(x))

    H = Hessian(Objective(Model(), nn.CrossEntropyLoss(), _data()))
    H @ torch.ones(16)
    assert "double backward refused: once is enough" in H.route


def test_preconditioned_takes_a_matrix_and_multiplies_by_it() -> None:
    A = Preconditioned(torch.diag(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([1.0, 1.0, 2.0]))
    assert (A @ torch.ones(3)).tolist() == [1.0, 2.0, 12.0]
    assert float(top_eigenpairs(A).values[0]) == pytest.approx(12.0, rel=1e-4)


@pytest.mark.parametrize("measure", [top_eigenpairs, spectral_density, trace], ids=lambda measure: measure.__name__)
def test_what_is_no_operator_is_refused_and_an_objective_is_told_which_one_to_take(measure: object) -> None:
    with pytest.raises(DiagnosticsError, match=r"not a symmetric map; given: Objective.*try: Hessian\(objective\)"):
        measure(Objective(_mlp(), nn.CrossEntropyLoss(), _data()))
    for other in (numpy.eye(3), None, 3.0):
        with pytest.raises(DiagnosticsError, match="not a symmetric map"):
            measure(other)


def test_complex_vectors_are_refused() -> None:
    with pytest.raises(DiagnosticsError, match=r"given: torch\.complex64; expected: a real tensor"):
        Hessian(Objective(_mlp(), nn.CrossEntropyLoss(), _data())) @ torch.ones(44, dtype=torch.complex64)


@pytest.mark.parametrize("operator", [Hessian, GaussNewton])
def test_sparse_gradients_are_gradients(operator: type[Hessian]) -> None:
    tokens, labels = torch.randint(5, (6, 2)), torch.randint(3, (6,))
    products = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 3, sparse=sparse), nn.Flatten(), nn.Tanh(), nn.Linear(6, 3))
        products.append(operator(Objective(model, nn.CrossEntropyLoss(), (tokens, labels))) @ torch.ones(36))
    torch.testing.assert_close(products[1], products[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("operator", [Hessian, GaussNewton])
def test_a_model_that_cannot_be_run_says_so_itself(operator: type[Hessian]) -> None:
    objective = Objective(
        _mlp(), nn.CrossEntropyLoss(), [((torch.ones(2, 3), torch.ones(2, 3)), torch.zeros(2).long())]
    )
    with pytest.raises(TypeError, match=r"linear\(\)"):
        operator(objective) @ torch.ones(44)
