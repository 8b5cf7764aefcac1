"""Churn is what a loop over examples counts, before and after; intervals are those of Clopper and Pearson."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy.stats import beta
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Objective, churn
from diagnostics.units.churn import clopper_pearson

BITS = (torch.rand(11, 3, generator=torch.Generator().manual_seed(0)) > 0.5).double()
LOSSES = {
    "classes": (nn.CrossEntropyLoss(), torch.arange(11) % 3),
    "ignored": (nn.CrossEntropyLoss(ignore_index=1), torch.arange(11) % 3),
    "bits": (nn.BCEWithLogitsLoss(), BITS),
    "numbers": (nn.MSELoss(), BITS),
}


def start(name: str) -> tuple[nn.Module, Objective, Tensor, list[tuple[Tensor, Tensor]]]:
    criterion, targets = LOSSES[name]
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(11, 4, dtype=torch.float64)
    batches = [(x[:7], targets[:7]), (x[7:], targets[7:])]
    return model, Objective(model, criterion, batches), 0.3 * torch.randn(6 * 5 + 3 * 7).double(), batches


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_what_a_loop_over_examples_counts(name: str) -> None:
    model, objective, update, batches = start(name)
    after = copy.deepcopy(model)
    torch.nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()) + update, after.parameters())
    changed, seen, moves, first = 0, 0, [], []
    for inputs, targets in batches:
        for x, y in zip(inputs, targets, strict=True):
            f, g = model(x[None])[0].detach(), after(x[None])[0].detach()
            moves.append(g - f)
            first.append(f)
            if name == "bits":
                changed += int(((f > 0) != (g > 0)).sum())
                seen += 3
            elif name in ("classes", "ignored") and not (name == "ignored" and y == 1):
                changed += int(f.argmax() != g.argmax())
                seen += 1
    measured = churn(objective, update)
    assert measured.predictions == seen
    if name == "numbers":
        assert measured.changed is None
        assert measured.interval is None
    else:
        assert 0 < changed < seen
        assert measured.changed is not None
        assert measured.changed.kind == "exact"
        assert float(measured.changed) == changed / seen
        low, high = measured.interval or (0.0, 0.0)
        assert low == pytest.approx(beta.ppf(0.025, changed, seen - changed + 1))
        assert high == pytest.approx(beta.ppf(0.975, changed + 1, seen - changed))
    moved, outputs = torch.stack(moves), torch.stack(first)
    assert float(measured.mean_change) == pytest.approx(float(moved.abs().mean()), rel=1e-9)
    spread = (outputs - outputs.mean(0)).square().sum()
    assert float(measured.relative_change) == pytest.approx(float((moved.square().sum() / spread).sqrt()), rel=1e-9)


@pytest.mark.parametrize("hits", [0, 3, 10])
def test_the_interval_is_exact_at_both_ends(hits: int) -> None:
    low, high = clopper_pearson(hits, 10)
    assert low == pytest.approx(beta.ppf(0.025, hits, 11 - hits) if hits else 0.0)
    assert high == pytest.approx(beta.ppf(0.975, hits + 1, 10 - hits) if hits < 10 else 1.0)


def test_greedy_actions_are_read_along_an_axis() -> None:
    model, objective, update, batches = start("numbers")
    x = torch.cat([inputs for inputs, _ in batches])
    before = model(x).argmax(1)
    measured = churn(objective, update, axis=-1)
    torch.nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()) + update, model.parameters())
    assert measured.changed is not None
    assert float(measured.changed) == float((model(x).argmax(1) != before).double().mean())
    with pytest.raises(DiagnosticsError, match="axis=2"):
        churn(objective, update, axis=2)


def test_no_update_changes_nothing_and_there_and_back_is_the_same() -> None:
    model, objective, update, _ = start("classes")
    nothing = churn(objective, torch.zeros_like(update))
    assert nothing.changed is not None
    assert float(nothing.changed) == float(nothing.relative_change) == 0.0
    assert nothing.interval is not None
    assert nothing.interval[1] > 0.2
    there = churn(objective, update)
    torch.nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()) + update, model.parameters())
    back = churn(objective, -update)
    assert there.changed == back.changed
    assert float(there.mean_change) == pytest.approx(float(back.mean_change))


def test_outputs_without_spread_and_frozen_layers() -> None:
    model, objective, _, batches = start("classes")
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.zero_()
    flat = churn(objective, torch.zeros(objective.num_parameters))
    assert not flat.relative_change.determined
    model[0].requires_grad_(False)
    partial = Objective(model, nn.CrossEntropyLoss(), batches)
    assert churn(partial, torch.ones(partial.num_parameters)).mean_change.value == pytest.approx(1.0)


def test_what_cannot_be_told_is_refused() -> None:
    model, objective, update, batches = start("classes")
    hidden = Objective.from_loss(model, lambda m, b: m(b[0]).sum(), batches)
    for other, given, what in (
        (objective, update[1:], "does not fit"),
        (objective, torch.full_like(update, torch.nan), "not finite"),
        (objective, torch.full_like(update, 1e308), "outputs are not finite"),
        (hidden, update, "cannot be seen"),
        (model, update, "not an Objective"),
    ):
        with pytest.raises(DiagnosticsError, match=what):
            churn(other, given)  # type: ignore[arg-type]
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    with pytest.raises(DiagnosticsError, match="loss is not finite"):
        churn(objective, update)
