"""Every operator is its dense twin in float64, on every model under every loss, in one batch and in ragged ones."""

from __future__ import annotations

import subprocess
import sys

import numpy
import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, EmpiricalFisher, Fisher, GaussNewton, Hessian, Objective, Preconditioned
from diagnostics.curvature.operator import Operator
from tests.cases import CASES, Case
from tests.cases.matrix import MATRIX, case_named
from tests.cases.twins import TWINS, expected_products
from tests.reference.dense_gauss_newton import dense_empirical_fisher

OPERATORS = [Hessian, GaussNewton, EmpiricalFisher, Fisher]

BY_ANOTHER_WAY = [
    found for found in CASES if found.name in ("gpt2", "lstm", "embedding, ignored labels, class weights")
]
"""Transformers as it comes, in part in float32; a loss not in the product; class weights and smoothing at once."""


LIKELIHOODS = [found for found in MATRIX if not found.name.endswith("huber")]
_OFTEN = ("batch norm train, cross-entropy", "dropout in train mode, mse", "tied embedding, bce", "gpt2 in double")
DRAWN_OFTEN = [found for found in LIKELIHOODS if found.name.startswith(("linear,", "tokens,")) or found.name in _OFTEN]
"""Every loss from whose model labels can be drawn."""

ON_ROUTES = [
    case_named(name)
    for name in (
        "batch norm eval, cross-entropy",
        "layer norm, cross-entropy",
        "group norm, cross-entropy",
        "lstm, cross-entropy",
        "dropout in train mode, cross-entropy",
        "unused parameter, cross-entropy",
        "weight norm, cross-entropy",
        "linear, bce",
    )
]


def _directions(rows: int, columns: int = 2) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _relative(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).norm() / expected.norm())


def _ids(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("kind", TWINS, ids=_ids)
@pytest.mark.parametrize("case", [*MATRIX, *BY_ANOTHER_WAY], ids=_ids)
def test_every_operator_is_its_dense_twin(case: Case, kind: type[Operator], ragged: bool) -> None:
    # Torch's second derivative of weight_norm is wrong: the Hessian falls back on differences. The others need none.
    differenced = kind is Hessian and not case.smooth
    tolerance = 1e-5 if differenced or case.digits < 9 else 1e-9
    operator = kind(case.objective(ragged=ragged))
    V = _directions(operator.shape[0])
    assert _relative(operator @ V, expected_products(kind, case, V, ragged=ragged)) < tolerance
    assert operator.product_error < tolerance
    assert ("central differences" in operator.route) == differenced


@pytest.mark.parametrize("case", LIKELIHOODS, ids=_ids)
def test_fisher_with_drawn_labels_is_symmetric_and_nowhere_negative(case: Case) -> None:
    for ragged in (False, True):
        F = Fisher(case.objective(ragged=ragged), samples=2)
        V = _directions(F.shape[0], 6)
        forms = V.T @ (F @ V)
        assert _relative(forms.T, forms) < 1e-12
        assert float(torch.linalg.eigvalsh(forms)[0]) > -1e-12 * float(forms.norm())


@pytest.mark.parametrize("case", DRAWN_OFTEN, ids=_ids)
def test_fisher_with_drawn_labels_is_gauss_newton_on_average(case: Case) -> None:
    """Seeds are independent, so their spread says how near the mean must come: a bias of a third would show."""
    objective = case.objective(ragged=True)
    V = _directions(objective.num_parameters)
    forms = torch.stack([V.T @ (Fisher(objective, samples=40, seed=seed) @ V) for seed in range(25)])
    expected = V.T @ expected_products(GaussNewton, case, V, ragged=True)
    error = forms.std(0) / len(forms) ** 0.5
    assert float((error / expected.diag().mean()).max()) < 0.05, "the test has power"
    assert float(((forms.mean(0) - expected) / error).abs().max()) < 6.0


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()], ids=_ids)
def test_one_draw_is_the_outer_product_of_the_gradient_at_one_label(loss: nn.Module) -> None:
    """With one example all labels can be tried; the one drawn comes up as often as the model believes in it."""
    model, x = nn.Linear(2, 3).double(), _directions(2, 1).T
    logits = model(x).detach()[0]
    if isinstance(loss, nn.CrossEntropyLoss):
        labels, beliefs = torch.arange(3)[:, None], logits.softmax(0)
    else:
        labels = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)[:, None]
        beliefs = torch.where(labels[:, 0] > 0, logits.sigmoid(), 1 - logits.sigmoid()).prod(1)
    # One term of the element-wise loss is the sum over its three elements, in a batch loss that is their mean.
    elements = 1 if isinstance(loss, nn.CrossEntropyLoss) else 3
    possible = torch.stack(
        [
            dense_empirical_fisher(
                model, lambda y=y: (elements * loss(model(x), y)[None], torch.ones(1, dtype=x.dtype) / elements)
            )
            for y in labels
        ]
    )
    objective = Objective(model, loss, (x, labels[0]))
    draws = 120
    counts = torch.zeros(len(labels))
    for seed in range(draws):
        drawn = Fisher(objective, samples=1, seed=seed) @ torch.eye(9, dtype=torch.float64)
        off = torch.stack([(drawn - matrix).norm() / matrix.norm() for matrix in possible])
        assert float(off.min()) < 1e-9
        counts[off.argmin()] += 1
    assert float(((counts / draws - beliefs) / (beliefs * (1 - beliefs) / draws).sqrt()).abs().max()) < 5.0


def test_fisher_is_one_fixed_operator_for_each_seed() -> None:
    objective = case_named("tokens, cross-entropy").objective(ragged=True)
    V = _directions(objective.num_parameters)
    first = Fisher(objective, samples=2, seed=3)
    product = first @ V
    torch.rand(5)
    assert torch.equal(first @ V, product)
    assert torch.equal(Fisher(objective, samples=2, seed=3) @ V, product)
    assert _relative(Fisher(objective, samples=2, seed=4) @ V, product) > 0.01
    assert _relative(Fisher(objective, samples=3, seed=3) @ V, product) > 0.01


@pytest.mark.parametrize("kind", OPERATORS, ids=_ids)
@pytest.mark.parametrize("name", ["layer norm, label smoothing", "tokens, ignored labels", "batch norm train, mse"])
def test_preconditioned_is_the_dense_product_with_scale_and_shift(kind: type[Operator], name: str) -> None:
    case = case_named(name)
    for ragged in (False, True):
        A = kind(case.objective(ragged=ragged))
        scale, shift = _directions(A.shape[0]).abs().unbind(1)
        V = _directions(A.shape[0], 3)
        scaled = scale[:, None] * V
        times = A @ scaled if kind is Fisher else expected_products(kind, case, scaled, ragged=ragged)
        preconditioned = Preconditioned(A, scale, shift)
        assert _relative(preconditioned @ V, scale[:, None] * (times + shift[:, None] * scaled)) < 1e-9
        assert preconditioned.route == A.route


@pytest.mark.parametrize("kind", OPERATORS, ids=_ids)
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("tied embedding, cross-entropy", "embedding.*"),
        ("lstm, mse", "rnn.*_hh_*"),
        ("batch norm train, cross-entropy", lambda name, tensor: tensor.ndim == 1),
        ("unused parameter, mse", ["used.weight", "unused.weight"]),
    ],
    ids=_ids,
)
def test_a_selection_of_parameters_gives_that_block_of_the_matrix(
    kind: type[Operator], name: str, params: object
) -> None:
    case = case_named(name)
    whole, part = kind(case.objective()), kind(case.objective(params=params))
    chosen = set(part.objective.space.names)
    names = [name for name, tensor in case.build()[0].named_parameters() for _ in range(tensor.numel())]
    kept = torch.tensor([name in chosen for name in names])
    assert 0 < int(kept.sum()) < len(kept)
    dense = whole @ torch.eye(len(kept), dtype=torch.float64)
    assert _relative(part @ torch.eye(int(kept.sum()), dtype=torch.float64), dense[kept][:, kept]) < 1e-9


@pytest.mark.parametrize("kind", OPERATORS, ids=_ids)
@pytest.mark.parametrize("ragged", [False, True])
def test_every_operator_multiplies_one_vector_several_and_those_of_scipy(kind: type[Operator], ragged: bool) -> None:
    objective = case_named("tokens, cross-entropy").objective(ragged=ragged)
    A, V = kind(objective), _directions(objective.num_parameters, 3)
    product = A @ V
    torch.testing.assert_close(product, torch.stack([A @ column for column in V.T], dim=1), rtol=1e-12, atol=1e-14)
    assert (A.matvecs, A.shape, A.dtype) == (6, (len(V), len(V)), torch.float64)
    assert A.route
    linear = A.to_scipy()
    numpy.testing.assert_allclose(linear @ V.numpy(), product, rtol=1e-12, atol=1e-14)
    numpy.testing.assert_allclose(linear @ V[:, 0].numpy(), product[:, 0], rtol=1e-12, atol=1e-14)
    assert (A.matvecs, linear.shape, linear.dtype) == (10, A.shape, numpy.float64)
    with pytest.raises(DiagnosticsError, match=rf"{kind.__name__} @ v does not fit"):
        A @ V[:5]


@pytest.mark.parametrize("kind", OPERATORS, ids=_ids)
@pytest.mark.parametrize("name", ["tokens, cross-entropy", "unused parameter, mse", "weight norm, mse"])
def test_blocks_by_layer_are_the_diagonal_blocks_of_the_whole(kind: type[Operator], name: str) -> None:
    objective = case_named(name).objective(ragged=True)
    eye = torch.eye(objective.num_parameters, dtype=torch.float64)
    blocks = kind(objective, by_layer=True)
    inside = torch.block_diag(*[torch.ones(layer.size, layer.size) for layer in blocks.layers])
    assert _relative(blocks @ eye, inside * (kind(objective) @ eye)) < max(1e-9, 10 * blocks.product_error)


@pytest.mark.parametrize("route", ["double backward", "batched", "linearize"])
@pytest.mark.parametrize("case", ON_ROUTES, ids=_ids)
def test_a_route_asked_for_is_right_every_time_or_says_how_far_off_it_is(case: Case, route: str) -> None:
    H = Hessian(case.objective(), route=route)
    V = _directions(H.shape[0])
    expected = expected_products(Hessian, case, V, ragged=False)
    for block in (V[:, :1], V, V, V):
        try:
            off = _relative(H @ block, expected[:, : block.shape[1]])
        except DiagnosticsError:
            assert route == "linearize", "forward-mode derivatives are missing for some operations"
            return
        assert off < max(1e-9, 2 * H.product_error)
        assert (off > 0.01) == ("off by" in H.route)


def test_many_products_of_a_convolutional_net_under_mean_squared_error_do_not_end_the_process() -> None:
    """In a process of its own: torch.func.linearize brings the interpreter down on mse_loss (torch 2.13)."""
    program = """
import torch; from torch import nn; from diagnostics import Hessian, Objective
model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3))
H = Hessian(Objective(model, nn.MSELoss(), (torch.randn(6, 1, 5, 5), torch.randn(6, 3))))
for _ in range(4): H @ torch.eye(H.shape[0])
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("kind", OPERATORS[1:], ids=_ids)
def test_a_loss_that_hides_the_outputs_is_refused_with_the_constructors_that_show_them(kind: type[Operator]) -> None:
    hidden = Objective.from_loss(nn.Linear(2, 1), lambda m, x: m(x).square().mean(), [torch.ones(3, 2)])
    with pytest.raises(DiagnosticsError, match=r"Objective\(model, loss, batches\).*Objective\.huggingface"):
        kind(hidden) @ torch.ones(3)


def test_labels_are_drawn_only_where_the_loss_is_a_likelihood() -> None:
    objective = case_named("linear, huber").objective()
    with pytest.raises(DiagnosticsError, match=r"HuberLoss.*GaussNewton\(objective\)"):
        Fisher(objective) @ torch.ones(objective.num_parameters)
