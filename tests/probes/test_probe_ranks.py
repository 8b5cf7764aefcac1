"""What the FeatureRank probe writes is what ``layer_ranks`` and ``token_similarity`` say."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, Objective, layer_ranks, token_similarity
from probes import FeatureRank, Monitor, Run
from probes.checkpoint.examine import _probes
from probes.probe import Moment
from reports.arguments import NAMED
from tests.probes.toy import Toy, Watch

RANKS = ("srank", "effective_rank", "stable_rank", "participation_ratio", "approximate_rank", "spread")


def readings(model: nn.Module, objective: Objective, **settings: object) -> list:
    return list(FeatureRank(**settings).measure(Moment(0, model, None, objective)))


def test_records_are_those_of_the_table(toy: Toy, folder: Path) -> None:
    probe = FeatureRank(centred=True, samples=8)
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[probe], every=1):
        toy.train(2)
    run = Run.open(folder)
    (row,) = layer_ranks(toy.model, toy.objective, centred=True, samples=8).rows
    assert run.layers("ranks", "srank") == ["1"] == [row.layer]
    for name in RANKS:
        record = run.last("ranks", name, "1")
        assert record.value == getattr(row.rank, name).value
        assert "centred" in record.note
    assert run.last("ranks", "samples", "1").note == "tanh, 8 of 12 positions"
    assert numpy.array_equal(run.array(run.last("ranks", "units", "1")), row.rank.singular_values.numpy())
    assert run.last("ranks", "classes").value == 2
    assert run.series("ranks", "srank", "1").steps.tolist() == [0, 1, 2]
    assert run.header["probes"][0]["settings"] == {"centred": True, "samples": 8}


def test_sequences_are_read_as_well() -> None:
    model = nn.Sequential(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    objective = Objective(model, nn.MSELoss(), (torch.randn(5, 4, 8), torch.randn(5, 3)))
    found = readings(model, objective)
    similar = token_similarity(model, objective).rows
    assert [r.layer for r in found if r.name == "token_similarity"] == [row.layer for row in similar]
    assert [r.value for r in found if r.name == "token_residual"] == [row.residual for row in similar]
    assert not [r for r in found if r.name == "classes"], "squared error has none"


def test_what_has_no_rank_is_skipped_with_the_reason() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.constant_(model[0].bias, -100.0)
    objective = Objective(model, nn.CrossEntropyLoss(), (torch.randn(6, 3), torch.arange(6) % 2))
    found = {reading.name: reading for reading in readings(model, objective)}
    for name in RANKS:
        assert (found[name].status, found[name].value) == ("skipped", None)
        assert "all zero" in found[name].note
    with torch.no_grad():
        model[0].bias[0] = float("nan")
    (broken,) = readings(model, objective)
    assert "not finite" in broken.note
    (empty,) = readings(model[0], Objective(model[0], nn.MSELoss(), (torch.randn(6, 3), torch.randn(6, 4))))
    assert "no non-linearity and no block" in empty.note


def test_a_loss_that_hides_the_outputs_names_no_classes(toy: Toy) -> None:
    objective = Objective.from_loss(toy.model, lambda m, batch: m(batch).square().mean(), [toy.x])
    assert "classes" not in {reading.name for reading in readings(toy.model, objective)}


def test_training_is_the_same_bit_for_bit(folder: Path) -> None:
    runs = []
    for probe in (FeatureRank(), Watch()):
        torch.manual_seed(0)
        toy = Toy(torch.optim.Adam, lr=0.01)
        with Monitor(toy.model, toy.optimizer, toy.objective, out=folder / probe.name, probes=[probe], every=1):
            toy.train(4)
        runs.append([*toy.model.state_dict().values(), torch.rand(3)])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_on_a_checkpoint_it_is_measured_when_named_alone() -> None:
    assert "ranks" in NAMED
    assert "ranks" not in {probe.name for probe in _probes(None)}
    assert [probe.name for probe in _probes(["ranks"])] == ["ranks"]


@pytest.mark.parametrize("samples", [0, -1, 1.5, True])
def test_bad_settings_are_refused(samples: object) -> None:
    with pytest.raises(DiagnosticsError, match="samples is out of range"):
        FeatureRank(samples=samples)
