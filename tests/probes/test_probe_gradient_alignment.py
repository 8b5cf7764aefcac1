"""What the GradientAlignment probe writes is what ``diagnostics`` says of the same moment; training does not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diagnostics import DiagnosticsError, batch_size_tests, clipping, gradient_alignment, gradient_gram, group_conflict
from probes import GradientAlignment, Monitor, Run
from probes.checkpoint.examine import _probes
from probes.probe import Moment
from tests.probes.toy import Toy, Watch


def test_every_number_is_that_of_a_direct_call(toy: Toy) -> None:
    count = len(gradient_gram(toy.objective).matrix)
    groups = ["a", "b"] * (count // 2) + ["a"] * (count % 2)
    probe = GradientAlignment(groups=groups, max_norm=0.1, batch_size=4)
    got = {(one.name, one.layer): one for one in probe.measure(Moment(3, toy.model, None, toy.objective))}
    gram = gradient_gram(toy.objective)
    aligned, clipped = gradient_alignment(gram), clipping(gram, 0.1, 4, seed=3)
    assert got["mean_cosine", None].value == aligned.mean_cosine
    assert got["opposed", None].value == aligned.opposed
    assert got["clip_rate", None].value == clipped.rate
    tests, pair = batch_size_tests(gram), group_conflict(gram, groups).pairs[0]
    for reading, estimate in (
        (got["batch_norm", None], tests.norm),
        (got["conflict", f"{pair.first} | {pair.second}"], pair.cosine),
    ):
        assert reading.value == (estimate if estimate.determined else None)
    assert probe.settings() == {"groups": 2, "max_norm": 0.1, "batch_size": 4}


def test_a_run_holds_it_and_is_the_same_bit_for_bit(folder: Path) -> None:
    ends = []
    for probe in (GradientAlignment(), Watch()):
        toy = Toy(lr=0.1)
        with Monitor(toy.model, toy.optimizer, toy.objective, out=folder / probe.name, probes=[probe], every=2):
            toy.train(4)
        ends.append(torch.cat([tensor.detach().flatten() for tensor in toy.model.parameters()]))
    assert torch.equal(*ends)
    assert Run.open(folder / "gradient_alignment").series("gradient_alignment", "mean_cosine").steps.tolist() == [
        0,
        2,
        4,
    ]


def test_what_cannot_be_had_says_why_and_the_rest_stands(toy: Toy) -> None:
    probe = GradientAlignment(groups=["a"], max_norm=1.0, batch_size=10_000)
    got = {reading.name: reading for reading in probe.measure(Moment(1, toy.model, None, toy.objective))}
    assert got["mean_cosine"].status == "ok"
    assert got["clip_rate"].status == got["conflict"].status == "skipped"
    assert "do not fit" in str(got["conflict"].note)
    with torch.no_grad():
        toy.model[0].weight.fill_(float("nan"))
    (reading,) = GradientAlignment().measure(Moment(1, toy.model, None, toy.objective))
    assert "finite" in str(reading.note)


def test_on_a_checkpoint_it_is_measured_when_named() -> None:
    assert [probe.name for probe in _probes(["gradient_alignment"])] == ["gradient_alignment"]
    assert "gradient_alignment" not in [probe.name for probe in _probes(None)]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_norm": 1.0},
        {"batch_size": 4},
        {"max_norm": 0.0, "batch_size": 4},
        {"max_norm": 1, "batch_size": 0},
        {"groups": 5},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(DiagnosticsError, match=r"batch_size|max_norm|groups"):
        GradientAlignment(**settings)
