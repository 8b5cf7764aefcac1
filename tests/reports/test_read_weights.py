"""Reading weights by themselves: planted faults are named at their tensor, healthy networks are accused of nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure as Canvas
from torch import Tensor, nn

from reports import Report
from reports.charts import dots
from reports.finding import Finding

QUIET = {"weights/finite", "weights/spectra", "sharpness/regime"}


def _findings(tmp_path: Path, model: nn.Module | dict[str, Tensor], **more: Any) -> dict[str, Finding]:
    state = model.state_dict() if isinstance(model, nn.Module) else model
    torch.save({"model": state, **more}, tmp_path / "last.pt")
    return {finding.id: finding for finding in Report.from_checkpoint(tmp_path / "last.pt").findings}


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 40), nn.LayerNorm(40), nn.ReLU(), nn.Linear(40, 4))


class Cnn(nn.Module):
    """With biases in front of batch normalisation, as many have."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x[:, None, :, None] * x[:, None, None, :])
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


class Transformer(nn.Module):
    """With learnt positions and a head tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(50, 32), nn.Parameter(0.02 * torch.randn(12, 32))
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.RMSNorm(32)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x * 10).long().remainder(50)
        logits: Tensor = self.head(self.norm(self.block(self.embedding(tokens) + self.positions)))
        return logits.mean(1)[:, :4]


def _train(model: nn.Module, steps: int = 150) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x = torch.randn(256, 12)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] * x[:, 2] > 0).long()
    for _ in range(steps):
        batch = torch.randint(256, (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("build", [_mlp, Cnn, Transformer])
@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
def test_nothing_is_alleged_of_healthy_networks(build: Any, trained: bool, tmp_path: Path) -> None:
    model = build()
    more = {"optimizer": _train(model).state_dict()} if trained else {}
    found = _findings(tmp_path, model, **more)
    assert set(found) == QUIET
    assert {found[name].level for name in ("weights/finite", "weights/spectra")} == {"ok"}
    assert "weight matrices" in found["weights/spectra"].claim


def test_zero_rows_are_named_with_their_share(tmp_path: Path) -> None:
    model = _mlp()
    with torch.no_grad():
        model[2].weight[:10] = 0.0
    found = _findings(tmp_path, model)
    assert set(found) == {*QUIET, "weights/zero_rows"}
    assert found["weights/zero_rows"].claim == "10 rows (25%) of 2.weight are zero throughout."


def test_a_row_for_padding_is_no_finding(tmp_path: Path) -> None:
    assert set(_findings(tmp_path, nn.Embedding(20, 16, padding_idx=0))) == QUIET


@pytest.mark.parametrize("constant", [True, False], ids=["constant initialisation", "copied units"])
def test_repeated_rows_are_named(constant: bool, tmp_path: Path) -> None:
    model = _mlp()
    with torch.no_grad():
        if constant:
            nn.init.constant_(model[2].weight, 0.1)
        else:
            model[2].weight[20:] = -3 * model[2].weight[:20]
    finding = _findings(tmp_path, model)["weights/repeated_rows"]
    count = "39 rows (98%)" if constant else "20 rows (50%)"
    assert finding.claim == f"{count} of 2.weight are each another row over again, up to scale and sign."
    assert finding.level == "warn"


def test_a_table_of_one_row_over_and_over_is_a_design(tmp_path: Path) -> None:
    """The state matrix of a state-space model starts as log(1, ..., N) for every channel."""
    assert set(_findings(tmp_path, {"mixer.A_log": torch.arange(1.0, 17).log().expand(64, 16).clone()})) == QUIET


def test_half_precision_overflow_and_vanishing(tmp_path: Path) -> None:
    model = _mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = 1e5
        model[5].weight *= 1e-9
    found = _findings(tmp_path, model)
    assert set(found) == {*QUIET, "weights/half_precision"}
    claim = found["weights/half_precision"].claim
    assert claim.startswith("In float16 1 weight would be infinite, most in 0.weight and ")
    assert "of the weights in 5.weight would be zero (0.weight, 5.weight)." in claim
    assert "bfloat16 has the range of float32" in found["weights/half_precision"].meaning


def test_running_statistics_that_cannot_be_used(tmp_path: Path) -> None:
    model = Cnn()
    _train(model, 3)
    model.body[1].running_var[2] = -0.1
    model.body[4].reset_running_stats()
    found = _findings(tmp_path, model)
    assert set(found) == {*QUIET, "weights/negative_variance", "weights/stale_statistics"}
    assert found["weights/negative_variance"].level == "fail"
    assert found["weights/stale_statistics"].claim.startswith("1 batch normalisation layer (body.4) has trained gains")


def test_channels_switched_off(tmp_path: Path) -> None:
    model = Cnn()
    _train(model, 3)
    with torch.no_grad():
        model.body[1].weight[:4] = 1e-7
        model.body[4].running_var[:6] = 0.0
    finding = _findings(tmp_path, model)["weights/switched_off"]
    assert finding.claim == (
        "Channels are switched off: 50% of the gains of body.1 are near zero, and 50% of the channels of body.4 have a "
        "running variance below 1e-5."
    )


def test_residual_branches_that_start_closed_are_a_design(tmp_path: Path) -> None:
    model = Cnn()
    nn.init.zeros_(model.body[4].weight)
    assert set(_findings(tmp_path, model)) == QUIET


def test_moments_of_matrices_without_gradient_and_below_epsilon(tmp_path: Path) -> None:
    used, unused = nn.Linear(8, 8), nn.Linear(8, 8)
    adam = torch.optim.Adam([*used.parameters(), *unused.parameters()])
    for _ in range(3):
        loss = 1e-12 * used(torch.randn(5, 8)).square().sum() + 0 * unused(torch.randn(5, 8)).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    found = _findings(tmp_path, nn.Sequential(used, unused), optimizer=adam.state_dict())
    assert set(found) == {*QUIET, "weights/without_gradient", "weights/epsilon"}
    assert found["weights/without_gradient"].claim.startswith("1 matrix of 2 in the optimizer never got a gradient")
    assert found["weights/epsilon"].claim.startswith("In 1 of 1 matrices most second moments are below ε (100%")


def test_low_rank_and_heavy_tails_are_described_and_not_judged(tmp_path: Path) -> None:
    low = torch.randn(80, 3) @ torch.randn(3, 80)
    heavy = torch.linalg.qr(torch.randn(300, 300)).Q * (torch.arange(1.0, 301) ** -0.6)
    found = _findings(tmp_path, {"low.weight": low, "heavy.weight": heavy})
    assert set(found) == QUIET
    meaning = found["weights/spectra"].meaning
    assert "4% in low.weight" in meaning or "3% in low.weight" in meaning
    assert "could have power-law tails" in meaning


def test_the_report_shows_spectra_and_their_table(tmp_path: Path) -> None:
    torch.save(_mlp().state_dict(), tmp_path / "last.pt")
    report = Report.from_checkpoint(tmp_path / "last.pt")
    (figure,) = (figure for figure in report.document.figures if figure.id == "weights-spectra")
    assert [row[0] for row in figure.table.rows] == ["0.weight", "2.weight", "5.weight"]
    assert figure.table.columns[:3] == ("matrix", "σ₁", "RMS→RMS norm")
    assert report.save(tmp_path / "report.html").exists()
    assert report.save(tmp_path / "report.pdf").exists()


def test_tensors_of_every_kind_leave_the_report_standing(tmp_path: Path) -> None:
    strange = {
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 4),
        "index": torch.arange(6).reshape(2, 3),
        "complex.weight": torch.randn(12, 12, dtype=torch.complex64),
        "half.weight": torch.randn(12, 12).half(),
        "brain.weight": torch.randn(12, 12).bfloat16(),
        "eight.weight": torch.randn(12, 12).to(torch.float8_e4m3fn),
        "row.weight": torch.randn(1, 9),
        "same.weight": torch.full((6, 9), 0.5),
        "tiny.weight": torch.full((2, 2), 1e-30) * torch.randn(2, 2),
    }
    found = _findings(tmp_path, strange)
    assert found["weights/finite"].level == "ok"
    assert {name for name, finding in found.items() if finding.level == "warn"} == {
        "weights/repeated_rows",
        "weights/half_precision",
    }


def test_only_the_chapter_that_was_named(tmp_path: Path) -> None:
    torch.save(_mlp().state_dict(), tmp_path / "last.pt")
    named = Report.from_checkpoint(tmp_path / "last.pt", only=["weights"])
    assert {finding.id for finding in named.findings} == QUIET
    other = Report.from_checkpoint(tmp_path / "last.pt", only=["sharpness"])
    assert not any(record.name == "spectral_norm" for record in other.run.records)


@pytest.mark.parametrize(("sizes", "span"), [((1.0, 1.001), 4.0), ((1.0, 1.0), 4.0), ((1.0, 50.0), 50.0)])
def test_sizes_that_hardly_differ_are_not_drawn_far_apart(sizes: tuple[float, float], span: float) -> None:
    canvas = Canvas()
    dots(canvas, ["a", "b"], sizes, "size")
    low, high = canvas.axes[0].get_xlim()
    assert low < sizes[0] <= sizes[1] < high
    assert high / low >= 0.999 * span
