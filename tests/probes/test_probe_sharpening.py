"""What the Sharpening probe writes is what ``diagnostics`` says of the same moment; training does not notice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, Objective, sharpening_rate
from probes import Monitor, Run, Sharpening
from probes.probe import Moment, Reading
from probes.sharpening import MEET
from tests.probes.toy import Toy, Watch


def readings(toy: Toy, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Reading]:
    moment = Moment(3, toy.model, optimizer or toy.optimizer, toy.objective)
    return {reading.name: reading for reading in Sharpening().measure(moment)}


@pytest.mark.parametrize(
    "make", [lambda: Toy(lr=0.1), lambda: Toy(lr=0.05, momentum=0.9)], ids=["SGD", "SGD with momentum"]
)
def test_every_number_is_that_of_a_direct_call(make: Callable[[], Toy]) -> None:
    toy = make()
    toy.train(3)
    got = readings(toy)
    direct = sharpening_rate(toy.objective, toy.optimizer, tol=1e-2, seed=3)
    named = {"sharpness": direct.sharpness, "rate": direct.alpha, "resistance": direct.beta}
    for name, estimate in named.items():
        assert estimate.determined
        assert float(got[name].value) == pytest.approx(float(estimate), rel=1e-4), name
    assert direct.steps_to_edge is not None
    assert ("steps_to_edge" in got) is direct.steps_to_edge.determined


def quartic(weight: float) -> Toy:
    """The loss w⁴: S = 12 w², falling downhill at the rate −∇L·∇S = −96 w⁴."""
    toy = Toy()
    toy.model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(toy.model.weight, weight)
    data = torch.ones(4, 1).double(), torch.zeros(4, 1).double()
    toy.objective = Objective(toy.model, lambda output, target: (output - target).pow(4).mean(), data)
    toy.optimizer = torch.optim.SGD(toy.model.parameters(), lr=1e-3)
    return toy


def test_the_rate_has_the_sign_and_size_of_a_closed_form() -> None:
    got = readings(quartic(1.0))
    assert float(got["rate"].value) == pytest.approx(-96.0, rel=1e-3)
    assert float(got["sharpness"].value) == pytest.approx(12.0, rel=1e-4)
    assert "steps_to_edge" not in got, "it falls, and never reaches the edge"


def test_where_sharpness_rises_the_steps_that_are_left_are_told() -> None:
    """uv = 1 is sought by a deep scalar network from far below: the way there makes it sharper."""
    toy = Toy()
    toy.model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    for layer, weight in zip(toy.model, (1.2, 0.4), strict=True):
        nn.init.constant_(layer.weight, weight)
    ones = torch.ones(1, 1).double()
    toy.objective = Objective(toy.model, lambda output, target: 0.5 * (output - target).square().mean(), (ones, ones))
    toy.optimizer = torch.optim.SGD(toy.model.parameters(), lr=0.1)
    got = readings(toy)
    rate, now = float(got["rate"].value), float(got["sharpness"].value)
    assert rate > 0
    assert float(got["steps_to_edge"].value) == pytest.approx((20.0 - now) / (0.1 * rate), rel=1e-3)


class Odd(torch.optim.Optimizer):
    """An optimizer that nobody knows a threshold of."""

    def __init__(self, params: Iterable[torch.Tensor]) -> None:
        super().__init__(params, {"lr": 0.1})


def test_without_a_threshold_the_rates_are_there_all_the_same() -> None:
    toy = Toy()
    expected = float(readings(toy)["rate"].value)
    for optimizer in (torch.optim.AdamW(toy.model.parameters()), Odd(toy.model.parameters())):
        got = readings(toy, optimizer)
        assert float(got["rate"].value) == pytest.approx(expected)
        assert "steps_to_edge" not in got
    alone = list(Sharpening().measure(Moment(3, toy.model, None, toy.objective)))
    assert [reading.name for reading in alone] == ["sharpness", "rate", "resistance"]


def test_two_eigenvalues_that_meet_are_said_in_the_same_words_at_every_check(folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False)
    data = torch.eye(2), torch.zeros(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, optimizer, Objective(model, nn.MSELoss(), data), out=folder, probes=[Sharpening()], every=1):
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(data[0]), data[1]).backward()
            optimizer.step()
    records = [record for record in Run.open(folder).records if record.probe == "sharpening"]
    assert {(record.name, record.status, record.note) for record in records} == {("rate", "skipped", MEET)}
    assert len(records) == 4


def test_a_diverged_model_gives_no_numbers(toy: Toy) -> None:
    with torch.no_grad():
        toy.model[0].weight.fill_(math.nan)
    got = readings(toy)
    assert [(one.name, one.status, one.value) for one in got.values()] == [("rate", "skipped", None)]
    assert "finite" in str(got["rate"].note)


@pytest.mark.parametrize("tol", [0.0, -1.0, math.nan, math.inf, "tight"])
def test_bad_settings_are_refused(tol: float) -> None:
    with pytest.raises(DiagnosticsError, match="tol"):
        Sharpening(tol=tol)


def test_training_is_the_same_bit_for_bit(folder: Path) -> None:
    runs = []
    for probe in (Sharpening(), Watch()):
        torch.manual_seed(0)
        toy = Toy(torch.optim.Adam, lr=0.01)
        with Monitor(toy.model, toy.optimizer, toy.objective, out=folder / probe.name, probes=[probe], every=1):
            toy.train(3)
        runs.append([*toy.model.state_dict().values(), torch.rand(3)])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
