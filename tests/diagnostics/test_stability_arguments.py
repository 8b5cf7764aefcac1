"""Arguments out of range, of another type or of another model: one clear error each, and never a traceback."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import nn
from torch.optim import SGD

from diagnostics import (
    DiagnosticsError,
    Hessian,
    Objective,
    ascent_sharpness,
    batch_ladder,
    batch_sharpness,
    critical_sharpness,
    directional_sharpness,
    gradient_curvature,
    gradient_flow_sharpness,
    gradient_noise_interaction,
    sharpening_rate,
    sharpness,
    smoothness_fit,
    stability,
    threshold,
    trace_ratio,
)
from diagnostics.stability.trial_step import trial_step
from probes import Sharpness
from tests.reference.optimizers import SAM


def _network(mode: str = "eval") -> tuple[nn.Module, Objective]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    data = torch.randn(8, 3), torch.randn(8, 2)
    nn.functional.mse_loss(model(data[0]), data[1]).backward()
    return model, Objective(model, nn.MSELoss(), data, mode=mode)


def _arguments() -> dict[str, Callable[[], object]]:
    model, objective = _network()
    optimizer, sam = SGD(model.parameters(), lr=0.1), SAM(model.parameters(), SGD, lr=0.1)
    ones = torch.ones(objective.num_parameters)
    directions = [ones[1:], ones[None], ones.to("meta"), ones.to_sparse(), ones.cfloat(), ones * math.nan, "a", None]
    other = Hessian(Objective(nn.Linear(2, 1), nn.MSELoss(), (torch.ones(1, 2), torch.ones(1, 1))))
    numbers = ["a", None, math.nan, 0, -1, [1], 1j, True, torch.ones(2)]
    wholes = ["16", 2.5, None, True, -1, math.nan, [4]]
    cases: dict[str, Callable[[], object]] = {}

    def each(name: str, measure: Callable[[Any], object], values: list[Any]) -> None:
        for value in values:
            cases[f"{name} {str(value)[:12]} {len(cases)}"] = lambda value=value: measure(value)

    each("batch_size", lambda v: batch_sharpness(objective, v), [0, *wholes])
    each("rtol", lambda v: batch_sharpness(objective, 2, rtol=v), numbers)
    each("max_draws", lambda v: batch_sharpness(objective, 2, max_draws=v), [1, *wholes])
    each("draws", lambda v: gradient_noise_interaction(objective, 2, draws=v), [1, *wholes])
    each("sizes", lambda v: batch_ladder(objective, v), [5, [], [1, "a"], [[1]], [2.5]])
    each("ladder draws", lambda v: batch_ladder(objective, [8], draws=v), [1, *wholes])
    each("lr", lambda v: critical_sharpness(objective, lr=v), [v for v in numbers if v is not None])
    each("tol", lambda v: critical_sharpness(objective, tol=v), numbers)
    each("max_evaluations", lambda v: critical_sharpness(objective, max_evaluations=v), [5, *wholes])
    each("update", lambda v: directional_sharpness(objective, v), [ones * 0, *directions])
    each("direction", lambda v: critical_sharpness(objective, v), [ones * 0, *directions[:-1]])
    each("gradient", lambda v: trial_step(objective, optimizer, v), directions[:-1])
    each("k", lambda v: gradient_curvature(objective, v), [len(ones) + 1, *wholes])
    each("fall", lambda v: gradient_flow_sharpness(objective, fall=v), numbers)
    each("max_gradients", lambda v: gradient_flow_sharpness(objective, max_gradients=v), wholes)
    each("rho", lambda v: ascent_sharpness(objective, v), numbers)
    each("steps", lambda v: ascent_sharpness(objective, steps=v), [0, *wholes])
    each("norms", lambda v: smoothness_fit(v, range(12)), [["a"] * 12, [1j] * 12, {}, None, [[1]] * 12, [1.0]])
    each("near", lambda v: stability(objective, optimizer, near=v), ["a", math.nan, [1], 1j])
    each("gradient_norm", lambda v: threshold(sam, gradient_norm=v), ["a", None, math.nan, -1, [1], 1j])
    each("plain gradient_norm", lambda v: threshold(optimizer, gradient_norm=v), ["a", math.nan, -1])
    each("probe tol", lambda v: Sharpness(tol=v), numbers)
    each("probe cold_every", lambda v: Sharpness(cold_every=v), wholes)
    each("hessian", lambda v: stability(objective, optimizer, hessian=v), ["a", other, objective])
    each("hessian", lambda v: sharpness(objective, hessian=v), ["a", other, objective])
    nothing = [None, "sgd", model, [optimizer], SGD, object()]
    for measure in (stability, trace_ratio, trial_step, lambda o, v: threshold(v)):
        each("optimizer", lambda v, measure=measure: measure(objective, v), nothing)
    each("optimizer", lambda v: batch_sharpness(objective, 2, optimizer=v), nothing[1:])
    each("optimizer", lambda v: sharpening_rate(objective, v), nothing[1:])
    measures: list[Callable[[Any], object]] = [
        lambda o: stability(o, optimizer),
        lambda o: trace_ratio(o, optimizer),
        lambda o: trial_step(o, optimizer),
        lambda o: directional_sharpness(o, ones),
        lambda o: batch_sharpness(o, 2),
        sharpness,
        critical_sharpness,
        gradient_curvature,
        gradient_flow_sharpness,
        ascent_sharpness,
        sharpening_rate,
        batch_ladder,
    ]
    for measure in measures:
        each("objective", measure, [None, "x", model])
    return cases


def test_every_bad_argument_is_one_clear_error() -> None:
    for name, call in _arguments().items():
        refusal = _refusal(call)
        assert refusal, f"accepted: {name}"
        assert "\n" not in refusal, name
        assert len(refusal) < 700, name


def _refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except DiagnosticsError as refusal:
        return str(refusal)
    return ""


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    _, objective = _network()
    plain = batch_sharpness(objective, 4, max_draws=2, rtol=0.5)
    theirs = batch_sharpness(objective, numpy.int64(4), max_draws=numpy.int32(2), rtol=torch.tensor(0.5))
    assert theirs == plain
    assert type(theirs.batch_size) is int
    norms = torch.linspace(1, 5, 20, dtype=torch.bfloat16, requires_grad=True)
    assert smoothness_fit(norms, 3 * norms).grows
