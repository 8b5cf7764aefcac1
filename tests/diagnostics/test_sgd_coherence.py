"""Coherence of examples' curvature and the edge of SGD, against dense matrices, all batches and simulated runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Objective, ntk, sgd_coherence
from diagnostics.stability import sgd_coherence as module
from tests.reference import sgd_stability as twin
from tests.reference.dense_gauss_newton import dense_gauss_newton

LOSSES: dict[str, nn.Module] = {"cross-entropy": nn.CrossEntropyLoss(), "squares": nn.MSELoss()}


def regression(rows: Tensor) -> Objective:
    """½ (x·w)² of each example, with x xᵀ for its curvature."""
    model = nn.Linear(rows.shape[1], 1, bias=False).double()
    return Objective(model, lambda f, y: 0.5 * (f - y).square().mean(), (rows, torch.zeros(len(rows), 1).double()))


def problem(name: str) -> tuple[Objective, list[Tensor]]:
    """A small network in ragged batches, and the Gauss-Newton matrix of each of its examples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    loss, x = LOSSES[name], torch.randn(6, 2).double()
    y = torch.arange(6) % 3 if name == "cross-entropy" else torch.randn(6, 3).double()

    def of(place: int) -> Tensor:
        one = slice(place, place + 1)
        return dense_gauss_newton(model, lambda: model(x[one]), lambda f: loss(f, y[one]))

    return Objective(model, loss, [(x[:4], y[:4]), (x[4:], y[4:])]), [of(place) for place in range(6)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_coherence_and_edge_are_those_of_dense_matrices_and_all_batches(name: str, size: int) -> None:
    objective, hessians = problem(name)
    found = sgd_coherence(objective, size, tol=1e-9)
    torch.testing.assert_close(found.matrix, twin.coherence_matrix(hessians), rtol=0, atol=1e-12)
    assert float(found.coherence) == pytest.approx(twin.coherence(hessians), rel=1e-12)
    whole = torch.stack(hessians).mean(0)
    assert float(found.sharpness) == pytest.approx(float(torch.linalg.eigvalsh(whole)[-1]), rel=1e-10)
    edge = float(found.edge)
    assert twin.mean_square_radius(hessians, size, edge) == pytest.approx(1.0, abs=1e-8)
    assert twin.mean_square_radius(hessians, size, 0.999 * edge) < 1.0
    assert twin.mean_square_radius(hessians, size, 1.001 * edge) > 1.0
    assert edge <= float(found.descent) * (1 + 1e-9)
    quick = sgd_coherence(objective, size).edge
    assert abs(float(quick) - edge) <= quick.error + 1e-12
    # What the coherence says is sufficient, for batches of its own kind.
    assert twin.bernoulli_radius(hessians, size, 1.001 * float(found.bound)) > 1.0


def test_examples_that_share_nothing_and_examples_that_are_all_the_same() -> None:
    for size in (1, 2, 5):
        apart = sgd_coherence(regression(1.5 * torch.eye(5).double()), size, tol=1e-9)
        assert float(apart.coherence) == pytest.approx(1.0)
        assert float(apart.edge) == pytest.approx(2 * size / 1.5**2)
        assert float(apart.descent) == pytest.approx(10 / 1.5**2)
        same = sgd_coherence(regression(torch.tensor([[1.2, 0.5]]).double().expand(5, 2)), size, tol=1e-9)
        assert float(same.coherence) == pytest.approx(5.0)
        assert float(same.edge) == pytest.approx(2 / (1.2**2 + 0.5**2))
        assert float(same.edge) == pytest.approx(float(same.descent))
    # With nothing in common, at batch size 1, the condition is not far from necessary: N/√(N − 1).
    single = sgd_coherence(regression(torch.eye(5).double()), 1)
    assert float(single.bound) == pytest.approx(5 / 2)


def test_rows_of_one_length_have_the_edge_of_the_trace_and_gaussian_rows_that_of_their_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 1.7 * nn.functional.normalize(torch.randn(30, 4, generator=generator)).double()
    assert float(sgd_coherence(regression(rows), 1, tol=1e-9).edge) == pytest.approx(2 / 1.7**2)
    # 2/(h(d + 2)) for infinitely many.
    rows = torch.randn(600, 3, generator=generator).double()
    assert float(sgd_coherence(regression(rows), 1).edge) == pytest.approx(2 / 5, rel=0.1)


@pytest.mark.parametrize("name", LOSSES)
def test_simulated_runs_diverge_beyond_the_edge_and_not_before(name: str) -> None:
    objective, hessians = problem(name)
    edge = float(sgd_coherence(objective, 2).edge)
    assert float(twin.simulated(hessians, 2, 1.15 * edge, 100, 1000, 0).mean()) > 1e3
    assert float(twin.simulated(hessians, 2, 0.85 * edge, 100, 1000, 0).mean()) < 0.5
    # The edge of steps on all examples is no help: far below it SGD diverges here.
    assert edge < 0.8 * float(sgd_coherence(objective, 6).edge)


def test_a_loss_that_adds_examples_up_takes_longer_steps() -> None:
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).double()
    mean = sgd_coherence(regression(rows), 2, tol=1e-9)
    model = nn.Linear(3, 1, bias=False).double()
    summed = Objective(model, nn.MSELoss(reduction="sum"), (rows, torch.zeros(6, 1).double()))
    found = sgd_coherence(summed, 2, tol=1e-9)
    # Twice the curvature, for there is no ½, of two examples that are added up.
    assert float(found.edge) == pytest.approx(float(mean.edge) / 4)
    assert float(found.coherence) == pytest.approx(float(mean.coherence))


def test_a_kernel_serves_several_batch_sizes_and_the_edge_rises_with_them() -> None:
    objective, _ = problem("cross-entropy")
    kernel = ntk(objective)
    found = [sgd_coherence(objective, size, kernel=kernel, tol=1e-9) for size in range(1, 7)]
    edges = [float(one.edge) for one in found]
    assert edges == sorted(edges)
    assert edges[-1] == pytest.approx(float(found[-1].descent))
    assert float(found[-1].bound) == float(found[-1].descent)
    assert "steps on 2 of 6 examples" in str(found[1])
    assert found[1].edge.kind == "residual"


def test_what_has_no_edge_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = sgd_coherence(regression(torch.zeros(4, 2).double()), 1)
    assert not flat.edge.determined
    assert "no curvature" in str(flat)
    monkeypatch.setattr(module, "MOST_ROWS", 17)
    objective, _ = problem("squares")
    large = sgd_coherence(objective, 2)
    assert large.coherence.determined
    assert "iterated up to 17" in str(large)


def test_bad_input() -> None:
    objective, _ = problem("squares")
    for size in (0, 7, 1.5):
        with pytest.raises(DiagnosticsError, match="batch_size"):
            sgd_coherence(objective, size)  # type: ignore[arg-type]
    with pytest.raises(DiagnosticsError, match="not the full one"):
        sgd_coherence(objective, 2, kernel=ntk(objective, outputs="trace"))
    contrastive = Objective(objective.model, lambda f, _: (f @ f.T).logsumexp(1).mean(), objective.batches)
    with pytest.raises(DiagnosticsError, match="not that of single examples"):
        sgd_coherence(contrastive, 2)
    with pytest.raises(DiagnosticsError, match="not convex"):
        sgd_coherence(Objective(objective.model, lambda f, _: f.cos().mean(), objective.batches), 2)
    blind = Objective.from_loss(objective.model, lambda m, b: m(b[0]).square().mean(), objective.batches)
    with pytest.raises(DiagnosticsError, match="outputs"):
        sgd_coherence(blind, 2)
