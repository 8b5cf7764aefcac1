"""Planted dead, dormant, saturated and linearised units are counted exactly, and healthy layers raise nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import DiagnosticsError, Objective, unit_activity
from tests.reference.unit_loops import count_units

FAMILIES: dict[str, tuple[Callable[[], nn.Module], float, bool]] = {
    "relu": (nn.ReLU, 1.0, False),
    "relu6": (nn.ReLU6, 1.0, False),
    "leaky relu": (nn.LeakyReLU, 1.0, False),
    "elu": (nn.ELU, 1.0, False),
    "selu": (nn.SELU, 1.0507009873554805, False),
    "gelu": (nn.GELU, 1.0, False),
    "silu": (nn.SiLU, 1.0, False),
    "mish": (nn.Mish, 1.0, False),
    "softplus": (nn.Softplus, 1.0, False),
    "hardswish": (nn.Hardswish, 1.0, False),
    "hardtanh": (nn.Hardtanh, 1.0, True),
    "hardsigmoid": (nn.Hardsigmoid, 1 / 6, True),
    "softsign": (nn.Softsign, 1.0, True),
    "tanh": (nn.Tanh, 1.0, True),
    "sigmoid": (nn.Sigmoid, 0.25, True),
}

UNITS = 16


def _planted(activation: nn.Module, *, off: int = 0, on: int = 0) -> nn.Module:
    """The first ``off`` units see −20 whatever the input, the next ``on`` see +20."""
    model = nn.Sequential(nn.Linear(6, UNITS), activation)
    with torch.no_grad():
        model[0].weight[: off + on] = 0.0
        model[0].bias[:off] = -20.0
        model[0].bias[off : off + on] = 20.0
    return model


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
def test_every_count_and_score_against_a_loop(name: str, scale: float) -> None:
    """Inputs from tiny to huge, so that every kind of unit occurs somewhere; kinks are never hit exactly."""
    build, slope, bounded = FAMILIES[name]
    model = _planted(build(), off=2, on=3).double()
    x = scale * torch.randn(60, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = count_units(model[1], model[0](x), slope=slope, bounded=bounded)
    (row,) = unit_activity(model, x).rows
    assert (row.layer, row.nonlinearity, row.units, row.samples) == ("1", name, UNITS, 60)
    torch.testing.assert_close(row.scores, torch.tensor(expected.scores, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert (row.dormant, row.dead) == (expected.dormant, expected.dead)
    assert (row.saturated, row.linearised) == (expected.saturated, expected.linearised)


@pytest.mark.parametrize(
    ("activation", "dead", "saturated", "linearised"),
    [
        (nn.ReLU(), 3, 0, 2),
        (nn.GELU(), 3, 0, 2),
        (nn.GELU(approximate="tanh"), 3, 0, 2),
        (nn.SiLU(), 3, 0, 2),
        (nn.Mish(), 3, 0, 2),
        (nn.Hardswish(), 3, 0, 2),
        (nn.Softplus(), 3, 0, 2),
        (nn.ReLU6(), 3, 2, 0),
        (nn.ELU(), 0, 3, 2),
        (nn.SELU(), 0, 3, 2),
        (nn.Tanh(), 0, 5, 0),
        (nn.Sigmoid(), 0, 5, 0),
        (nn.Hardtanh(), 0, 5, 0),
        (nn.Softsign(), 0, 5, 0),
        (nn.LeakyReLU(), 0, 3, 2),
    ],
    ids=str,
)
def test_three_units_at_minus_twenty_and_two_at_plus_twenty(
    activation: nn.Module, dead: int, saturated: int, linearised: int
) -> None:
    """One-sided functions die on the left and go linear on the right; bounded ones saturate on both."""
    (row,) = unit_activity(_planted(activation, off=3, on=2), torch.randn(200, 6)).rows
    assert (row.dead, row.saturated, row.linearised) == (dead, saturated, linearised)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_healthy_layers_at_default_initialisation_have_no_dead_or_saturated_unit(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    build = FAMILIES[name][0]
    model = nn.Sequential(nn.Linear(64, 64), build(), nn.Linear(64, 64), build())
    for row in unit_activity(model, torch.randn(1000, 64)).rows:
        assert (row.dead, row.saturated) == (0, 0)


def _scaled_relu(scales: list[float]) -> nn.Module:
    model = nn.Sequential(nn.Linear(1, len(scales), bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(scales)[:, None])
    return model


def test_closed_form_of_the_dormant_score() -> None:
    """ReLU(a_i z): the score is a_i over the mean of a, whatever z."""
    (row,) = unit_activity(_scaled_relu([0.0, 0.01, 0.05, 1.0, 2.0]), torch.randn(500, 1)).rows
    assert row.scores.tolist() == pytest.approx([0, 0.0163, 0.0817, 1.634, 3.268], abs=1e-3)
    assert row.scores.mean().item() == pytest.approx(1.0)
    assert (row.dormant, row.dead) == (2, 1)


def test_dormant_counts_at_tau_itself() -> None:
    """A layer of (0, 1, 2) has scores 0, 1 and 2; ≤ and not <, so τ = 0 counts the silent unit."""
    model, x = _scaled_relu([0.0, 1.0, 2.0]), torch.ones(4, 1)
    assert [unit_activity(model, x, tau=tau).rows[0].dormant for tau in (0.0, 0.999, 1.0, 2.0)] == [1, 1, 2, 3]


def test_a_unit_that_never_fires_is_dead_and_dormant_and_not_the_most_alive() -> None:
    """On pre-activations it would have the largest score of all."""
    (row,) = unit_activity(_planted(nn.ReLU(), off=1), torch.randn(100, 6)).rows
    assert (row.scores[0].item(), row.dormant, row.dead) == (0.0, 1, 1)
    assert row.scores.argmax().item() != 0


def test_a_layer_in_which_nothing_fires_is_dormant_throughout() -> None:
    (row,) = unit_activity(_planted(nn.ReLU(), off=UNITS), torch.randn(50, 6)).rows
    assert (row.dormant, row.dead, row.saturated) == (UNITS, UNITS, 0)


def test_planted_numbers_per_layer_come_back_layer_by_layer() -> None:
    planted = {"1": 2, "3": 5, "5": 1}
    model = nn.Sequential(*[part for _ in planted for part in (nn.Linear(12, 12), nn.ReLU())])
    with torch.no_grad():
        for count, linear in zip(planted.values(), model[::2], strict=True):
            linear.weight[:count] = 0.0
            linear.bias[:count] = -1.0
            linear.bias[count:] = 0.5
    table = unit_activity(model, torch.randn(300, 12))
    assert {row.layer: row.dead for row in table.rows} == planted


def test_one_firing_in_the_sample_saves_a_unit_and_the_bound_says_what_that_is_worth() -> None:
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
    nn.init.ones_(model[0].weight)
    x = -torch.ones(299, 1)
    (silent,) = unit_activity(model, x).rows
    assert silent.dead == 2
    assert silent.firing_bound == pytest.approx(0.01, rel=0.01), "the rule of three: 3/299"
    x[7] = 1.0
    assert unit_activity(model, x).rows[0].dead == 0


def test_dead_wants_no_slope_and_no_output_on_every_sample() -> None:
    """An ELU at −1 is flat but speaks: its successors see a constant, so it is saturated and not dead."""
    (row,) = unit_activity(_planted(nn.ELU(), off=4), torch.randn(50, 6)).rows
    assert (row.dead, row.saturated, row.dormant) == (0, 4, 0)


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh"])
def test_an_objective_over_ragged_batches_counts_like_one_whole_batch(name: str) -> None:
    model = _planted(FAMILIES[name][0](), off=3, on=2)
    model.append(nn.Linear(UNITS, 2))
    x, y = torch.randn(50, 6), torch.randn(50, 2)
    (whole,) = unit_activity(model, x).rows
    for batches in ((x, y), [(x[:1], y[:1]), (x[1:20], y[1:20]), (x[20:], y[20:])]):
        (row,) = unit_activity(model, Objective(model, nn.MSELoss(), batches, mode="train")).rows
        assert replace(row, gradient_dormant=None, frozen=None) == whole
        torch.testing.assert_close(row.scores, whole.scores)


def test_functions_of_the_loss_are_not_units() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    objective = Objective.from_loss(model, lambda m, x: F.softplus(torch.sigmoid(m(x))).mean(), [torch.randn(9, 3)])
    assert [row.layer for row in unit_activity(model, objective).rows] == ["1"]


def test_the_table_prints_and_turns_into_pandas() -> None:
    pytest.importorskip("pandas")
    table = unit_activity(_planted(nn.ReLU(), off=1), torch.randn(20, 6))
    frame = table.to_pandas()
    assert frame.loc[0, "layer"] == "1"
    assert frame.loc[0, "dead"] == 1
    assert list(unit_activity(nn.Linear(2, 2), torch.randn(3, 2)).to_pandas().columns) == list(frame.columns)
    assert str(table).splitlines()[0].split() == [
        *("layer", "units", "dormant", "dead", "saturated", "linearised", "duplicate", "outliers", "sign-entropy"),
        *("rms", "largest/median", "samples"),
    ]
    assert str(unit_activity(nn.Linear(2, 2), torch.randn(3, 2))) == "no non-linearity was seen"
    assert repr(table) == str(table), "a notebook shows the table"


@pytest.mark.parametrize(
    ("batch", "tau", "words"),
    [
        (torch.zeros(3, 6), -1.0, "tau is negative; given: -1.0"),
        (torch.zeros(3, 6), float("nan"), "tau is negative; given: nan"),
        (3, 0.025, "batch cannot be run; given: int; expected: a tensor of inputs"),
        ([torch.zeros(3, 6)] * 3, 0.025, "batch cannot be run; given: list"),
        (torch.zeros(0, 6), 0.025, r"batch is empty; given: inputs of shape \(0, 6\); expected: examples"),
        ((torch.zeros(0, 6), torch.zeros(0)), 0.025, "batch is empty"),
    ],
)
def test_refusals(batch: object, tau: float, words: str) -> None:
    with pytest.raises(DiagnosticsError, match=words):
        unit_activity(_planted(nn.ReLU()), batch, tau)


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_pre_activations_that_are_not_finite_are_refused_with_their_place_and_number(damage: float) -> None:
    """And not counted as linearised units. The first place is named, where it comes from."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU())
    x, y = torch.randn(20, 6), torch.randn(20, 4)
    healthy = unit_activity(model, x)
    with torch.no_grad():
        model[2].bias[1] = damage
    message = r"the pre-activations at '3' are not finite; given: 20 of 80 values are NaN or infinite; expected: finite"
    for batch in (x, Objective(model, nn.MSELoss(), [(x[:5], y[:5]), (x[5:], y[5:])])):
        with pytest.raises(DiagnosticsError, match=message):
            unit_activity(model, batch)
    model[2].reset_parameters()
    assert [row.layer for row in unit_activity(model, x).rows] == [row.layer for row in healthy.rows] == ["1", "3", "5"]


def test_an_objective_of_another_model_is_refused() -> None:
    data: tuple[Tensor, Tensor] = (torch.zeros(3, 6), torch.zeros(3, UNITS))
    objective = Objective(_planted(nn.ReLU()), nn.MSELoss(), data)
    with pytest.raises(DiagnosticsError, match="the objective was built on another model"):
        unit_activity(_planted(nn.ReLU()), objective)
