"""The measures around the edge of stability leave the training run as it was, wherever they are called from."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn

from diagnostics import (
    DiagnosticsError,
    Objective,
    ascent_sharpness,
    critical_sharpness,
    directional_sharpness,
    gradient_curvature,
    gradient_flow_sharpness,
    sharpening_rate,
    trace_ratio,
)

Measure = Callable[[Objective, torch.optim.Optimizer], object]

MEASURES: dict[str, Measure] = {
    "critical": lambda objective, optimizer: critical_sharpness(objective),
    "directional": lambda objective, optimizer: directional_sharpness(
        objective, torch.linspace(-1, 1, objective.num_parameters)
    ),
    "gradient curvature": lambda objective, optimizer: gradient_curvature(objective, 2),
    "trace": lambda objective, optimizer: trace_ratio(objective, optimizer, matvecs=8),
    "gradient flow": lambda objective, optimizer: gradient_flow_sharpness(objective, rtol=1e-2, max_gradients=90),
    "ascent": lambda objective, optimizer: ascent_sharpness(objective, steps=2, adaptive=True),
    "sharpening": lambda objective, optimizer: sharpening_rate(objective, optimizer),
}


def _start() -> tuple[nn.Module, torch.optim.Optimizer, tuple[Tensor, Tensor]]:
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):
        seed(3)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1), (torch.randn(12, 3), torch.randint(2, (12,)))


def _train(measure: Measure | None) -> list[Tensor]:
    model, optimizer, data = _start()
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        if measure is not None:
            measure(Objective(model, nn.CrossEntropyLoss(), data, mode="train"), optimizer)
        optimizer.step()
    drawn = torch.tensor([torch.rand(1).item(), random.random(), numpy.random.rand()])
    return [*model.state_dict().values(), *(p.grad for p in model.parameters()), drawn]


@pytest.mark.parametrize("name", MEASURES)
def test_training_with_a_measure_in_every_step_is_bit_identical(name: str) -> None:
    for probed, plain in zip(_train(MEASURES[name]), _train(None), strict=True):
        assert torch.equal(probed, plain)


@pytest.mark.parametrize("name", MEASURES)
def test_the_same_text_in_inference_mode_and_twice_in_a_row(name: str) -> None:
    model, optimizer, data = _start()
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    plain = str(MEASURES[name](objective, optimizer))
    with torch.inference_mode():
        assert str(MEASURES[name](objective, optimizer)) == plain
    with torch.no_grad():
        assert str(MEASURES[name](objective, optimizer)) == plain
    assert "nan" not in plain
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", MEASURES)
def test_an_error_leaves_modes_and_random_states_alone(name: str) -> None:
    model, optimizer, data = _start()
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    model.train()
    before = torch.get_rng_state()
    if name in ("critical", "ascent"):
        assert "undetermined" in str(MEASURES[name](objective, optimizer))
    else:
        with pytest.raises(DiagnosticsError, match="finite"):
            MEASURES[name](objective, optimizer)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
