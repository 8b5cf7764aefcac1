"""Slices of the loss, from the probe to the page: lines, a plane, a loss that is not finite, and nothing measured."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, Objective
from probes import Landscape, Monitor, Run
from reports import Report


def measured(tmp_path: Path, model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], loss: nn.Module) -> Run:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    objective = Objective(model, loss, data)
    with Monitor(model, optimizer, objective, out=tmp_path / "run", probes=[Landscape(7, 5)], every=2, budget=None):
        for _ in range(2):
            optimizer.zero_grad()
            loss(model(data[0]), data[1]).backward()
            optimizer.step()
    return Run.open(tmp_path / "run")


def test_lines_and_plane_reach_the_page_and_agree_with_the_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), (torch.randn(9, 4), torch.randn(9, 3))
    run = measured(tmp_path, model, data, nn.MSELoss())
    loss = Objective(model, nn.MSELoss(), data).loss()
    for name in ("random", "sharpest", "second sharpest"):
        record = run.last("landscape", "along", name)
        assert record is not None
        assert record.value == pytest.approx(loss, rel=1e-6)
        values = run.array(record)
        assert values is not None
        assert values.shape == (2, 7)
        assert values[1, 3] == pytest.approx(loss, rel=1e-6)
    # At the ends of the line along the sharpest direction a parabola of its curvature has risen by four losses.
    sharp = run.array(run.last("landscape", "along", "sharpest"))
    assert 3.0 < (sharp[1, 0] + sharp[1, -1]) / 2 / loss < 8.0
    report = Report.from_run(run)
    assert [finding.level for finding in report.findings if finding.id == "landscape/slices"] == ["ok"]
    page = report.save(tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="figure-landscape-lines"' in page
    assert 'id="figure-landscape-plane"' in page
    report.save(tmp_path / "report.pdf")


def test_a_loss_that_is_not_finite_is_said_and_nothing_is_drawn(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    run = measured(tmp_path, model, (torch.randn(4, 2), torch.randn(4, 1)), nn.MSELoss())
    (finding,) = [one for one in Report.from_run(run).findings if one.id == "landscape/slices"]
    assert finding.level == "unmeasured"
    assert "loss is nan" in finding.claim + finding.meaning


def test_a_model_without_filters_still_has_its_sharpest_lines(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = measured(tmp_path, nn.LayerNorm(3), (torch.randn(5, 3), torch.randn(5, 3)), nn.MSELoss())
    assert run.last("landscape", "along", "sharpest") is not None
    assert run.last("landscape", "plane") is None
    assert "along the sharpest direction" in Report.from_run(run).findings[0].claim.lower()


def test_bad_settings_are_one_clear_error() -> None:
    with pytest.raises(DiagnosticsError, match="plane is too small"):
        Landscape(plane=2)
