"""Curvature is measured without a trace: parameters, buffers, gradients, modes, hooks, random states and flags."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import nn

from diagnostics import (
    DiagnosticsError,
    EmpiricalFisher,
    Fisher,
    GaussNewton,
    Hessian,
    Objective,
    diagonal,
    frobenius_norm,
    gauss_newton_spectrum,
    layer_curvature,
    self_check,
    spectral_density,
    top_eigenpairs,
    trace,
)

Measure = Callable[[Objective], object]

MEASURES: dict[str, Measure] = {
    "linearize": lambda objective: Hessian(objective, route="linearize") @ torch.ones(objective.num_parameters),
    "batched": lambda objective: Hessian(objective, route="batched") @ torch.ones(objective.num_parameters, 3),
    "central differences": lambda objective: (
        Hessian(objective, route="central differences") @ torch.ones(objective.num_parameters)
    ),
    "gauss-newton": lambda objective: GaussNewton(objective) @ torch.ones(objective.num_parameters),
    "fisher": lambda objective: Fisher(objective, samples=2) @ torch.ones(objective.num_parameters),
    "empirical fisher": lambda objective: EmpiricalFisher(objective) @ torch.ones(objective.num_parameters),
    "both ends": lambda objective: top_eigenpairs(Hessian(objective), k=4, which="BE"),
    "density": lambda objective: spectral_density(Hessian(objective), probes=2, steps=6),
    "trace": lambda objective: trace(Hessian(objective), matvecs=6),
    "diagonal": lambda objective: diagonal(Hessian(objective), matvecs=4),
    "norm": lambda objective: frobenius_norm(Hessian(objective), matvecs=6),
    "layers": lambda objective: layer_curvature(objective, probes=2),
    "self-check": lambda objective: self_check(Hessian(objective)),
    "gram": gauss_newton_spectrum,
}


def _flags() -> list[object]:
    return [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_num_threads(),
    ]


def _state(model: nn.Module) -> list[object]:
    return [
        *((p.requires_grad, p.grad, p._version, p.data_ptr()) for p in model.parameters()),
        *((b.data_ptr(), b._version) for b in model.buffers()),
        *(
            (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ),
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        numpy.random.get_state()[1].tobytes(),
        *_flags(),
    ]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", MEASURES)
def test_nothing_observable_has_changed_afterwards(name: str, mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2))
    model[4].bias.requires_grad_(False)
    model[3].eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    objective = Objective(model, nn.CrossEntropyLoss(), (torch.randn(12, 3), torch.randint(2, (12,))), mode=mode)
    gradients = [parameter.grad for parameter in model.parameters()]
    before = _state(model)
    try:
        MEASURES[name](objective)
    except DiagnosticsError:
        # A traced dropout would be drawn anew at every product; a route asked for is not replaced by another.
        assert (name, mode) == ("linearize", "train")
    assert [repr(item) for item in _state(model)] == [repr(item) for item in before]
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), gradients, strict=True))
    assert all(bool((gradient == 1).all()) for gradient in gradients)


@pytest.mark.parametrize("name", ["gauss-newton", "both ends", "layers"])
def test_an_interrupt_in_the_middle_leaves_no_trace_either(name: str) -> None:
    """Ctrl-C in a notebook: the model is the user's again."""

    class Interrupting(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Interrupting.calls += 1
            if Interrupting.calls > 2:
                raise KeyboardInterrupt
            return x

    Interrupting.calls = 0
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), Interrupting(), nn.Linear(4, 2))
    data = [(torch.randn(5, 3), torch.randint(2, (5,))) for _ in range(4)]
    objective = Objective(model, nn.CrossEntropyLoss(), data, mode="train")
    before = [repr(item) for item in _state(model)]
    with pytest.raises(KeyboardInterrupt):
        MEASURES[name](objective)
    assert [repr(item) for item in _state(model)] == before
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())
