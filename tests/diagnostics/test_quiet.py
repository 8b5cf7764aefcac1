"""``quiet`` gives measures plain kernels and gives the run everything back."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from torch import nn

from diagnostics import Objective, quiet
from diagnostics.quiet import _FLOAT32_SETTINGS


def _settings() -> list[object]:
    return [
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        numpy.random.get_state()[1].tobytes(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        [setting.fp32_precision for setting in _FLOAT32_SETTINGS],
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cudnn.enabled,
    ]


def _model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.BatchNorm1d(3))
    model[1].eval()
    return model


class StopError(Exception):
    """Raised inside a measurement."""


@pytest.mark.parametrize("mode", [None, "eval", "train"])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_comes_back_also_after_an_error_and_when_nested(mode: str | None, fails: bool) -> None:
    model = _model()
    before, modes = _settings(), [module.training for module in model.modules()]
    try:
        with quiet(model, mode), quiet(model, "eval", seed=4):
            torch.rand(3), random.random(), numpy.random.rand()
            assert _settings() != before
            assert not any(module.training for module in model.modules())
            if fails:
                raise StopError
    except StopError:
        assert fails
    assert _settings() == before
    assert [module.training for module in model.modules()] == modes


def test_inside_kernels_are_plain_and_products_are_full_float32() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), quiet(_model()):
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.backends.cuda.flash_sdp_enabled()
            assert torch.backends.cuda.math_sdp_enabled()
            assert {setting.fp32_precision for setting in _FLOAT32_SETTINGS} == {"ieee"}
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"


def test_precision_asked_for_the_old_way_can_still_be_read_afterwards() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with quiet(_model()):
            pass
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_the_same_seed_gives_the_same_numbers_whatever_came_before() -> None:
    draws = []
    for _ in range(2):
        torch.rand(7)
        with quiet(_model(), seed=3):
            draws.append((torch.rand(1).item(), random.random(), numpy.random.rand()))
    assert draws[0] == draws[1]
    with quiet(_model(), seed=4):
        assert torch.rand(1).item() != draws[0][0]


def test_no_seed_is_queued_for_an_accelerator_that_starts_later() -> None:
    """``torch.manual_seed`` would: the training run's first CUDA call would then replay the probe's seed."""
    tracker = torch.cuda._lazy_seed_tracker
    before = list(torch.cuda._queued_calls), list(tracker.get_calls())
    objective = Objective(nn.Linear(3, 2), nn.MSELoss(), (torch.zeros(2, 3), torch.zeros(2, 2)))
    objective.gradient()
    assert (list(torch.cuda._queued_calls), list(tracker.get_calls())) == before
    torch.manual_seed(0)
    assert (list(torch.cuda._queued_calls), list(tracker.get_calls())) != before, "the control must see a queued seed"


def test_foreign_backward_hooks_stay_silent_and_come_back() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    fired: list[str] = []
    model[0].register_full_backward_hook(lambda *_: fired.append("full"))
    model[2].register_full_backward_pre_hook(lambda *_: fired.append("pre"))
    model[0].weight.register_hook(lambda _: fired.append("tensor"))
    model[0].bias.register_post_accumulate_grad_hook(lambda _: fired.append("accumulated"))
    data = torch.randn(4, 3), torch.randn(4, 2)
    Objective(model, nn.MSELoss(), data).gradient()
    assert fired == []
    nn.MSELoss()(model(data[0].requires_grad_()), data[1]).backward()
    assert sorted(fired) == ["accumulated", "full", "pre", "tensor"]


def test_a_mode_that_the_model_overrides_is_still_set_and_restored() -> None:
    class Stubborn(nn.Linear):
        def train(self, mode: bool = True) -> Stubborn:
            return self

    model = nn.Sequential(Stubborn(2, 2))
    with quiet(model, "eval"):
        assert not model[0].training
    assert model[0].training


def test_a_forward_pass_inside_is_the_one_outside() -> None:
    model, x = _model().eval(), torch.randn(5, 3)
    outside = model(x)
    with quiet(model, "eval"):
        assert torch.equal(model(x), outside)
