"""The trace in units of the optimizer, and what it bounds: SGD on single examples, by enumeration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Rprop

from diagnostics import DiagnosticsError, Objective, stability, trace_ratio
from tests.reference.edge_measures import dense_at, network, random_quadratic


def _regression(rows: Tensor) -> Objective:
    """½ (x·w)² per example, at its minimum w = 0."""
    model = nn.Linear(rows.shape[1], 1, bias=False).double()
    nn.init.zeros_(model.weight)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (outputs - targets).square().mean()

    return Objective(model, loss, (rows, torch.zeros(len(rows), 1, dtype=torch.float64)))


def _mean_square_radius(rows: Tensor, lr: float) -> float:
    """Spectral radius of Σ ↦ E[(I − ηhhᵀ) Σ (I − ηhhᵀ)], by enumeration of the examples."""
    steps = [torch.eye(rows.shape[1], dtype=torch.float64) - lr * torch.outer(row, row) for row in rows]
    return float(torch.linalg.eigvalsh(torch.stack([torch.kron(step, step) for step in steps]).mean(0)).abs().max())


def test_for_examples_of_one_length_one_is_where_sgd_stops_contracting() -> None:
    rows = nn.functional.normalize(torch.randn(40, 5, dtype=torch.float64)) * 1.7
    objective = _regression(rows)
    edge = 2 / 1.7**2
    for share in (0.98, 1.02):
        ratio = trace_ratio(objective, SGD(objective.model.parameters(), lr=share * edge))
        assert float(ratio) == pytest.approx(share)
        assert (_mean_square_radius(rows, share * edge) > 1) == (float(ratio) > 1)
    assert float(stability(objective, SGD(objective.model.parameters(), lr=edge)).ratio) < 0.6


def test_beyond_one_sgd_is_unstable_whatever_the_examples() -> None:
    for seed in range(20):
        rows = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        objective = _regression(rows)
        lr = 2.02 / float(rows.square().sum(1).mean())
        assert float(trace_ratio(objective, SGD(objective.model.parameters(), lr=lr))) > 1
        assert _mean_square_radius(rows, lr) > 1


def test_it_is_the_trace_of_the_scaled_dense_hessian() -> None:
    model, data = network()
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    optimizer = Adam(model.parameters(), lr=0.01, weight_decay=0.3)
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    optimizer.step()
    _, H = dense_at(model, nn.CrossEntropyLoss(), data)
    moment = torch.cat([optimizer.state[p]["exp_avg_sq"].reshape(-1) for p in model.parameters()])
    divisor = ((moment / (1 - 0.999)).sqrt() + 1e-8) * (1 - 0.9)
    expected = float(((H.diagonal() + 0.3) / divisor).sum()) * 0.01 * (0.1 / 1.9) / 2
    exact = trace_ratio(objective, optimizer)
    assert (exact.kind, exact.error) == ("exact", 0.0)
    assert float(exact) == pytest.approx(expected, rel=1e-8)
    assert "12 loss terms" in exact.how


def test_few_products_give_an_error_that_covers() -> None:
    objective = random_quadratic(60).objective()
    optimizer = SGD(objective.model.parameters(), lr=0.1)
    exact = float(trace_ratio(objective, optimizer))
    inside = 0
    for seed in range(40):
        low, high = trace_ratio(objective, optimizer, matvecs=30, seed=seed).interval()
        inside += low <= exact <= high
    assert inside >= 34


def test_no_step_no_trace_and_what_has_no_rule_is_refused() -> None:
    objective = random_quadratic().objective()
    assert float(trace_ratio(objective, SGD(objective.model.parameters(), lr=0.0))) == 0.0
    with pytest.raises(DiagnosticsError, match="Rprop"):
        trace_ratio(objective, Rprop(objective.model.parameters()))
    with pytest.raises(DiagnosticsError, match="holds none"):
        trace_ratio(objective, SGD(nn.Linear(2, 2).parameters(), lr=0.1))
    with pytest.raises(DiagnosticsError, match="no preconditioner yet"):
        trace_ratio(objective, Adam(objective.model.parameters()))


def test_frozen_layers_are_left_out() -> None:
    model, data = network()
    model[0].requires_grad_(False)
    _, H = dense_at(model, nn.CrossEntropyLoss(), data)
    ratio = trace_ratio(Objective(model, nn.CrossEntropyLoss(), data), SGD(model.parameters(), lr=0.2))
    assert float(ratio) == pytest.approx(0.1 * float(H.diagonal().sum()), rel=1e-9)
