"""What ``top_eigenpairs`` says of itself: proof, NaN, budgets, and how it treats the operator and the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from diagnostics import DiagnosticsError, top_eigenpairs
from diagnostics.curvature.eigen import basis, search
from diagnostics.curvature.eigen.basis import random_vector
from diagnostics.curvature.eigen.hidden import Hidden, needed
from diagnostics.curvature.eigen.lanczos import Lanczos
from tests.reference.known_spectra import SPECTRA, Diagonal, rotated


def _run(operator: Any, start: Tensor, steps: int, limit: int = 100) -> Lanczos:
    lanczos = Lanczos(operator, 1, limit, torch.Generator().manual_seed(0))
    lanczos.begin(start)
    for _ in range(steps):
        lanczos.step()
        lanczos.read()
        if lanczos.full:
            _, coefficients = lanczos.ritz()
            lanczos.restart(coefficients[:, -limit // 2 :])
    return lanczos


@pytest.mark.parametrize("limit", [100, 6], ids=["one basis", "restarted"])
def test_no_eigenvector_held_more_of_the_start_than_could_hide(limit: int) -> None:
    """The bound on (u·q)² against the true weights, for every eigenvector, at every length of a run."""
    diagonal = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = (start**2 / (start**2).sum()).tolist()
    for steps in range(1, 12):
        hidden = _run(Diagonal(diagonal), start, steps, limit).hidden
        for value, weight in zip(diagonal.tolist(), weights, strict=True):
            assert hidden.seen(value) <= -math.log(weight) + 1e-6


def test_a_direction_that_held_hardly_anything_is_shown_as_soon_as_nothing_can_hide() -> None:
    """From a start with so little of the top, the second value converges first; only the bound tells."""
    diagonal = torch.cat([torch.tensor([1.2, 1.0]), 0.1 * torch.rand(998, generator=torch.Generator().manual_seed(0))])
    start = torch.full((1000,), 1e-3, dtype=torch.float64)
    start[0], start[1] = 1e-6, 1.0
    proved = []
    for steps in range(2, 16):
        lanczos = _run(Diagonal(diagonal.double()), start, steps)
        values, coefficients = lanczos.ritz()
        converged = abs(lanczos.beta * coefficients[-1, -1]) <= 1e-2 * values[-1]
        certain = lanczos.hidden.seen(1.01 * values[-1]) >= -math.log(1e-12)
        if converged and values[-1] < 1.1:
            assert not certain
            proved.append(False)
        if certain and converged:
            assert values[-1] == pytest.approx(1.2, rel=1e-2)
            proved.append(True)
    assert proved[0] is False, "the residual alone would have been wrong here"
    assert proved[-1] is True


def test_how_much_has_to_be_shown() -> None:
    assert needed(1000, warm=False) - needed(10, warm=False) == pytest.approx(math.log(100))
    assert needed(1000, warm=True) < needed(100_000, warm=True) < needed(1000, warm=False)
    assert needed(3, warm=True) == needed(300, warm=True) == pytest.approx(math.log(300))


def test_what_a_run_shows_of_eigenvalues_far_out_and_after_many_steps_does_not_overflow() -> None:
    hidden = Hidden()
    for index in range(300):
        column = numpy.zeros(index + 1)
        if index:
            column[-2] = 1e-3
        hidden.add(column, 1e-3)
    assert math.isfinite(hidden.seen(1e6))
    assert hidden.seen(1e6) > hidden.seen(1.0) > 1000
    hidden.lose()
    assert hidden.seen(1e6) == -math.inf


@pytest.mark.parametrize("which", ["LA", "LM"])
def test_random_starts_are_not_misled_by_a_near_tie(which: str) -> None:
    """Two per cent apart at the top: the residual alone accepts the second one for a good share of the starts."""
    bulk = 0.05 * torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    operator = Diagonal(torch.cat([torch.tensor([1.02, 1.0, 0.3, 0.2]).double(), bulk]))
    for seed in range(100):
        assert float(top_eigenpairs(operator, tol=1e-2, seed=seed, which=which).values[0]) > 1.01
    assert operator.products < 1000


@pytest.mark.parametrize(("k", "which"), [(1, "LA"), (1, "LM"), (3, "SA"), (4, "BE")])
@pytest.mark.parametrize("budget", range(4, 60, 3))
def test_a_search_cut_short_says_what_it_owes(k: int, which: str, budget: int) -> None:
    """Either every rule was kept, or the text of each value says that it was not."""
    operator = Diagonal(torch.rand(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    pairs = top_eigenpairs(operator, k=k, which=which, tol=1e-2, max_matvecs=budget)
    assert operator.products == pairs.matvecs <= budget
    met = bool((pairs.residuals <= 1e-2 * pairs.values.abs()).all())
    assert pairs.converged == ("NOT CONVERGED" not in str(pairs)) == ("NOT CONVERGED" not in pairs.estimate(k - 1).how)
    if pairs.converged:
        assert met
        assert pairs.matvecs < budget
    elif met:
        assert "products ran out before one further out could be ruled out" in pairs.estimate().how
    else:
        assert "to a relative residual of 0.01" in pairs.estimate().how


class _Unchecked:
    """What an Operator offers to a solver, and a record of what was made of it."""

    route = "by hand"
    product_error = 1e-5

    def __init__(self, matrix: Tensor, bad_product: int | None = None) -> None:
        self.matrix, self.shape, self.dtype, self.device = matrix, tuple(matrix.shape), matrix.dtype, matrix.device
        self.bad_product = bad_product
        self.products = self.checked = 0
        self.inside: list[bool] = []
        self._steady = False

    def steadily(self, action: Callable[[], Any]) -> Any:
        self._steady = True
        try:
            return action()
        finally:
            self._steady = False

    def multiply(self, vectors: Tensor) -> Tensor:
        self.products += 1
        self.inside.append(self._steady)
        image = self.matrix @ vectors
        return image * math.nan if self.products == self.bad_product else image

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.checked += 1
        assert bool(torch.isfinite(vectors).all())
        raise DiagnosticsError("the batch to blame")


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_poor_products_are_not_a_converged_value(which: str) -> None:
    """Products known to 185 % prove nothing, however small the residual; the value comes back and says so itself."""
    operator = _Unchecked(rotated(SPECTRA["uniform"]))
    operator.product_error = 1.85
    pairs = top_eigenpairs(operator, k=2, which=which)
    assert not pairs.converged
    assert "NOT CONVERGED to a relative residual of 0.001: the products have a relative error of 1.9" in str(pairs)
    assert pairs.estimate(1).how in str(pairs)
    assert float(pairs.residuals.min()) > float(pairs.values.abs().max())


@pytest.mark.parametrize(("tol", "good"), [(1e-3, True), (1e-6, False)])
def test_the_error_of_a_product_counts_where_it_drowns_the_tolerance(tol: float, good: bool) -> None:
    pairs = top_eigenpairs(_Unchecked(rotated(SPECTRA["uniform"])), tol=tol)
    assert pairs.converged is good
    assert ("the products have a relative error of 1e-05" in pairs.estimate().how) is not good
    assert float(pairs.values[0]) == pytest.approx(float(torch.linalg.eigvalsh(rotated(SPECTRA["uniform"]))[-1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", [[0.0] * 30, [1e6] + [0.0] * 29], ids=["zero", "rank one"])
def test_plain_rounding_is_no_obstacle_to_a_zero(dtype: torch.dtype, values: list[float]) -> None:
    """No residual is small relative to an eigenvalue of zero: rounding of the largest is all that can be asked."""
    operator = _Unchecked(rotated(values).to(dtype))
    operator.product_error = 8 * torch.finfo(dtype).eps
    pairs = top_eigenpairs(operator, k=3)
    assert pairs.converged
    assert "NOT CONVERGED" not in str(pairs)


def test_products_are_taken_unchecked_and_within_one_set_up() -> None:
    operator = _Unchecked(rotated(SPECTRA["uniform"]))
    pairs = top_eigenpairs(operator, k=3)
    assert operator.checked == 0
    assert operator.inside == [True] * pairs.matvecs
    assert "by hand" in pairs.how
    assert float(pairs.residuals.min()) >= 1e-6, "the route's error is part of the residual"


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("bad", [1, 5, 12])
def test_a_product_that_is_not_finite_is_found_at_the_next_look(
    every: int, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator is asked again, with its own checks and the vector to blame, and its words are raised."""
    monkeypatch.setattr(search, "steps_between_looks", lambda device, rows: every)
    operator = _Unchecked(rotated(SPECTRA["uniform"]), bad_product=bad)
    with pytest.raises(DiagnosticsError, match="the batch to blame"):
        top_eigenpairs(operator, tol=1e-9)
    assert operator.checked == 1
    assert operator.products < bad + every


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("k", [1, 3])
def test_rare_looks_find_the_same(name: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: also where a run has stepped past the end of an invariant subspace before anybody looked."""
    A = rotated(SPECTRA[name])
    monkeypatch.setattr(search, "steps_between_looks", lambda device, rows: 5)
    for which in ("LA", "SA"):
        pairs = top_eigenpairs(A, k=k, which=which, tol=1e-8)
        dense = torch.linalg.eigvalsh(A)
        expected = (dense.flip(0) if which == "LA" else dense)[:k]
        assert pairs.converged
        scale = float(dense.abs().max())
        torch.testing.assert_close(pairs.values, expected, rtol=1e-7, atol=1e-8 * scale)
        torch.testing.assert_close(pairs.vectors.T @ pairs.vectors, torch.eye(k).double(), rtol=0, atol=1e-13)


def test_looks_are_rarer_where_they_cost_a_wait() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert search.steps_between_looks(cpu, 20) == 1
    assert 3 <= search.steps_between_looks(gpu, 20) <= 8
    assert search.steps_between_looks(gpu, 200) > search.steps_between_looks(cpu, 200) > 1


def test_no_number_is_fetched_between_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps alone convert nothing to Python numbers: on a GPU each conversion would wait for the device."""
    lanczos = Lanczos(rotated(SPECTRA["uniform"]), 1, 100, torch.Generator().manual_seed(0))
    lanczos.begin(lanczos.random())

    def forbidden(*_: Any) -> Any:
        raise AssertionError("waited for the device")

    monkeypatch.setattr(basis, "waiting_is_free", lambda device: False)
    for name in ("__float__", "__bool__", "__int__", "item", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, forbidden)
    for _ in range(8):
        lanczos.step()
    monkeypatch.undo()
    lanczos.read()
    assert lanczos.rows == 8


def test_random_vectors_are_the_same_however_they_are_drawn() -> None:
    double, single = (
        random_vector(1000, torch.Generator().manual_seed(3), dtype, torch.device("cpu"))
        for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(double.float(), single, rtol=0, atol=0)
    assert float(double.std()) == pytest.approx(1.0, abs=0.1)


def test_autocast_around_the_call_changes_nothing() -> None:
    A = rotated(SPECTRA["uniform"]).float()
    plain = top_eigenpairs(A, k=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = top_eigenpairs(A, k=2)
    assert torch.equal(plain.values, within.values)
