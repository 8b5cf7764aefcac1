"""The ladder of routes: double backward where it is right, central differences and the reason where it is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diagnostics import DiagnosticsError, EmpiricalFisher, GaussNewton, Hessian, Objective, top_eigenpairs
from tests.cases import WEIGHT_NORM
from tests.reference.dense_hessian import differenced_hessian


class FusedTanh(torch.autograd.Function):
    """A fused kernel; how its backward stands in the way of a second derivative is the business of each below."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y


class OnceTanh(FusedTanh):
    """A fused kernel that says it has only a first derivative."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)


class SilentTanh(FusedTanh):
    """A fused kernel whose backward is opaque to autograd and does not say so."""

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return gradient * torch.from_numpy(1 - y.detach().numpy() ** 2)


class Refusing(FusedTanh):
    """A fused kernel that refuses to be differentiated while a graph is built."""

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("no second derivative here")
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)


class NoGradient(torch.autograd.Function):
    """Not differentiable at all."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        raise RuntimeError("no backward kernel for this one")


class Calls(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)


class Distances(nn.Module):
    """To learnt centres: cdist has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.centres)


def _bag() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(6, 3), nn.Tanh(), nn.Linear(3, 2))


def _with(function: type[torch.autograd.Function]) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), Calls(function), nn.Linear(4, 2))


def _objective(model: nn.Module, tokens: bool = False, outputs: int = 2, parts: int = 1) -> Objective:
    x = torch.randint(6, (8, 4)) if tokens else torch.randn(8, 3, dtype=torch.float64)
    y = torch.randn(8, outputs, dtype=torch.float64)
    return Objective(model.double(), nn.MSELoss(), list(zip(x.chunk(parts), y.chunk(parts), strict=True)))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda parts: _objective(_with(Refusing), parts=parts), "no second derivative here"),
        (lambda parts: _objective(Distances(), outputs=4, parts=parts), "cdist"),
        (lambda parts: _objective(_bag(), tokens=True, parts=parts), "embedding_bag"),
    ],
    ids=["custom", "cdist", "embedding bag"],
)
def test_without_a_second_derivative_differences_take_over_and_name_the_refusal(
    make: object, words: str, parts: int
) -> None:
    objective = make(parts)
    H = Hessian(objective)
    v = torch.randn(H.shape[0], dtype=torch.float64)
    product = H @ v
    x, y = (torch.cat(side) for side in zip(*objective.batches, strict=True))
    dense = differenced_hessian(objective.model, lambda: nn.MSELoss()(objective.model(x), y))
    torch.testing.assert_close(product, dense @ v, rtol=1e-5, atol=1e-5)
    assert H.route.startswith("central differences (double backward refused: ")
    assert words in H.route
    assert 0 < H.product_error < 1e-5
    pairs = top_eigenpairs(H, k=2)
    assert words in pairs.how
    torch.testing.assert_close(
        pairs.values, torch.linalg.eigvalsh((dense + dense.T) / 2).flip(0)[:2], rtol=1e-3, atol=1e-5
    )


def test_asked_for_double_backward_it_does_not_fall_back() -> None:
    H = Hessian(_objective(_with(Refusing)), route="double backward")
    with pytest.raises(DiagnosticsError, match=r"'double backward' does not work.*no second derivative here"):
        H @ torch.ones(H.shape[0])


def test_when_nothing_works_both_refusals_are_named() -> None:
    H = Hessian(_objective(_with(NoGradient)))
    with pytest.raises(
        DiagnosticsError, match=r"no route.*double backward refused: no backward.*central differences: no backw"
    ):
        H @ torch.ones(H.shape[0])


def test_a_refused_input_is_not_taken_for_a_refused_route() -> None:
    objective = Objective.from_loss(nn.Linear(2, 1), lambda m, x: m(x).detach().sum(), [torch.ones(3, 2)])
    with pytest.raises(DiagnosticsError, match="does not depend on any selected parameter"):
        Hessian(objective) @ torch.ones(3)


@pytest.mark.parametrize("function", [OnceTanh, SilentTanh])
def test_a_double_backward_that_is_wrong_without_a_word_is_found_out(function: type[torch.autograd.Function]) -> None:
    """Autograd takes tanh' for a constant here; ``once_differentiable`` raises under ``backward`` only."""
    objective = _objective(_with(function))
    v = torch.randn(objective.num_parameters, dtype=torch.float64)
    x, y = objective.batches[0]
    truth = differenced_hessian(objective.model, lambda: nn.MSELoss()(objective.model(x), y)) @ v
    wrong = Hessian(objective, route="double backward") @ v
    assert float((wrong - truth).norm() / truth.norm()) > 0.1, "the control: torch says nothing"
    for _ in range(2):
        H = Hessian(objective)
        torch.testing.assert_close(H @ v, truth, rtol=1e-5, atol=1e-5)
        assert H.route.startswith("central differences (double backward is off by ")


def test_the_wrong_double_backward_of_weight_norm_is_found_out() -> None:
    model, whole = WEIGHT_NORM.build()
    truth = differenced_hessian(model, lambda: WEIGHT_NORM.plain_loss(model, whole))
    H = Hessian(WEIGHT_NORM.objective())
    torch.testing.assert_close(H @ torch.eye(len(truth)), truth, rtol=1e-5, atol=1e-5)
    assert "double backward is off by " in H.route


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.GELU, nn.ELU])
def test_kinks_are_not_taken_for_a_wrong_double_backward(activation: type[nn.Module], dtype: torch.dtype) -> None:
    """Differences of a ReLU net are far off, and know it: two step sizes disagree as much."""
    for width in (8, 64):
        layers = [nn.Linear(6, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 3)]
        data = torch.randn(400, 6, dtype=dtype), torch.randint(3, (400,))
        H = Hessian(Objective(nn.Sequential(*layers).to(dtype), nn.CrossEntropyLoss(), data))
        H @ torch.ones(H.shape[0])
        assert H.route == "double backward, kept graph"


def test_double_backward_is_checked_once_per_objective() -> None:
    calls = []
    objective = Objective.from_loss(
        nn.Sequential(nn.Linear(3, 4), nn.Tanh()),
        lambda m, x: calls.append(1) or m(x).square().mean(),
        [torch.randn(5, 3)],
    )
    v = torch.ones(16)
    Hessian(objective) @ v
    first = len(calls)
    H = Hessian(objective)
    H @ v
    H @ v
    assert (first, len(calls) - first) == (3, 1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_differences_do_not_care_about_the_length_of_the_vector(scale: float) -> None:
    objective = _objective(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    v = torch.randn(objective.num_parameters, dtype=torch.float64)
    exact = Hessian(objective) @ (scale * v)
    differences = Hessian(objective, route="central differences")
    assert float((differences @ (scale * v) - exact).norm() / exact.norm()) < 1e-6
    assert float((differences @ torch.zeros_like(v)).norm()) == 0.0


def test_float32_differences_report_an_error_of_the_right_size() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    objective = Objective(model, nn.MSELoss(), (torch.randn(32, 3), torch.randn(32, 2)))
    exact, differences = Hessian(objective), Hessian(objective, route="central differences")
    v = torch.randn(objective.num_parameters)
    true_error = float((differences @ v - exact @ v).norm() / (exact @ v).norm())
    assert true_error / 5 < differences.product_error < 20 * true_error < 1.0


class Checkpointed(nn.Module):
    """Recomputes its middle during the backward pass, with dropout in it."""

    def __init__(self, inner: nn.Module, checkpointing: bool) -> None:
        super().__init__()
        self.inner, self.checkpointing = inner, checkpointing

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False) if self.checkpointing else self.inner(x)


@pytest.mark.parametrize("route", ["double backward", "central differences", None])
def test_checkpointed_segments_are_recomputed_at_the_right_parameters(route: str | None) -> None:
    """They run again during the backward pass: there too, they must see the values that are differentiated in."""
    inner = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 2)).double()
    data = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    results = []
    for checkpointing in (False, True):
        objective = Objective(Checkpointed(inner, checkpointing), nn.MSELoss(), data, mode="train")
        H = Hessian(objective, route=route)
        v = torch.ones(H.shape[0], dtype=torch.float64)
        away = [value + 0.5 for value in objective.space.values()]
        results.append((objective.gradient(), objective.loss_and_gradient(away)[1], H @ v, H @ v, H.route))
    for plain, recomputed in zip(*results, strict=True):
        assert plain == recomputed if isinstance(plain, str) else torch.equal(plain, recomputed)
    assert results[0][4].startswith(route or "double backward")


@pytest.mark.parametrize("selected", [None, "0.*", "2.*"])
@pytest.mark.parametrize("operator", [Hessian, GaussNewton, EmpiricalFisher])
def test_a_reentrant_checkpoint_is_refused_by_name_and_never_taken_for_a_constant(
    operator: type[Hessian], selected: str | None
) -> None:
    """Before it, in it, after it: some refuse with an error of torch's, some give zeros after a warning."""

    class Segmented(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[3](checkpoint(self[2], torch.tanh(self[0](x)), use_reentrant=True))

    model = Segmented(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 4), nn.Linear(4, 2))
    params = selected or (lambda name, tensor: not name.startswith("0."))
    objective = Objective(model, nn.MSELoss(), (torch.randn(5, 3), torch.randn(5, 2)), params=params)
    with pytest.raises(DiagnosticsError, match="reentrant activation checkpoints"):
        objective.gradient()
    with pytest.raises(DiagnosticsError, match="reentrant activation checkpoints"):
        operator(objective) @ torch.ones(objective.num_parameters)


def test_bfloat16_eigenvalues_carry_an_error_that_covers_the_truth() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    data = torch.randn(64, 3), torch.randn(64, 2)
    true = float(top_eigenpairs(Hessian(Objective(model, nn.MSELoss(), data))).values[0])
    low = Objective(model.bfloat16(), nn.MSELoss(), tuple(part.bfloat16() for part in data))
    pairs = top_eigenpairs(Hessian(low))
    assert abs(float(pairs.values[0]) - true) < 2 * float(pairs.residuals[0]) < true
    assert "bfloat16" in pairs.how
