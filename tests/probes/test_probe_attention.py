"""What the AttentionHeads probe writes is what ``diagnostics`` says of the same moment; training does not notice."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor, nn

from diagnostics import Objective, attention_heads, output_log_z
from probes import AttentionHeads, Monitor, Run
from probes.checkpoint.examine import _probes
from probes.probe import Moment
from tests.probes.toy import Toy, Watch


class Reader(nn.Module):
    """Two layers of attention over tokens, one class for each sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))  # type: ignore[no-any-return]


def _parts() -> tuple[Reader, Objective, torch.optim.Optimizer, tuple[Tensor, Tensor]]:
    torch.default_generator.manual_seed(0)
    model = Reader()
    data = (torch.randint(7, (12, 5)), torch.randint(3, (12,)))
    objective = Objective(model, nn.CrossEntropyLoss(), [(data[0][:5], data[1][:5]), (data[0][5:], data[1][5:])])
    return model, objective, torch.optim.Adam(model.parameters(), lr=1e-2), data


def _train(model: Reader, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()


def test_every_number_is_that_of_a_direct_call() -> None:
    model, objective, _, _ = _parts()
    with torch.no_grad():
        model.encoder.layers[1].self_attn.out_proj.weight[:, 4:] = 0.0
    got = {(one.name, one.layer): one for one in AttentionHeads().measure(Moment(0, model, None, objective))}
    table, z = attention_heads(model, objective), output_log_z(objective)
    layer = "encoder.layers.1.self_attn"
    rows = [row for row in table.rows if row.layer == layer]
    for name, stands_for in (("relative_entropy", numpy.mean), ("max_logit", max), ("output_share", min)):
        values = [getattr(row, name).value for row in rows]
        assert got[name, layer].array.tolist() == values
        assert got[name, layer].value == pytest.approx(stands_for(values))
        assert "over heads" in got[name, layer].note
    assert (got["heads", layer].value, got["dead", layer].value) == (2, 1)
    assert got["dead", layer].array.tolist() == [0.0, 1.0]
    assert got["log_z", None].value == z.mean
    assert got["classes", None].value == 3
    assert AttentionHeads().settings() == {}


def test_a_run_holds_it_and_is_the_same_bit_for_bit(folder: Path) -> None:
    ends = []
    for probe in (AttentionHeads(), Watch()):
        model, objective, optimizer, data = _parts()
        with Monitor(model, optimizer, objective, out=folder / probe.name, probes=[probe], every=2, budget=None):
            _train(model, optimizer, data, 4)
        ends.append(torch.cat([tensor.detach().flatten() for tensor in model.parameters()]))
    assert torch.equal(*ends)
    run = Run.open(folder / "attention")
    assert run.series("attention", "log_z").steps.tolist() == [0, 2, 4]
    last = run.last("attention", "relative_entropy", "encoder.layers.0.self_attn")
    assert run.array(last).shape == (2,)


def test_tensors_alive_do_not_grow_with_measurements() -> None:
    """Counted with the cycle collector off: scores on a GPU must not wait for it."""
    model, objective, _, _ = _parts()

    def alive() -> int:
        list(AttentionHeads().measure(Moment(0, model, None, objective)))
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    alive()
    gc.collect()
    gc.disable()
    try:
        assert alive() == alive() == alive()
    finally:
        gc.enable()


def test_what_cannot_be_had_says_why(toy: Toy) -> None:
    got = {one.name: one for one in AttentionHeads().measure(Moment(0, toy.model, None, toy.objective))}
    assert got["heads"].status == "skipped"
    assert "no attention" in got["heads"].note
    assert got["log_z"].status == "ok"
    other = Objective(toy.model, nn.MSELoss(), (toy.x, torch.zeros(12, 2)))
    got = {one.name: one for one in AttentionHeads().measure(Moment(0, toy.model, None, other))}
    assert got["log_z"].status == "skipped"
    assert "no output softmax" in got["log_z"].note


def test_checkpoints_are_measured_when_it_is_named() -> None:
    assert "attention" not in [probe.name for probe in _probes(None)]
    assert [probe.name for probe in _probes(["attention"])] == ["attention"]
