"""The noise interaction is its enumeration, and the closed form in single examples' covariance."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Hessian, Objective, gradient_noise_interaction, interaction_aware_sharpness
from diagnostics.stability.minibatch_curvature import finite_gradient
from tests.cases import CASES
from tests.cases.case import Case, cut
from tests.reference.minibatch_enumeration import interaction_twin, noise_identity

ADDITIVE = [case for case in CASES if case.name in ("tanh mlp", "layer norm, label smoothing", "frozen layer", "lstm")]


@pytest.mark.parametrize("case", ADDITIVE, ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["one batch", "ragged"])
def test_all_minibatches_give_the_enumeration_and_the_identity(case: Case, ragged: bool) -> None:
    model, whole = case.build()
    objective = case.objective(ragged=ragged)
    for size in (1, 3, 7, 8):
        gni = gradient_noise_interaction(objective, size)
        expected, aware = interaction_twin(model, case.plain_loss, whole, size)
        assert gni.kind == "exact"
        assert gni.value == pytest.approx(expected, rel=1e-9)
        assert gni.value == pytest.approx(noise_identity(model, case.plain_loss, whole, size), rel=1e-9)
        assert interaction_aware_sharpness(objective, size).value == pytest.approx(aware, rel=1e-9)


def _regression(examples: int = 40, **settings: object) -> tuple[nn.Module, tuple[Tensor, Tensor], Objective]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(examples, 3, dtype=torch.float64)
    batch = (x, x[:, :1] * x[:, 1:2])
    return model, batch, Objective(model, nn.MSELoss(**settings), [batch])


def test_intervals_of_draws_cover_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 95 %, over 300 seeds of 60 draws: four standard deviations of the share are .05."""
    model, batch, objective = _regression(12)
    hessian, seen = Hessian(objective), {}

    def remembered(minibatch: Objective) -> Tensor:
        chosen = minibatch.batches[0][0].numpy().tobytes()
        if chosen not in seen:
            seen[chosen] = finite_gradient(minibatch)
        return seen[chosen]

    # Reached by its name: as an attribute, ``diagnostics.stability`` is a function.
    monkeypatch.setattr(sys.modules["diagnostics.stability.noise_interaction"], "finite_gradient", remembered)
    truth = noise_identity(model, lambda m, b: nn.functional.mse_loss(m(b[0]), b[1]), batch, 3)
    found = [gradient_noise_interaction(objective, 3, draws=60, seed=seed, hessian=hessian) for seed in range(300)]
    assert {estimate.kind for estimate in found} == {"standard error"}
    covered = sum(low <= truth <= high for low, high in (estimate.interval() for estimate in found)) / len(found)
    assert 0.9 <= covered <= 0.995
    assert all(0.02 < estimate.error / estimate.value < 0.6 for estimate in found), "neither empty nor everything"


def test_a_sum_is_taken_per_minibatch_however_it_was_cut() -> None:
    """A sum over b examples is b times their mean, and so is its curvature."""
    model, batch, objective = _regression(9)
    wanted = 3 * float(gradient_noise_interaction(objective, 3, draws=100))
    for batches in ([batch], cut(batch), [tuple(leaf[3 * i : 3 * i + 3] for leaf in batch) for i in range(3)]):
        summed = Objective(model, nn.MSELoss(reduction="sum"), batches)
        assert gradient_noise_interaction(summed, 3, draws=100).value == pytest.approx(wanted, rel=1e-9)
        own = Objective(model, lambda o, t: (o - t).square().sum(), batches[:1] if len(batches) == 1 else [batch])
        assert gradient_noise_interaction(own, 3, draws=100).value == pytest.approx(wanted, rel=1e-9)
        sharp = interaction_aware_sharpness(summed, 3, draws=100)
        assert sharp.value == pytest.approx(3 * float(interaction_aware_sharpness(objective, 3, draws=100)), rel=1e-9)


def test_at_a_minimum_there_is_no_interaction_and_the_aware_sharpness_stays() -> None:
    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [-1.0], [2.0]], dtype=torch.float64)
    model = nn.Linear(1, 1, bias=False).double()
    objective = Objective(model, nn.MSELoss(), (x, y))
    with torch.no_grad():
        model.weight.copy_((x * y).sum() / (x * x).sum())
    gni = gradient_noise_interaction(objective, 1)
    assert not gni.determined
    assert "zero within rounding" in gni.how
    assert float(interaction_aware_sharpness(objective, 1)) == pytest.approx(28 / 3)
    with torch.no_grad():
        model.weight.add_(0.1)
    assert gradient_noise_interaction(objective, 1).determined


def test_perfect_fits_are_undetermined() -> None:
    x = torch.ones(4, 1)
    objective = Objective(nn.Linear(1, 1), lambda outputs, targets: 0.0 * (outputs - targets).mean(), (x, x))
    assert not gradient_noise_interaction(objective, 2).determined
    assert not interaction_aware_sharpness(objective, 2).determined


def test_a_loss_that_is_no_mean_over_examples_is_not_given_a_number() -> None:
    """Each example against the others of its minibatch, as in contrastive losses; and the healthy control."""
    x = torch.randn(40, 3)
    model = nn.Linear(3, 2)

    def against_each_other(module: nn.Module, batch: Tensor) -> Tensor:
        outputs = module(batch)
        return (outputs - outputs.sum(0)).square().mean()

    coupled = gradient_noise_interaction(Objective.from_loss(model, against_each_other, [x]), 2)
    assert not coupled.determined
    assert "do not average" in coupled.how
    alone = gradient_noise_interaction(Objective.from_loss(model, lambda m, b: m(b).square().mean(), [x]), 2)
    assert alone.determined


def test_bad_input() -> None:
    model, (x, y), objective = _regression(6)
    with pytest.raises(DiagnosticsError, match="draws is not"):
        gradient_noise_interaction(objective, 2, draws=1)
    with pytest.raises(DiagnosticsError, match="batch_size is larger"):
        gradient_noise_interaction(objective, 7)
    y[3] = math.nan
    with pytest.raises(DiagnosticsError, match="not finite"):
        gradient_noise_interaction(Objective(model, nn.MSELoss(), (x, y)), 2)
