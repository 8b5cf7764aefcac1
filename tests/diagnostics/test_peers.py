"""The operators agree with three peers where those are right, and with the dense Hessian where one is not.

In float64, on one batch and on equal batches. Peers get math attention from here: the fused kernel has no second
derivative, and only our operators see to that themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from diagnostics import EmpiricalFisher, GaussNewton, Hessian, Objective, top_eigenpairs
from tests.cases import mlp
from tests.reference.dense_hessian import dense_hessian

# What curvlinops imports, and torch's own forward-mode derivatives, compile with torch.jit.script.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@dataclass(frozen=True)
class Problem:
    model: nn.Module
    loss: nn.Module
    batches: list[tuple[Tensor, Tensor]]

    def objective(self) -> Objective:
        return Objective(self.model, self.loss, self.batches)

    def direction(self) -> Tensor:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return torch.randn(count, dtype=torch.float64)


class Transformer(nn.Module):
    """One pre-norm block with one head, pooled."""

    def __init__(self, affine: bool = False) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(4, elementwise_affine=affine)
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.feed = nn.Sequential(
            nn.LayerNorm(4, elementwise_affine=affine), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        return self.head((x + self.feed(x)).mean(1))


def _cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 3, 3), nn.GELU(), nn.Flatten())


def _problem(model: nn.Module, shape: tuple[int, ...], loss: nn.Module, sizes: tuple[int, ...]) -> Problem:
    model = model.double().eval()
    inputs = torch.randn(sum(sizes), *shape, dtype=torch.float64)
    outputs = model(inputs).detach()
    labels = torch.randint(outputs.shape[1], (len(inputs),))
    targets = labels if isinstance(loss, nn.CrossEntropyLoss) else torch.randn_like(outputs)
    return Problem(model, loss, list(zip(inputs.split(sizes), targets.split(sizes), strict=True)))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (3,)),
    "cnn": (_cnn, (1, 6, 6)),
    "transformer": (Transformer, (5, 4)),
}
LOSSES = {"cross-entropy": nn.CrossEntropyLoss(), "mse": nn.MSELoss()}
SIZES = {"one batch": (12,), "three batches": (4, 4, 4)}


@pytest.fixture(params=[(model, loss, sizes) for model in MODELS for loss in LOSSES for sizes in SIZES], ids=", ".join)
def problem(request: pytest.FixtureRequest) -> Problem:
    model, loss, sizes = request.param
    build, shape = MODELS[model]
    return _problem(build(), shape, LOSSES[loss], SIZES[sizes])


@pytest.fixture(autouse=True)
def _math_attention() -> Iterator[None]:
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture
def curvlinops() -> Any:
    return pytest.importorskip("curvlinops")


@pytest.fixture
def eigenthings() -> Any:
    return pytest.importorskip("hessian_eigenthings")


def _distance(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("ours", "theirs"), [(Hessian, "HessianLinearOperator"), (GaussNewton, "GGNLinearOperator")], ids=["hessian", "ggn"]
)
def test_curvlinops(curvlinops: Any, problem: Problem, ours: type, theirs: str) -> None:
    parameters = list(problem.model.parameters())
    operator = getattr(curvlinops, theirs)(problem.model, problem.loss, parameters, problem.batches)
    v = problem.direction()
    assert _distance(ours(problem.objective()) @ v, operator @ v) < 1e-9


def test_eigenthings(eigenthings: Any, problem: Problem) -> None:
    model, loss, batches = problem.model, problem.loss, problem.batches
    v = problem.direction()
    hessian = eigenthings.HessianOperator(model, batches, eigenthings.supervised_loss(loss))
    assert _distance(Hessian(problem.objective()) @ v, hessian.matvec(v)) < 1e-9


def test_eigenthings_gauss_newton(eigenthings: Any, problem: Problem) -> None:
    model, loss, batches = problem.model, problem.loss, problem.batches
    v = problem.direction()
    of_output = eigenthings.supervised_loss_of_output(loss)
    ggn = eigenthings.GGNOperator(model, batches, eigenthings.supervised_forward, of_output)
    assert _distance(GaussNewton(problem.objective()) @ v, ggn.matvec(v).detach()) < 1e-9


# It calls backward(create_graph=True), of which torch warns that the graph then keeps itself alive.
@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True:UserWarning")
def test_pyhessian(problem: Problem) -> None:
    pyhessian = pytest.importorskip("pyhessian")
    v = problem.direction()
    H = Hessian(problem.objective())
    data = {"data": problem.batches[0]} if len(problem.batches) == 1 else {"dataloader": problem.batches}
    theirs = pyhessian.hessian(problem.model, problem.loss, cuda=False, **data)
    pieces = v.split([parameter.numel() for parameter in theirs.params])
    parts = [piece.view_as(parameter) for piece, parameter in zip(pieces, theirs.params, strict=True)]
    if len(problem.batches) == 1:
        products = pyhessian.utils.hessian_vector_product(theirs.gradsH, theirs.params, parts)
    else:
        products = theirs.dataloader_hv_product(parts)[1]
    problem.model.zero_grad()
    assert _distance(H @ v, torch.cat([part.flatten() for part in products])) < 1e-9


def test_empirical_fisher(curvlinops: Any, eigenthings: Any, problem: Problem) -> None:
    model, loss, batches, v = problem.model, problem.loss, problem.batches, problem.direction()
    ours = EmpiricalFisher(problem.objective()) @ v
    assert _distance(ours, curvlinops.EFLinearOperator(model, loss, list(model.parameters()), batches) @ v) < 1e-9
    # Its term for a squared error is the mean over an example's outputs, ours and that of curvlinops their sum.
    outputs = 1 if isinstance(loss, nn.CrossEntropyLoss) else batches[0][1].shape[1]
    per_sample = eigenthings.supervised_per_sample_loss(loss)
    theirs = eigenthings.EmpiricalFisherOperator(model, batches, per_sample).matvec(v).detach()
    assert _distance(ours, outputs * theirs) < 1e-9


def test_where_curvlinops_is_wrong(curvlinops: Any) -> None:
    """A batched backward pass under forward mode is silently wrong for layer norms with a weight (torch 2.13)."""
    problem = _problem(Transformer(affine=True), (5, 4), nn.CrossEntropyLoss(), (12,))
    model, v, ((x, y),) = problem.model, problem.direction(), problem.batches
    dense = dense_hessian(model, lambda: problem.loss(model(x), y))
    theirs = curvlinops.HessianLinearOperator(model, problem.loss, list(model.parameters()), problem.batches)
    assert _distance(theirs @ v, dense @ v) > 1e-3
    assert _distance(Hessian(problem.objective()) @ v, dense @ v) < 1e-9


def test_where_eigenthings_is_wrong(eigenthings: Any) -> None:
    """Its mean over batches is not weighted, and its default for one eigenvalue takes two products."""
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 5))
    problem = _problem(model, (10,), nn.CrossEntropyLoss(), (240, 10))
    x, y = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))
    dense = dense_hessian(model, lambda: problem.loss(model(x), y))
    top = float(torch.linalg.eigvalsh(dense)[-1])
    supervised = eigenthings.supervised_loss(problem.loss)

    v = problem.direction()
    ragged = eigenthings.HessianOperator(model, problem.batches, supervised)
    assert _distance(ragged.matvec(v), dense @ v) > 0.5
    assert _distance(Hessian(problem.objective()) @ v, dense @ v) < 1e-9

    whole = eigenthings.HessianOperator(model, [(x, y)], supervised)
    assert abs(float(eigenthings.lanczos(whole, k=1, seed=0).eigenvalues[0]) / top - 1) > 0.1
    assert abs(float(top_eigenpairs(Hessian(problem.objective())).values[0]) / top - 1) < 1e-3
