"""Signal-to-noise by parameter and Takeuchi's criterion, against gradients built one by one and dense matrices."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import DiagnosticsError, Objective, gradient_signal_to_noise, takeuchi_information
from diagnostics.noise.per_example import per_example_gradient_norms
from tests.cases.models import Recurrent
from tests.reference.dense_gauss_newton import dense_gauss_newton
from tests.reference.per_example_loops import gradients


class Mixed(nn.Module):
    """A convolution, tokens, an embedding, a scale and a tied weight: every way squares are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.convolution = nn.Conv1d(4, 4, 2)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight
        self.last = nn.Linear(7, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.convolution(self.table(tokens).mT).mT
        return self.last(self.head(torch.tanh(self.norm(x))).mean(1))


def _mixed(count: int = 11) -> tuple[Objective, Tensor]:
    torch.manual_seed(0)
    model, loss = Mixed().double(), nn.CrossEntropyLoss()
    tokens, labels = torch.randint(7, (count, 5)), torch.randint(3, (count,))
    objective = Objective(model, loss, [(tokens[:6], labels[:6]), (tokens[6:], labels[6:])])
    rows = gradients(model, lambda m, i: loss(m(tokens[i : i + 1]), labels[i : i + 1]), count, objective.space.names)
    return objective, rows


def test_it_is_that_of_gradients_one_by_one() -> None:
    objective, rows = _mixed()
    found = gradient_signal_to_noise(objective)
    variance = rows.var(0, correction=1)
    expected = rows.mean(0).square() / variance - 1 / 11
    known = rows.abs().amax(0) > 0
    assert bool((found.ratio.isnan() == ~known).all())
    torch.testing.assert_close(found.ratio[known], expected[known], rtol=1e-7, atol=1e-9)
    resolved = rows.mean(0).abs() > 1.96 * (variance / 11).sqrt()
    assert float(found.resolved) == pytest.approx(float(resolved[known].double().mean()))
    assert [row.layer for row in found.by_layer] == ["table", "convolution", "norm", "last"]
    assert "signal-to-noise" in str(found)


def test_parameters_that_go_example_by_example_are_there_too() -> None:
    torch.manual_seed(0)
    model, loss = Recurrent().double(), nn.MSELoss()
    x, y = torch.randn(6, 4, 2).double(), torch.randn(6, 2).double()
    objective = Objective(model, loss, (x, y))
    rows = gradients(model, lambda m, i: loss(m(x[i : i + 1]), y[i : i + 1]), 6)
    found = gradient_signal_to_noise(objective)
    expected = rows.mean(0).square() / rows.var(0, correction=1) - 1 / 6
    torch.testing.assert_close(found.ratio, expected, rtol=1e-6, atol=1e-8)


def test_without_signal_a_twentieth_counts_as_resolved_and_the_ratio_is_zero_on_average() -> None:
    """Labels at random, at the least squares solution of none: pure noise. And with signal: resolved."""
    torch.manual_seed(0)
    model = nn.Linear(300, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x = torch.randn(500, 300).double()
    noise = gradient_signal_to_noise(Objective(model, nn.MSELoss(), (x, torch.randn(500, 1).double())))
    assert float(noise.resolved) == pytest.approx(0.05, abs=0.04)
    assert abs(float(noise.ratio.mean())) < 5e-4
    signal = gradient_signal_to_noise(Objective(model, nn.MSELoss(), (x, x.sum(1, keepdim=True))))
    assert float(signal.ratio.mean()) == pytest.approx(1 / 301, rel=0.3)  # Var(x_j Σx) = 301 over G² = 1
    assert float(signal.resolved) > 0.1


def test_norms_in_a_metric() -> None:
    objective, rows = _mixed()
    metric = torch.rand(objective.num_parameters, dtype=torch.float64)
    found = per_example_gradient_norms(objective, metric=metric)
    torch.testing.assert_close(found.norms, (rows.square() @ metric).sqrt(), rtol=1e-9, atol=1e-12)
    assert float(found.mean_square) == pytest.approx(float(rows.mean(0).square() @ metric), rel=1e-9)
    with pytest.raises(DiagnosticsError, match="metric is not one of the parameters"):
        per_example_gradient_norms(objective, metric=metric[1:])


def test_takeuchi_is_that_of_dense_matrices() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(60, 3).double(), torch.randint(2, (60,))
    objective = Objective(model, nn.CrossEntropyLoss(), (x, y))
    rows = gradients(model, lambda m, i: F.cross_entropy(m(x[i : i + 1]), y[i : i + 1]), 60).numpy()
    matrix = dense_gauss_newton(model, lambda: model(x), lambda at: F.cross_entropy(at, y)).numpy()
    exact = float(numpy.trace(numpy.linalg.solve(matrix + 0.01 * numpy.eye(len(matrix)), numpy.cov(rows.T))))
    found = takeuchi_information(objective, damping=0.01, draws=100)
    assert abs(float(found.criterion) - exact) < 3 * found.criterion.error < 0.3 * exact
    assert "damping" in str(found)
    for bad in ({"damping": 0.0}, {"damping": 1.0, "draws": 1}):
        with pytest.raises(DiagnosticsError):
            takeuchi_information(objective, **bad)


def test_takeuchi_of_a_model_that_fits_is_its_number_of_parameters() -> None:
    """Least squares with noise of variance ½ under mean (f − y)²: Σ = 4 σ² E xxᵀ = G."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x, noise = torch.randn(3000, 4).double(), (0.5**0.5) * torch.randn(3000, 1).double()
    found = takeuchi_information(Objective(model, nn.MSELoss(), (x, noise)), damping=1e-6, draws=40)
    assert abs(float(found.criterion) - 4) < 3 * found.criterion.error + 0.3
    assert float(found.trace_ratio) == pytest.approx(1, abs=0.1)
