"""Gains and running statistics: found by names and shapes, counted exactly, and nothing alleged of fresh layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, NormGains, normalisation_gains


def _row(model: nn.Module) -> NormGains:
    (row,) = normalisation_gains(nn.Sequential(model).state_dict()).rows
    return row


@pytest.mark.parametrize(
    ("layer", "batch_norm"),
    [
        (nn.LayerNorm(6), False),
        (nn.GroupNorm(2, 6), False),
        (nn.BatchNorm2d(6), True),
        (nn.InstanceNorm1d(6, affine=True, track_running_stats=True), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fresh_layers_are_found_and_have_nothing_wrong(layer: nn.Module, batch_norm: bool) -> None:
    row = _row(layer)
    assert (row.layer, row.batch_norm, row.width) == ("0", batch_norm, 6)
    assert (row.smallest, row.largest, row.near_zero, row.negative, row.non_finite) == (1.0, 1.0, 0, 0, 0)
    assert row.untouched
    assert not row.never_updated
    assert (row.batches, row.small_variances, row.negative_variances) == ((0, 0, 0) if batch_norm else (None,) * 3)


def test_layers_without_gains_or_bias() -> None:
    assert _row(nn.BatchNorm1d(3, affine=False)).width == 0
    assert math.isnan(_row(nn.BatchNorm1d(3, affine=False)).smallest)
    names = {"blocks.0.norm1.weight": 4, "ln_f.weight": 4, "model.bn1.weight": 4, "input_layernorm.weight": 4}
    found = normalisation_gains({name: torch.ones(width) for name, width in names.items()})
    assert [f"{row.layer}.weight" for row in found.rows] == list(names)


def test_other_vectors_are_not_taken_for_gains() -> None:
    others = nn.ModuleDict(
        {"prelu": nn.PReLU(4), "linear": nn.Linear(4, 4), "embedding": nn.Embedding(4, 4), "conv": nn.Conv1d(4, 4, 1)}
    )
    state = {
        **others.state_dict(),
        "scale": torch.ones(4),
        "norm.weight": torch.ones(4, 4),
        "bins.weight": torch.ones(3),
    }
    assert normalisation_gains(state).rows == []
    assert str(normalisation_gains(state)) == "no normalisation layer was found"


def _changed(layer: nn.Module, **values: list[float]) -> nn.Module:
    state: dict[str, Tensor] = layer.state_dict()
    layer.load_state_dict({**state, **{name: torch.tensor(value) for name, value in values.items()}})
    return layer


def test_planted_gains_are_counted() -> None:
    row = _row(_changed(nn.LayerNorm(5), weight=[1.0, 0.0, -2.0, 1e-4, math.nan]))
    assert (row.near_zero, row.negative, row.non_finite, row.largest, row.smallest) == (2, 1, 1, 2.0, 0.0)
    assert not row.untouched


def test_planted_running_statistics_are_counted() -> None:
    variances = [1.0, 0.0, 1e-6, -1.0, math.inf]
    row = _row(_changed(nn.BatchNorm1d(5), running_var=variances, running_mean=[0.0, 0.0, 0.0, 0.0, math.nan]))
    assert (row.small_variances, row.negative_variances, row.non_finite) == (2, 1, 2)
    assert not row.never_updated


def test_statistics_that_were_never_updated_are_told_from_a_fresh_layer() -> None:
    trained = nn.BatchNorm1d(4)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    trained.eval()
    trained(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    assert _row(trained).never_updated, "trained in evaluation mode"
    assert not _row(nn.BatchNorm1d(4)).never_updated
    healthy = nn.BatchNorm1d(4)
    healthy(3 + torch.randn(8, 4)).square().sum().backward()
    assert not _row(healthy).never_updated
    assert _row(healthy).batches == 1


def test_gains_that_all_start_at_zero_are_untouched() -> None:
    """As the last norm of a residual branch does."""
    row = _row(_changed(nn.LayerNorm(3), weight=[0.0, 0.0, 0.0]))
    assert (row.near_zero, row.untouched) == (3, True)


def test_half_precision_and_what_cannot_be_read() -> None:
    state = nn.Sequential(nn.BatchNorm1d(3).to(torch.bfloat16)).state_dict()
    assert normalisation_gains(state).rows[0].width == 3
    assert normalisation_gains({"norm.weight": torch.ones(3, device="meta"), "norm.bias": torch.zeros(3)}).rows == []


def test_the_table_prints_and_turns_into_pandas() -> None:
    pytest.importorskip("pandas")
    table = normalisation_gains(nn.Sequential(nn.LayerNorm(3), nn.BatchNorm1d(3)).state_dict())
    assert list(table.to_pandas()["layer"]) == ["0", "1"]
    assert str(table).splitlines()[0].startswith("layer  gains  smallest")
    with pytest.raises(DiagnosticsError, match="state_dict has no tensors by name; given: Linear"):
        normalisation_gains(nn.Linear(2, 2))  # type: ignore[arg-type]
