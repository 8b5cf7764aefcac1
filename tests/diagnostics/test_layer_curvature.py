"""Layer by layer: the table holds what the dense diagonal blocks hold."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, EmpiricalFisher, Fisher, GaussNewton, Hessian, Objective, layer_curvature


def _objective(mode: str = "eval", **settings: object) -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)
    ).double()
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randint(3, (30,))
    return Objective(model, nn.CrossEntropyLoss(), [(x[:23], y[:23]), (x[23:], y[23:])], mode=mode, **settings)


def _dense(operator: Hessian) -> Tensor:
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


@pytest.mark.parametrize("operator", [Hessian, GaussNewton, Fisher, EmpiricalFisher])
def test_the_product_by_layer_is_the_block_diagonal_of_the_whole(operator: type[Hessian]) -> None:
    whole, blocks = _dense(operator(_objective())), _dense(by_layer := operator(_objective(), by_layer=True))
    expected = torch.zeros_like(whole)
    for layer in by_layer.layers:
        expected[layer.span, layer.span] = whole[layer.span, layer.span]
    torch.testing.assert_close(blocks, expected, rtol=1e-10, atol=1e-13)
    assert [layer.name for layer in by_layer.layers] == ["0", "2", "3", "5"]
    assert by_layer.route.endswith("by layer")


def test_central_differences_have_blocks_too() -> None:
    exact = Hessian(_objective(), by_layer=True)
    differences = Hessian(_objective(), by_layer=True, route="central differences")
    V = torch.randn(exact.shape[0], 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(differences @ V, exact @ V, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("operator", [Hessian, GaussNewton])
def test_eigenvalues_are_those_of_the_dense_blocks(operator: type[Hessian]) -> None:
    whole = _dense(operator(_objective()))
    table = layer_curvature(operator(_objective(), by_layer=True), tol=1e-6)
    for row, layer in zip(table.rows, operator(_objective(), by_layer=True).layers, strict=True):
        block = whole[layer.span, layer.span]
        assert float(row.top) == pytest.approx(float(torch.linalg.eigvalsh(block)[-1]), rel=1e-6)
        assert row.parameters == len(block)


def test_stated_errors_of_traces_cover_the_truth() -> None:
    """95 % of 4 × 60 intervals, give or take three standard deviations."""
    objective = _objective()
    whole = _dense(Hessian(objective))
    layers = Hessian(objective, by_layer=True).layers
    operator = Hessian(objective, by_layer=True)
    covered = []
    for seed in range(60):
        for row, layer in zip(layer_curvature(operator, tol=0.5, seed=seed).rows, layers, strict=True):
            truth = float(whole[layer.span, layer.span].trace())
            low, high = row.trace.interval()
            covered.append(low <= truth <= high)
    assert numpy.mean(covered) == pytest.approx(0.95, abs=0.045)


@pytest.mark.parametrize("probes", [2, 4, 8])
def test_a_few_probes_have_honest_intervals(probes: int) -> None:
    """As few as two: by the plain standard error it was 70 % of traces and 62 % of shares."""
    objective = _objective()
    operator, whole = GaussNewton(objective, by_layer=True), _dense(GaussNewton(objective))
    truth = torch.stack([whole[layer.span, layer.span].trace() for layer in operator.layers])
    traces, shares = [], []
    for seed in range(60):
        for row, one, part in zip(
            layer_curvature(operator, tol=0.5, probes=probes, seed=seed, max_steps=1).rows,
            truth.tolist(),
            (truth / truth.sum()).tolist(),
            strict=True,
        ):
            low, high = row.trace.interval()
            traces.append(low <= one <= high)
            low, high = row.share.interval()
            if row.share.determined:
                shares.append(low <= part <= high)
    assert numpy.mean(traces) >= 0.89
    assert numpy.mean(shares) >= 0.89


@pytest.mark.parametrize("scale", [1e-24, 1e20])
def test_the_scale_of_the_loss_goes_through(scale: float) -> None:
    """In single precision squares of these norms are zero or infinite."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    data = torch.randn(12, 4), torch.randn(12, 3)

    def rows(factor: float) -> list[tuple[float, ...]]:
        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return factor * (outputs - targets).square().mean()

        found = layer_curvature(Objective(model, loss, data)).rows
        return [
            (*(part / factor for one in (row.top, row.trace) for part in (one.value, one.error)), row.share.value)
            for row in found
        ]

    numpy.testing.assert_allclose(rows(scale), rows(1.0), rtol=1e-3)


def test_a_default_device_and_autocast_change_nothing() -> None:
    expected = layer_curvature(_objective())
    objective = _objective()
    with torch.device("meta"), torch.autocast("cpu"):
        assert str(layer_curvature(objective)) == str(expected)


def test_layers_that_are_exact_after_a_few_steps_do_not_hold_up_the_others() -> None:
    """A scalar layer has converged after one product; the largest takes part to the end."""
    torch.manual_seed(0)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.body = nn.Parameter(torch.tensor(1.5)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * torch.tanh(self.body(x))

    x, y = torch.randn(12, 4, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64)
    objective = Objective(Scaled().double(), nn.MSELoss(), (x, y))
    whole = _dense(Hessian(objective))
    table = layer_curvature(objective, tol=1e-8)
    assert [row.layer for row in table.rows] == ["", "body"]
    assert float(table.rows[0].top) == pytest.approx(float(whole[0, 0]), rel=1e-12)
    assert table.rows[0].trace.error == pytest.approx(0.0, abs=1e-12), "one entry: every probe sees all of it"
    assert float(table.rows[1].top) == pytest.approx(float(torch.linalg.eigvalsh(whole[1:, 1:])[-1]), rel=1e-8)


def test_what_could_not_be_had_is_said() -> None:
    unfinished = layer_curvature(_objective(), tol=1e-9, max_steps=2)
    assert "NOT CONVERGED" in unfinished.rows[0].top.how
    single = layer_curvature(_objective(), probes=1)
    assert numpy.isnan(single.rows[0].trace.error)
    assert "one probe has no spread" in single.rows[0].trace.how
    assert "parameters" in str(single)
    assert list(single.to_pandas().columns)[:3] == ["layer", "parameters", "top"]


def test_refusals() -> None:
    with pytest.raises(DiagnosticsError, match="the operator has no layers"):
        layer_curvature(Hessian(_objective()))
    with pytest.raises(DiagnosticsError, match="tol is not positive"):
        layer_curvature(_objective(), tol=0.0)
    for tol in ("a", "1", None):
        with pytest.raises(DiagnosticsError, match="tol is not a number"):
            layer_curvature(_objective(), tol=tol)
    with pytest.raises(DiagnosticsError, match="probes is out of range"):
        layer_curvature(_objective(), probes=0)
    with pytest.raises(DiagnosticsError, match="has no blocks by layer"):
        Hessian(_objective(), by_layer=True, route="linearize")
