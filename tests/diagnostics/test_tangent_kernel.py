"""The tangent kernel of whole models against the Jacobian by torch.func, closed forms, and the Gauss-Newton matrix."""

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

from diagnostics import DiagnosticsError, GaussNewton, Objective, TangentKernel, gradient_gram, ntk
from tests.cases import CASES
from tests.cases.case import Case
from tests.cases.language import llama
from tests.cases.models import Functional, Recurrent, TiedTagger, convolutional, dropped, frozen, mlp, normalised
from tests.diagnostics.test_per_example import Block
from tests.reference import tangent_kernel as twin


def agrees(objective: Objective, call: twin.Call, *, digits: int = 9, recorded: bool = True) -> TangentKernel:
    """Compare all three kernels with the twin, and the parts of the full one with its parts."""
    found = twin.jacobian(objective.model, call, objective.space.names)
    whole = twin.kernel(found, found)
    size = whole.shape[0] * whole.shape[1]
    kernel = ntk(objective, by_layer=True)
    close(kernel.matrix, whole.reshape(size, size), digits)
    for name, part in kernel.by_layer.items():
        close(part, twin.kernel({name: found[name]}, found).reshape(size, size), digits, float(whole.abs().max()))
    close(torch.stack(list(kernel.by_layer.values())).sum(0), kernel.matrix, digits)
    close(ntk(objective, outputs="trace").matrix, twin.trace(whole), digits)
    close(ntk(objective, outputs="sum").matrix, twin.of_sum(whole), digits, float(twin.trace(whole).abs().max()))
    assert (kernel.examples, kernel.classes, kernel.outputs) == (whole.shape[0], whole.shape[1], "full")
    assert (set(kernel.routes.values()) == {"recorded"}) is recorded, kernel.routes
    return kernel


def close(measured: Tensor, expected: Tensor, digits: int = 9, size: float | None = None) -> None:
    size = float(expected.abs().max()) if size is None else size
    torch.testing.assert_close(measured, expected, rtol=0.0, atol=10.0**-digits * size)


def data(*shape: int, count: int = 6, outputs: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(count, *shape, dtype=torch.float64), torch.randn(count, outputs, dtype=torch.float64)


def squared(model: nn.Module, *shape: int, count: int = 6, outputs: int = 3, **settings: Any) -> Objective:
    return Objective(model.double().eval(), nn.MSELoss(), data(*shape, count=count, outputs=outputs), **settings)


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("case", [case for case in CASES if case.outputs is not None], ids=str)
def test_every_case_is_as_its_jacobian(case: Case, ragged: bool) -> None:
    model, whole = case.build()
    objective = case.objective(ragged=ragged)
    if isinstance(whole, dict):
        # Three tokens with nine logits are 27 outputs.
        whole = {name: leaf[:5, :3].contiguous() for name, leaf in whole.items()}
        cuts = [slice(0, 4), slice(4, 5)] if ragged else [slice(0, 5)]
        objective = case.wrap(model, [{name: leaf[cut] for name, leaf in whole.items()} for cut in cuts])
    outputs = case.outputs
    assert outputs is not None
    agrees(objective, lambda module: outputs(module, whole), recorded=case.name != "lstm")


def test_llama_with_padded_sentences() -> None:
    torch.manual_seed(1)
    ids = torch.randint(1, 9, (5, 4))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    batch["attention_mask"][1, 3:] = 0
    model = llama().double().eval()
    agrees(Objective.huggingface(model, [batch]), lambda module: module(**batch).logits)


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), Block(4), nn.Conv2d(4, 6, 3, stride=2, groups=2), Block(6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual, group norm, convolution in groups": (resnet, (3, 8, 8)),
    "transposed convolution": (
        lambda: nn.Sequential(
            nn.ConvTranspose1d(2, 4, 3, stride=2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)
        ),
        (2, 4),
    ),
    "batch norm": (lambda: nn.Sequential(convolutional()), (1, 5, 5)),
    "functions and a scalar": (Functional, (3,)),
    "instance norm": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, affine=True), nn.Flatten(), nn.Linear(9, 3)),
        (2, 4),
    ),
    "tokens": (lambda: nn.Sequential(nn.Linear(4, 30), nn.GELU(), nn.Linear(30, 3), Pooled()), (3, 4)),
}


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    torch.manual_seed(2)
    make, shape = MODELS[name]
    objective = squared(make(), *shape, outputs=3)
    agrees(objective, lambda module: module(objective.batches[0][0]))


def test_a_tied_weight_counts_with_the_cross_terms_of_its_uses() -> None:
    torch.manual_seed(2)
    tokens = torch.randint(4, (5, 3))
    objective = Objective(TiedTagger().double(), nn.CrossEntropyLoss(), (tokens, tokens))
    agrees(objective, lambda module: module(tokens))


class Turned(nn.Module):
    """One matrix used both ways round: neither side of its gradients is common to the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(x @ self.weight), self.weight)


class Apart(nn.Module):
    """Outputs of which each has layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(outputs=1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x)], dim=1)


@pytest.mark.parametrize("make", [Turned, Apart])
def test_outputs_that_use_parameters_in_different_ways(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(3)
    objective = squared(make(), 3)
    agrees(objective, lambda module: module(objective.batches[0][0]))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("outputs", [1, 3])
def test_few_examples_and_few_outputs(count: int, outputs: int) -> None:
    objective = squared(mlp(outputs=outputs), 3, count=count, outputs=outputs)
    kernel = agrees(objective, lambda module: module(objective.batches[0][0]), recorded=count > 3)
    assert kernel.matrix.shape == (count * outputs,) * 2


def test_outputs_without_an_axis_of_their_own_and_outputs_of_several() -> None:
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp(outputs=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).squeeze(-1)

    objective = squared(Scalar(), 3)
    assert agrees(objective, lambda module: module(objective.batches[0][0])).classes == 1
    # (N, T, V) and the same with tokens in rows (N·T, V).
    sequences, (x, y) = nn.Sequential(mlp(), nn.Flatten(0, 1)), data(4, 3)
    objective = Objective(sequences.double(), lambda outputs, targets: outputs.square().sum(), (x, y))
    assert agrees(objective, lambda module: module(x).view(6, 4, 2)).classes == 8


def test_a_linear_model_has_its_closed_form() -> None:
    """Θ = (XXᵀ + 1) ⊗ I: example-major."""
    objective = squared(nn.Linear(4, 3), 4)
    x = objective.batches[0][0]
    kernel = ntk(objective, by_layer=True)
    close(kernel.matrix, torch.kron(x @ x.T + 1.0, torch.eye(3).double()), 14)
    close(kernel.by_layer["bias"], torch.kron(torch.ones(6, 6).double(), torch.eye(3).double()), 14)
    close(ntk(objective, outputs="trace").matrix, 3.0 * (x @ x.T + 1.0), 14)
    close(ntk(objective, outputs="sum").matrix, x @ x.T + 1.0, 14)
    # The largest of (XXᵀ + 1) three times over.
    close(kernel.eigenvalues[:3], torch.linalg.eigvalsh(x @ x.T + 1.0)[-1].expand(3), 13)


class HalfSquared(nn.Module):
    """The mean over examples of ½‖f − y‖²."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (outputs - targets).square().sum(1).mean()


@pytest.mark.parametrize("ragged", [False, True])
def test_gauss_newton_has_its_eigenvalues(ragged: bool) -> None:
    """eig(GGN) = eig(Θ)/N for ½ mean ‖f − y‖², and eig(A^½ΘA^½)/N for cross-entropy, A = diag(p) − ppᵀ."""
    torch.manual_seed(4)
    model, (x, y) = normalised().double(), data(3, count=7)
    cuts = [(x[:4], y[:4]), (x[4:], y[4:])] if ragged else [(x, y)]
    objective = Objective(model, HalfSquared(), cuts)
    kernel = ntk(objective)
    dense = GaussNewton(objective) @ torch.eye(objective.num_parameters, dtype=torch.float64)
    close(torch.linalg.eigvalsh(dense).flip(0)[:21], kernel.eigenvalues / 7, 9)

    labels = torch.randint(3, (7,))
    cuts = [(x[:4], labels[:4]), (x[4:], labels[4:])] if ragged else [(x, labels)]
    objective = Objective(model, nn.CrossEntropyLoss(), cuts)
    dense = GaussNewton(objective) @ torch.eye(objective.num_parameters, dtype=torch.float64)
    p = model(x).detach().softmax(1)
    middle = torch.block_diag(*(torch.diag(row) - torch.outer(row, row) for row in p))
    values, vectors = torch.linalg.eigh(middle)
    root = vectors @ torch.diag(values.clamp_min(0.0).sqrt()) @ vectors.T
    expected = torch.linalg.eigvalsh(root @ ntk(objective).matrix @ root).flip(0) / 7
    close(torch.linalg.eigvalsh(dense).flip(0)[:21], expected, 9)


class Parametrised(nn.Module):
    """Two layers in the parametrisation whose kernel has a limit: f = √(2/m) v · relu(Wx)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, width, bias=False), nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.first.weight)
        nn.init.normal_(self.second.weight)
        self.scale = math.sqrt(2.0 / width)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.second(F.relu(self.first(x)))


def test_a_wide_network_has_the_arc_cosine_kernel() -> None:
    torch.manual_seed(0)
    x = F.normalize(torch.randn(8, 5), dim=1)
    kernel = ntk(Objective(Parametrised(5, 4096), nn.MSELoss(), (x, torch.zeros(8, 1))))
    cosine = (x @ x.T).double().clamp(-1.0, 1.0)
    angle = cosine.acos()
    first = (math.pi - angle) / math.pi
    limit = (angle.sin() + (math.pi - angle) * cosine) / math.pi + cosine * first
    assert float((kernel.matrix - limit).norm() / limit.norm()) < 0.05


def test_frozen_parameters_and_selections() -> None:
    objective = squared(frozen(outputs=3), 3)
    kernel = agrees(objective, lambda module: module(objective.batches[0][0]))
    assert set(kernel.routes) == {"2.weight", "2.bias"}
    chosen = squared(mlp(outputs=3), 3, params="*.bias")
    assert set(agrees(chosen, lambda module: module(chosen.batches[0][0])).routes) == {"0.bias", "2.bias"}


def test_between_two_sets_of_examples() -> None:
    model, (x, y) = mlp(outputs=3).double(), data(3, count=9)
    train = Objective(model, nn.MSELoss(), [(x[:2], y[:2]), (x[2:4], y[2:4])])
    test = Objective(model, nn.MSELoss(), (x[4:], y[4:]))
    rows, columns = (twin.jacobian(model, lambda module, part=part: module(part)) for part in (x[:4], x[4:]))
    expected = twin.kernel(rows, columns)
    kernel = ntk(train, against=test, by_layer=True)
    close(kernel.matrix, expected.reshape(12, 15))
    assert (kernel.examples, kernel.columns) == (4, 5)
    assert "against 5" in kernel.how
    assert "between" in str(kernel)
    close(ntk(train, against=x[4:]).matrix, kernel.matrix, 14)
    close(ntk(train, against=test, outputs="trace").matrix, twin.trace(expected))
    close(ntk(train, against=test, outputs="sum").matrix, twin.of_sum(expected))
    close(ntk(train, against=train).matrix, ntk(train).matrix, 14)
    for name in ("eigenvalues", "trace", "condition_number", "effective_rank"):
        with pytest.raises(DiagnosticsError, match="between two sets"):
            getattr(kernel, name)


def test_samples_are_unbiased_and_their_errors_hold() -> None:
    objective = squared(mlp(outputs=40), 3, outputs=40)
    exact = ntk(objective, outputs="trace")
    inside, spread = [], []
    for seed in range(30):
        kernel = ntk(objective, outputs="trace", samples=12, seed=seed)
        assert kernel.errors is not None
        inside.append(((kernel.matrix - exact.matrix).abs() <= 2.2 * kernel.errors).double().mean())
        spread.append(kernel.trace.value - exact.trace.value)
    # 2.2 is the 95 % point of Student's t with 11 degrees of freedom.
    assert 0.85 < float(torch.stack(inside).mean()) <= 1.0
    assert abs(sum(spread)) / 30 < 3 * kernel.trace.error / 30**0.5
    assert kernel.trace.kind == "standard error"
    assert kernel.condition_number.determined is False
    assert "random signs" in kernel.how
    assert ntk(objective, outputs="trace", samples=12, seed=3).matrix.equal(
        ntk(objective, outputs="trace", samples=12, seed=3).matrix
    )


def test_samples_of_one_output_are_exact() -> None:
    objective = squared(mlp(outputs=1), 3, outputs=1)
    kernel = ntk(objective, outputs="trace", samples=3)
    close(kernel.matrix, ntk(objective).matrix, 13)
    assert float(kernel.errors.max()) < 1e-6 * float(kernel.matrix.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_single_and_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    model, x = convolutional().eval(), torch.randn(9, 1, 5, 5)
    exact = ntk(Objective(model.double(), nn.CrossEntropyLoss(), (x.double(), torch.zeros(9).long())))
    model, x = model.to(dtype), x.to(dtype)
    ragged = [(part, torch.zeros(len(part)).long()) for part in x.split([5, 4])]
    kernel = ntk(Objective(model, nn.CrossEntropyLoss(), ragged))
    assert kernel.matrix.dtype == torch.float64
    close(kernel.matrix, exact.matrix, 5 if dtype == torch.float32 else 1)
    off = (kernel.eigenvalues - exact.eigenvalues).abs().max()
    assert float(off) < kernel.threshold
    assert kernel.threshold < 1e-4 * float(exact.eigenvalues[0]) or dtype == torch.bfloat16


def test_eigenvalues_condition_number_and_ranks() -> None:
    class Given(nn.Module):
        """f(x) = w · x for orthogonal inputs of lengths 1, 2 and 3: eigenvalues 1, 4 and 9."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    x = torch.diag(torch.tensor([1.0, 2.0, 3.0, 0.0]).double())
    kernel = ntk(Objective(Given().double(), nn.MSELoss(), (x[:3], torch.zeros(3).double())))
    assert kernel.eigenvalues.tolist() == [9.0, 4.0, 1.0]
    assert float(kernel.condition_number) == 9.0
    assert float(kernel.trace) == 14.0
    shares = [9 / 14, 4 / 14, 1 / 14]
    assert float(kernel.effective_rank) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    assert "condition number 9" in str(kernel)
    singular = ntk(Objective(Given().double(), nn.MSELoss(), (x, torch.zeros(4).double())))
    assert not singular.condition_number.determined
    assert "zero to rounding" in singular.condition_number.how
    assert "condition number undetermined" in repr(singular)
    nothing = ntk(Objective(Given().double(), nn.MSELoss(), (x[3:].expand(5, 4), torch.zeros(5).double())))
    assert not nothing.effective_rank.determined


def test_the_kernel_of_the_loss_is_the_gram_matrix_of_its_gradients() -> None:
    """Σ_ab u_a Θ_ab u'_b with u the gradients of the loss in the outputs: another code path to the same numbers."""
    objective = squared(mlp(outputs=3), 3)
    (x, y) = objective.batches[0]
    u = (2.0 * (objective.model(x) - y) / 3.0).detach()
    whole = ntk(objective).matrix.view(6, 3, 6, 3)
    close(torch.einsum("na,namb,mb->nm", u, whole, u), gradient_gram(objective).matrix)


def test_what_cannot_be_measured_is_refused() -> None:
    model, (x, y) = mlp(outputs=3).double(), data(3)
    with pytest.raises(DiagnosticsError, match=r"Objective.huggingface"):
        ntk(Objective.from_loss(model, lambda m, batch: m(batch).sum(), [x]))
    with pytest.raises(DiagnosticsError, match="batch normalisation couples"):
        ntk(squared(convolutional(), 1, 5, 5, mode="train"))
    with pytest.raises(DiagnosticsError, match="outputs is unknown"):
        ntk(Objective(model, nn.MSELoss(), (x, y)), outputs="mean")
    with pytest.raises(DiagnosticsError, match="samples are of the trace kernel"):
        ntk(Objective(model, nn.MSELoss(), (x, y)), samples=4)
    with pytest.raises(DiagnosticsError, match="by_layer=True"):
        _ = ntk(Objective(model, nn.MSELoss(), (x, y))).by_layer
    with pytest.raises(DiagnosticsError, match="another function"):
        ntk(Objective(model, nn.MSELoss(), (x, y)), against=squared(mlp(outputs=3), 3))
    with pytest.raises(DiagnosticsError, match="against is not a set"):
        ntk(Objective(model, nn.MSELoss(), (x, y)), against=[x])
    with pytest.raises(DiagnosticsError, match="dropout is the reason"):
        ntk(squared(dropped(), 3, mode="train"))
    tokens = [torch.randn(5, length, 3).double() for length in (2, 3)]
    ragged = Objective(model, lambda f, _: f.sum(), [(part, part) for part in tokens])
    with pytest.raises(DiagnosticsError, match="number of their outputs; given: 6 in batch 0 and 9 in batch 1"):
        ntk(ragged)
    x[4] = math.nan
    with pytest.raises(DiagnosticsError, match="not finite"):
        ntk(Objective(model, nn.MSELoss(), (x, y)))


def _start() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):
        seed(3)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3))
    return model, (torch.randn(12, 3), torch.randint(3, (12,)))


def _train(probed: bool) -> list[Tensor]:
    model, (x, y) = _start()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if probed:
            ntk(Objective(model, nn.CrossEntropyLoss(), (x, y)))
            ntk(Objective(model, nn.CrossEntropyLoss(), (x, y)), outputs="trace", samples=2)
        optimizer.step()
    drawn = torch.tensor([torch.rand(1).item(), random.random(), numpy.random.rand(), float(model.training)])
    return [*model.state_dict().values(), *(p.grad for p in model.parameters()), drawn]


def test_training_with_a_kernel_in_every_step_is_bit_identical() -> None:
    for probed, plain in zip(_train(probed=True), _train(probed=False), strict=True):
        assert torch.equal(probed, plain)


def test_recurrent_layers_are_said_to_go_another_way() -> None:
    objective = squared(Recurrent(nn.GRU), 4, 2, outputs=2)
    kernel = agrees(objective, lambda module: module(objective.batches[0][0]), recorded=False)
    assert {name for name, route in kernel.routes.items() if route == "recorded"} == {"head.weight", "head.bias"}
    assert "4 of 6 parameters by vmap" in kernel.how
