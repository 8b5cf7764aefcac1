"""The Gram matrix gives the spectrum of the dense Gauss-Newton matrix, whatever the model, loss and batches."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, GaussNewton, Objective, top_eigenpairs
from diagnostics.curvature import rows
from diagnostics.curvature.gram import GaussNewtonSpectrum, gauss_newton_spectrum
from tests.cases import WHOLE_BATCH_CASES, Case, convolutional, mlp
from tests.cases.matrix import case_named
from tests.reference.dense_gauss_newton import jacobian

SEEN = [case for case in WHOLE_BATCH_CASES if case.outputs is not None] + [
    case_named(name)
    for name in (
        "mlp, bce",
        "mlp, cross-entropy sum",
        "tied embedding, ignored labels",
        "tokens, class weights",
        "weight norm, mse",
        "dropout in train mode, mse",
    )
]
"""Cases whose outputs can be seen."""


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def _dense(objective: Objective) -> Tensor:
    matrix = GaussNewton(objective) @ torch.eye(objective.num_parameters, dtype=torch.float64)
    return (matrix + matrix.T) / 2


def _eigenvalues(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix).flip(0)


def _all(spectrum: GaussNewtonSpectrum) -> Tensor:
    zeros = torch.zeros(spectrum.zeros, dtype=torch.float64)
    return torch.cat([spectrum.values, zeros]).sort(descending=True).values


def _off(given: Tensor, expected: Tensor) -> float:
    assert given.shape == expected.shape
    return float((given - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("case", SEEN, ids=str)
def test_it_is_the_spectrum_of_the_dense_matrix(case: Case, ragged: bool) -> None:
    objective = case.objective(ragged=ragged)
    spectrum, dense = gauss_newton_spectrum(objective), _dense(objective)
    assert _off(_all(spectrum), _eigenvalues(dense)) < 1e-9
    assert float(spectrum.trace) == pytest.approx(float(dense.trace()), rel=1e-9)
    assert float(spectrum.frobenius) == pytest.approx(float(dense.norm()), rel=1e-9)
    vectors = spectrum.vectors(k=3)
    assert float((dense @ vectors - vectors * spectrum.values[:3]).norm() / dense.norm()) < 1e-9
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["cnn, batch norm eval", "transformer encoder layer", "tied weights, scalar parameter"]
)
def test_lanczos_finds_the_same_largest_eigenvalues(name: str) -> None:
    objective = next(case for case in SEEN if case.name == name).objective(ragged=True)
    pairs, spectrum = top_eigenpairs(GaussNewton(objective), k=3, tol=1e-8), gauss_newton_spectrum(objective)
    assert pairs.converged
    assert _off(spectrum.values[:3], pairs.values) < 1e-8
    # Eigenvectors are told apart by gaps, and so are less exact than values.
    overlap = torch.linalg.svdvals(pairs.vectors.T @ spectrum.vectors(3))
    torch.testing.assert_close(overlap, torch.ones_like(overlap), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("examples", "rank"), [(2, 6), (40, 12)])
def test_the_rank_is_that_of_the_fewer_of_rows_and_parameters(examples: int, rank: int) -> None:
    data = _normal(examples, 3), _normal(examples, 3)
    spectrum = gauss_newton_spectrum(Objective(nn.Linear(3, 3).double(), nn.MSELoss(), data))
    assert (len(spectrum.values), spectrum.zeros, spectrum.dimension) == (rank, 12 - rank, 12)
    assert bool((spectrum.values > 1e6 * spectrum.threshold).all())


def test_linear_regression_has_the_eigenvalues_of_its_inputs() -> None:
    x = _normal(7, 3)
    objective = Objective(nn.Linear(3, 2, bias=False).double(), nn.MSELoss(), [(x[:2], x[:2, :2]), (x[2:], x[2:, :2])])
    # The mean runs over examples and outputs, and each output has its own copy of the inputs.
    expected = _eigenvalues(2 * x.T @ x / (7 * 2)).repeat_interleave(2)
    assert _off(gauss_newton_spectrum(objective).values, expected) < 1e-12


def test_logistic_regression_has_the_eigenvalues_of_its_weighted_inputs() -> None:
    x, model = _normal(9, 4), nn.Linear(4, 1, bias=False).double()
    p = torch.sigmoid(model(x).detach())
    spectrum = gauss_newton_spectrum(Objective(model, nn.BCEWithLogitsLoss(), (x, p.round())))
    assert _off(spectrum.values, _eigenvalues(x.T @ (p * (1 - p) * x) / 9)) < 1e-12


def test_softmax_regression_at_zero_is_a_kronecker_product() -> None:
    x, model = _normal(9, 4), nn.Linear(4, 3, bias=False).double()
    nn.init.zeros_(model.weight)
    spectrum = gauss_newton_spectrum(Objective(model, nn.CrossEntropyLoss(), (x, torch.arange(9) % 3)))
    expected = torch.kron(torch.eye(3, dtype=torch.float64) / 3 - 1 / 9, x.T @ x / 9)
    assert _off(_all(spectrum), _eigenvalues(expected)) < 1e-12
    assert spectrum.zeros == 4, "adding the same to every logit changes nothing"
    assert "one by one" not in spectrum.how, "equal chances must not make the check of batched passes empty or wrong"


def test_for_half_the_squared_error_it_is_the_tangent_kernel_over_the_examples() -> None:
    model, x = mlp().double(), _normal(6, 3)
    rows = jacobian(model, lambda: model(x))
    half = Objective(model, lambda f, y: 0.5 * (f - y).square().sum(1).mean(), (x, _normal(6, 2)))
    assert _off(gauss_newton_spectrum(half).values, _eigenvalues(rows @ rows.T / 6)) < 1e-12
    mean = Objective(model, nn.MSELoss(), (x, _normal(6, 2)))
    assert _off(gauss_newton_spectrum(mean).values, _eigenvalues(rows @ rows.T * 2 / (6 * 2))) < 1e-12


def _saturating(outputs: Tensor, targets: Tensor) -> Tensor:
    """Concave where the error is large (Geman & McClure), and its outputs work together."""
    squares = (outputs - targets).square().sum(1)
    return (squares / (1 + squares)).mean()


@pytest.mark.parametrize("ragged", [False, True])
def test_a_loss_that_is_not_convex_has_negative_eigenvalues(ragged: bool) -> None:
    x, y = _normal(8, 3), 2 * _normal(8, 2)
    batches = [(x[:3], y[:3]), (x[3:], y[3:])] if ragged else [(x, y)]
    objective = Objective(mlp().double(), _saturating, batches)
    spectrum, dense = gauss_newton_spectrum(objective), _dense(objective)
    assert _off(_all(spectrum), _eigenvalues(dense)) < 1e-9
    assert float(spectrum.values[0]) > 0 > float(spectrum.values[-1])
    assert float(spectrum.mass(-torch.inf, -1e-12)) * 32 == int((_eigenvalues(dense) < -1e-12).sum())
    vectors = spectrum.vectors(len(spectrum.values))
    torch.testing.assert_close(dense @ vectors, vectors * spectrum.values, rtol=0, atol=1e-9)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(len(vectors.T), dtype=torch.float64), rtol=0, atol=1e-9)


def test_masses_count_the_zeros() -> None:
    x = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
    model = nn.Linear(3, 1, bias=False).double()
    spectrum = gauss_newton_spectrum(Objective(model, nn.MSELoss(reduction="sum"), (x, x[:, :1])))
    assert spectrum.values.tolist() == pytest.approx([8.0, 2.0], rel=1e-14)
    ends = ((0.0, 0.0), (2.0, 8.0), (1e-300, 2.0), (-1.0, 9.0), (3.0, 7.0))
    masses = [spectrum.mass(low, high) for low, high in ends]
    assert [mass.value for mass in masses] == [1 / 3, 2 / 3, 1 / 3, 1.0, 0.0]
    assert {mass.kind for mass in masses} == {"exact"}
    assert str(spectrum) == (
        "2 of 3 eigenvalues are not zero: 8, 2 (Gram matrix of 3 rows, 3 backward passes, float64; "
        "1 loss term in one batch, eval mode)"
    )


@pytest.mark.parametrize(("loss", "rows"), [(nn.HuberLoss(delta=0.5), 5), (nn.L1Loss(), 0)])
def test_outputs_where_the_loss_is_flat_add_no_rows(loss: nn.Module, rows: int) -> None:
    model, x = nn.Linear(4, 1).double(), _normal(8, 4)
    y = model(x).detach() + torch.tensor([0.1, -0.2, 0.3, -0.3, 0.4, 1.0, -2.0, 3.0], dtype=torch.float64)[:, None]
    spectrum = gauss_newton_spectrum(Objective(model, loss, (x, y)))
    assert len(spectrum.values) == rows == len(spectrum._rows.signs)
    assert (f"{rows} of 5 eigenvalues are not zero" in str(spectrum), float(spectrum.mass(0, 0))) == (
        True,
        1 - rows / 5,
    )


@pytest.mark.parametrize("kept", [2, 3, 7])
def test_a_jacobian_in_blocks_gives_the_same(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = case_named("mlp, bce").objective(ragged=True)
    whole = gauss_newton_spectrum(objective)
    monkeypatch.setattr(rows, "ROW_BYTES", 2 * kept * 8 * objective.num_parameters)
    pieces = gauss_newton_spectrum(objective)
    assert _off(pieces.values, whole.values) < 1e-12
    assert f"21 rows in {-(-21 // kept)} blocks" in pieces.how
    monkeypatch.setattr(rows, "MOST_BLOCKS", 2)
    with pytest.raises(DiagnosticsError, match=r"Jacobian is too large.*21 rows of 38.*at most 2 blocks"):
        gauss_newton_spectrum(objective)


def test_microbatches_give_the_same() -> None:
    objective = case_named("tokens, class weights").objective()
    whole, pieces = gauss_newton_spectrum(objective), gauss_newton_spectrum(objective, microbatch=2)
    assert _off(pieces.values, whole.values) < 1e-12
    assert "in 4 batches" in pieces.how


class _ThroughNumpy(torch.autograd.Function):
    """A backward pass that cannot be vectorised."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.from_numpy(numpy.cos(ctx.saved_tensors[0].numpy()) + 0.0 * gradient.numpy())


class _Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _ThroughNumpy.apply(x)


def test_passes_that_cannot_be_taken_as_one_are_taken_one_by_one() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), _Sine(), nn.Linear(4, 2)).double(), _normal(5, 3)
    spectrum = gauss_newton_spectrum(Objective(model, nn.MSELoss(), (x, x[:, :2])))
    rows = jacobian(model, lambda: model(x))
    assert _off(spectrum.values, _eigenvalues(rows @ rows.T / 5)) < 1e-12
    assert "10 backward passes one by one" in spectrum.how


def test_a_wrong_vectorised_pass_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = case_named("mlp, mse").objective()
    right, differentiate = gauss_newton_spectrum(objective), torch.autograd.grad

    def wrong(*given: Any, is_grads_batched: bool = False, **settings: Any) -> tuple[Tensor, ...]:
        parts = differentiate(*given, is_grads_batched=is_grads_batched, **settings)
        return tuple(part.roll(1, 0) for part in parts) if is_grads_batched else parts

    monkeypatch.setattr(torch.autograd, "grad", wrong)
    spectrum = gauss_newton_spectrum(objective)
    assert "one by one" in spectrum.how
    assert "one by one" not in right.how
    assert _off(spectrum.values, right.values) < 1e-12


@pytest.mark.parametrize("name", ["cnn, batch norm eval", "embedding, ignored labels, class weights", "lstm"])
def test_single_precision_sees_the_same_rank(name: str) -> None:
    case = next(case for case in SEEN if case.name == name)
    objective = case.objective()
    double = gauss_newton_spectrum(objective)
    single = copy.deepcopy(objective.model).float()
    batch = tuple(leaf.float() if leaf.is_floating_point() else leaf for leaf in objective.batches[0])
    spectrum = gauss_newton_spectrum(Objective(single, copy.deepcopy(objective.form.criterion).float(), batch))
    assert len(spectrum.values) == len(double.values)
    off = (spectrum.values - double.values).abs()
    assert bool((off < 100 * torch.finfo(torch.float32).eps * (double.values * double.values[0]).sqrt()).all())


class _HalfHidden(nn.Module):
    """One of two layers is out of autograd's sight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x).detach()))


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_hides_a_part_from_autograd_is_refused(seed: int) -> None:
    torch.manual_seed(seed)
    objective = Objective(_HalfHidden().double(), nn.MSELoss(), (_normal(5, 3), _normal(5, 2)))
    with pytest.raises(DiagnosticsError, match=r"not what a product with GaussNewton says.*apart.*use_reentrant"):
        gauss_newton_spectrum(objective)
    seen = gauss_newton_spectrum(objective, params="second.*")
    assert len(seen.values) == 10


def test_nothing_of_the_model_is_touched_and_training_on_does_not_move_the_vectors() -> None:
    model = convolutional().double().train()
    model[1].eval()
    images, before, modes = (
        _normal(4, 1, 5, 5),
        copy.deepcopy(model.state_dict()),
        [m.training for m in model.modules()],
    )
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()
    objective = Objective(model, nn.CrossEntropyLoss(), (images, torch.arange(4) % 3), mode="train")
    spectrum = gauss_newton_spectrum(objective, params=lambda name, tensor: True)
    vectors = spectrum.vectors(2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(tensor.grad is None for tensor in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert bool((numpy.random.get_state()[1] == states[2]).all())
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.mul_(1.5)
    assert torch.equal(spectrum.vectors(2), vectors)
    with torch.no_grad():
        model[1].running_mean.add_(1.0)
    with pytest.raises(DiagnosticsError, match="the model has changed"):
        spectrum.vectors(2)


def test_what_cannot_be_done_is_refused() -> None:
    model, data = mlp().double(), (_normal(8, 3), _normal(8, 2))
    objective = Objective(model, nn.MSELoss(), [data, data, data])
    with pytest.raises(DiagnosticsError, match=r"too many.*given: 32 in 2 of 3 batches.*limit=31.*GaussNewton"):
        gauss_newton_spectrum(objective, limit=31)
    with pytest.raises(DiagnosticsError, match=r"k is out of range; given: 99; expected: 1 to rank = 16"):
        gauss_newton_spectrum(objective).vectors(99)
    with pytest.raises(DiagnosticsError, match=r"mass.*is empty; given: 1.0 > 0.0"):
        gauss_newton_spectrum(objective).mass(1.0, 0.0)
    with pytest.raises(DiagnosticsError, match=r"outputs cannot be seen.*try: Objective\(model, loss, batches\)"):
        gauss_newton_spectrum(Objective.from_loss(model, lambda m, b: m(b[0]).mean(), [data]))
    with pytest.raises(DiagnosticsError, match="objective is not an Objective"):
        gauss_newton_spectrum(model)  # type: ignore[arg-type]
    with pytest.raises(DiagnosticsError, match=r"not finite.*batch 1"):
        gauss_newton_spectrum(Objective(model, nn.MSELoss(), [data, (data[0] * torch.nan, data[1])]))
    unused = next(case for case in SEEN if case.name == "unused parameter").objective()
    with pytest.raises(DiagnosticsError, match=r"does not depend on any selected parameter.*'unused.weight'"):
        gauss_newton_spectrum(unused, params="unused.*")


def test_labels_that_are_ignored_do_not_count_against_the_limit() -> None:
    model, x = nn.Linear(3, 4).double(), _normal(10, 3)
    labels = torch.tensor([1, 3, 0] + 7 * [-100])
    spectrum = gauss_newton_spectrum(Objective(model, nn.CrossEntropyLoss(), (x, labels)), limit=12)
    assert "Gram matrix of 12 rows" in spectrum.how
    assert len(spectrum.values) == 9, "the chances of a label add up to one"


def test_a_default_device_and_autocast_change_nothing() -> None:
    objective = case_named("mlp, bce").objective()
    expected = gauss_newton_spectrum(objective).values
    with torch.device("meta"), torch.autocast("cpu"):
        assert torch.equal(gauss_newton_spectrum(objective).values, expected)


def test_arguments_of_another_type() -> None:
    objective = case_named("mlp, bce").objective()
    for limit in (None, "a", 2.5, 0):
        with pytest.raises(DiagnosticsError, match="limit is out of range"):
            gauss_newton_spectrum(objective, limit=limit)
    spectrum = gauss_newton_spectrum(objective)
    for k in ("a", 1.5, None):
        with pytest.raises(DiagnosticsError, match="k is out of range"):
            spectrum.vectors(k)
    with pytest.raises(DiagnosticsError, match="low is not a number"):
        spectrum.mass("a", 1)
