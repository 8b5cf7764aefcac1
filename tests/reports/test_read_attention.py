"""Readings of attention: growing logits, lost heads and a drifting log Z are named; usual ones raise nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from matplotlib.figure import Figure as Canvas
from runs import run_of
from torch import Tensor, nn

from diagnostics import Objective
from probes import AttentionHeads, Monitor, Run, Units
from probes.run import Record
from reports.attention import chapter as attention
from reports.attention.figures import MOST_ROWS, by_head
from reports.units import chapter as units

LAYERS = ("blocks.0", "blocks.1")


def _findings(run: Run) -> dict[str, Any]:
    return {finding.id: finding for finding in attention.read(run).findings}


def _logits(*values: float) -> Run:
    return run_of(
        {("attention", "max_logit", LAYERS[0]): [1.0] * len(values), ("attention", "max_logit", LAYERS[1]): values}
    )


@pytest.mark.parametrize(
    ("values", "level"),
    [
        ((1.0, 8.0, 30.0), "ok"),
        ((120.0, 130.0, 110.0), "ok"),
        ((2.0, 40.0, 150.0), "warn"),
        ((2.0, 400.0, 20_000.0), "fail"),
        ((20_000.0,), "fail"),
        ((500.0,), "ok"),
        ((2000.0,), "warn"),
    ],
)
def test_the_largest_logit_and_its_growth(values: tuple[float, ...], level: str) -> None:
    """One large value says nothing about growth; 10,000 needs none."""
    finding = _findings(_logits(*values))["attention/logits"]
    assert finding.level == level
    assert LAYERS[1] in finding.claim or max(values) == 1.0
    assert bool(finding.advice) == (level != "ok")
    assert finding.evidence == (("attention-logits",) if len(values) > 1 else ())


def _heads(dead: int = 0, collapsed: int = 0, elsewhere: int = 0, uniform: int = 0) -> Run:
    quantities: dict[Any, list[float]] = {}
    counts = {"dead": dead, "collapsed": collapsed, "collapsed_elsewhere": elsewhere, "uniform": uniform}
    for layer in LAYERS:
        quantities["attention", "heads", layer] = [4.0, 4.0]
        for name, value in counts.items():
            quantities["attention", name, layer] = [0.0, float(value) if layer == LAYERS[1] else 0.0]
    return run_of(quantities)


@pytest.mark.parametrize(
    ("counts", "level", "word"),
    [
        ({}, "ok", "usual"),
        ({"dead": 1}, "ok", "usual"),
        ({"dead": 2}, "warn", "take no part"),
        ({"collapsed": 4}, "ok", "rest on the first token"),
        ({"collapsed": 4, "elsewhere": 4}, "warn", "the same output for every query"),
        ({"uniform": 4}, "ok", "fresh"),
    ],
)
def test_heads_are_counted_and_only_many_lost_ones_are_alleged(counts: dict[str, int], level: str, word: str) -> None:
    finding = _findings(_heads(**counts))["attention/heads"]
    assert finding.level == level
    assert word in finding.meaning
    assert finding.claim.startswith("Of 8 attention heads, ")


@pytest.mark.parametrize(
    ("values", "level"),
    [((2.3, 9.0, 20.0), "ok"), ((-2.3, -30.0, -90.0), "warn"), ((80.0, 81.0, 82.0), "ok"), ((2.3, 150.0), "warn")],
)
def test_log_z_may_drift_and_not_run_away(values: tuple[float, ...], level: str) -> None:
    finding = _findings(run_of({("attention", "log_z"): values}))["attention/log_z"]
    assert finding.level == level
    assert "from " in finding.claim


def test_a_model_without_attention_is_unmeasured_and_its_log_z_still_read() -> None:
    skipped = Record(
        step=0, time=0.0, probe="attention", name="heads", status="skipped", note="the model ran no attention."
    )
    z = Record(step=0, time=0.0, probe="attention", name="log_z", value=2.0, error=0.1, note="mean over 4 labels")
    found = _findings(Run({}, [skipped, z]))
    assert found["attention/heads"].level == "unmeasured"
    assert "ran no attention" in found["attention/heads"].claim
    assert found["attention/log_z"].level == "ok"
    assert attention.read(Run({}, [])).findings == ()


def _with_arrays(heads: int) -> Run:
    records: list[Record] = []
    arrays: dict[tuple[str, str], numpy.ndarray] = {}
    layers = [f"h.{n}" for n in range(3)]
    for step in (0, 10):
        for layer in layers:
            records.append(
                Record(step=step, time=0.0, probe="attention", name="relative_entropy", layer=layer, value=0.5)
            )
            records.append(
                Record(step=step, time=0.0, probe="attention", name="heads", layer=layer, value=float(heads))
            )
            arrays["attention", f"relative_entropy/{layer}"] = numpy.linspace(0.2, 0.8, heads)
    return Run({}, records, arrays=arrays)


@pytest.mark.parametrize("heads", [4, MOST_ROWS])
def test_the_heat_map_has_a_row_for_each_head_or_the_sharpest_of_each_attention(heads: int) -> None:
    run = _with_arrays(heads)
    names, steps, values = by_head(run, "relative_entropy")
    assert steps == [0, 10]
    assert len(names) == (12 if heads == 4 else 3)
    assert values[0].tolist() == [0.2, 0.2]
    (figure,) = attention.read(run).figures
    canvas = Canvas(figsize=figure.size)
    figure.draw(canvas)
    assert figure.table.rows[0][1] == pytest.approx(0.8), "concentration is one minus the relative entropy"


class Small(nn.Module):
    """One block of attention over the rows of an image, with a gated feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(16)])
        self.embed, self.gate, self.up = nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(16, 32)
        self.down, self.head = nn.Linear(32, 16), nn.Linear(16, 4)
        self.place = nn.Parameter(0.1 * torch.randn(6, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = self.norms[1](x)
        x = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return self.head(x.mean(1))


@pytest.mark.parametrize("sick", [False, True])
def test_a_run_whose_logits_grow_is_told_and_a_healthy_one_raises_nothing(sick: bool, tmp_path: Path) -> None:
    """The sick run multiplies queries and keys after every step."""
    model = Small()
    centres = torch.randn(4, 6, 8)
    y = torch.randint(4, (64,))
    x = centres[y] + 0.3 * torch.randn(64, 6, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    objective = Objective(model, nn.CrossEntropyLoss(), (x, y))
    probes = [Units(), AttentionHeads()]
    with Monitor(model, optimizer, objective, out=tmp_path / "run", probes=probes, every=20, budget=None):
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            if sick:
                with torch.no_grad():
                    model.attention.in_proj_weight[:32] *= 1.05
    run = Run.open(tmp_path / "run")
    assert all(record.status == "ok" for record in run.records)
    found = (*attention.read(run).findings, *units.read(run).findings)
    bad = {finding.id for finding in found if finding.level != "ok"}
    assert ("attention/logits" in bad) == sick
    if not sick:
        assert bad == set()
    for figure in (*attention.read(run).figures, *units.read(run).figures):
        figure.draw(Canvas(figsize=figure.size))
