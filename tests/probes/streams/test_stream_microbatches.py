"""What the hooks feed is what separate backward passes give: for tied, sparse, unused, half-precision and frozen
parameters, sizes that differ, and losses divided or not. What does not fit is left out, counted, and says why.
"""

from __future__ import annotations

import copy
import gc
import io
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diagnostics import DiagnosticsError, NoiseTracker
from probes.streams import accumulation, microbatches
from probes.streams.microbatches import MicrobatchStream, watch_microbatches
from probes.streams.squares import PIECE, squares

SIZES = (4, 4, 4)


class Tied(nn.Module):
    """Embedding and head are one tensor, used twice; one layer is used every second time, one never."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 3, sparse=sparse)
        self.middle, self.sometimes, self.never = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.head = nn.Linear(3, 6, bias=False)
        if not sparse:
            self.head.weight = self.embedding.weight
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        hidden = self.middle(self.embedding(x[:, 0].long().clamp(0, 5))).tanh()
        hidden = self.sometimes(hidden) if self.calls % 2 else hidden
        return self.head(hidden)  # type: ignore[no-any-return]


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def frozen() -> nn.Module:
    model = plain()
    model[0].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    return model


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(checkpoint(self.first, x, use_reentrant=False).tanh())  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "frozen": frozen,
    "tied": Tied,
    "checkpointed": Checkpointed,
    "sparse": lambda: Tied(sparse=True),
    "half": lambda: plain().to(torch.bfloat16),
    "double": lambda: plain().double(),
}


def mean_square(outputs: Tensor) -> Tensor:
    return (outputs - 1).square().mean()


def inputs(model: nn.Module, size: int) -> Tensor:
    return 3 * torch.rand(size, 3).to(next(model.parameters()).dtype)


def by_hand(model: nn.Module, batches: Sequence[Tensor], weights: Sequence[float]) -> tuple[list[float], float]:
    """‖w g‖² of each micro-batch's own backward pass, and ‖Σ w g‖². Hooks fire here too, and nothing arrives."""
    trainable = [tensor for tensor in model.parameters() if tensor.requires_grad]
    rows = []
    for batch, weight in zip(batches, weights, strict=True):
        found = torch.autograd.grad(weight * mean_square(model(batch)), trainable, allow_unused=True)
        rows.append(
            [
                torch.zeros_like(tensor) if part is None else (part.to_dense() if part.is_sparse else part)
                for part, tensor in zip(found, trainable, strict=True)
            ]
        )
    whole = sum(float(sum(parts[1:], parts[0]).double().square().sum()) for parts in zip(*rows, strict=True))
    return [float(sum(part.double().square().sum() for part in row)) for row in rows], whole


def watched(
    model: nn.Module,
    sizes: Sequence[int] = SIZES,
    steps: int = 3,
    to_none: bool = True,
    between: Callable[[nn.Module, int], Any] = lambda *_: None,
    weight: float | None = None,
    **settings: Any,
) -> tuple[MicrobatchStream, list[tuple[list[float], float]]]:
    """A run with something ``between`` its micro-batches and after the last; and its norms by hand."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    expected = []
    with watch_microbatches(model, optimizer, NoiseTracker(1.0), **({"batch_size": 4} | settings)) as stream:
        for _ in range(steps):
            batches = [inputs(model, size) for size in sizes]
            weights = [weight or 1 / max(1, len(sizes))] * len(sizes)
            calls = getattr(model, "calls", 0)
            expected.append(by_hand(model, batches, weights))
            model.calls = calls  # type: ignore[assignment]
            optimizer.zero_grad(set_to_none=to_none)
            for index, batch in enumerate(batches):
                (weights[index] * mean_square(model(batch))).backward()
                between(model, index)
            optimizer.step()
    return stream, expected


def fed(expected: Sequence[tuple[list[float], float]], last: int = 3) -> NoiseTracker:
    tracker = NoiseTracker(1.0)
    for parts, whole in expected:
        tracker.update(last**2 * numpy.array(parts), whole, 4)
    return tracker


def assert_same(got: NoiseTracker, want: NoiseTracker, tolerance: float = 1e-5) -> None:
    assert got.steps == want.steps
    for one, other in zip(got.noise.__dict__.values(), want.noise.__dict__.values(), strict=True):
        assert float(one) == pytest.approx(float(other), rel=tolerance, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_norms_are_those_of_separate_backward_passes(name: str, to_none: bool) -> None:
    stream, expected = watched(MODELS[name](), to_none=to_none)
    assert stream.off is None
    assert dict(stream.skipped) == {}
    assert_same(stream.tracker, fed(expected), {"half": 0.02, "double": 1e-12}.get(name, 1e-5))


def test_losses_that_are_not_divided_have_the_same_noise_scale() -> None:
    torch.manual_seed(0)
    divided, _ = watched(plain().double(), steps=1)
    torch.manual_seed(0)
    summed, _ = watched(plain().double(), steps=1, weight=1.0)
    left, right = divided.tracker.noise, summed.tracker.noise
    assert float(right.gradient_sq) == pytest.approx(9 * float(left.gradient_sq), rel=1e-9)
    assert float(right.trace_covariance) == pytest.approx(9 * float(left.trace_covariance), rel=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sizes_may_differ(reduction: Any) -> None:
    """Gradients of examples are drawn with |G|² = 3 and tr Σ = 12."""
    model, sizes = nn.Linear(3, 1, bias=False), (2, 6, 16)
    optimizer, tracker = torch.optim.SGD(model.parameters(), lr=1e-6), NoiseTracker(1.0)
    size = iter([]).__next__
    with watch_microbatches(model, optimizer, tracker, batch_size=lambda: size(), reduction=reduction) as stream:
        for step in range(400):
            optimizer.zero_grad()
            given = iter(sizes)
            size = given.__next__
            for examples in sizes:
                if step % 2:
                    stream.size(next(given))
                outputs = model(1 + 2 * torch.randn(examples, 3))
                (outputs.mean() / 3 if reduction == "mean" else outputs.sum() / 24).backward()
            optimizer.step()
    assert stream.off is None
    assert tracker.steps == 400
    for value, truth in ((tracker.noise.gradient_sq, 3), (tracker.noise.trace_covariance, 12), (tracker.simple, 4)):
        assert value.interval()[0] < truth < value.interval()[1]
        assert value.error < 0.15 * truth


def _clip(model: nn.Module, index: int) -> None:
    if index == 2:
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


def _clamp_by_data(model: nn.Module, index: int) -> None:
    for tensor in model.parameters():
        if index == 2 and tensor.grad is not None:
            tensor.grad.data.clamp_(-1e-4, 1e-4)


@pytest.mark.parametrize("clip", [_clip, _clamp_by_data])
def test_norms_are_from_before_clipping(clip: Any) -> None:
    stream, expected = watched(plain(), between=clip)
    assert dict(stream.skipped) == {}
    assert_same(stream.tracker, fed(expected))


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_dropped_without_a_step_do_not_count(to_none: bool) -> None:
    def drop(model: nn.Module, index: int) -> None:
        if index == 0:
            model.zero_grad(set_to_none=to_none)

    stream, expected = watched(plain(), (4, 4, 4), between=drop)
    assert dict(stream.skipped) == {}
    assert stream.tracker.steps == 3
    # Of three micro-batches, the last two.
    assert float(stream.tracker.noise.gradient_sq) < sum(whole for _, whole in expected) / 3
    direct = sum(sum(parts[1:]) for parts, _ in expected) / 3
    noise = stream.tracker.noise
    assert float(noise.gradient_sq) + float(noise.trace_covariance) / 4 == pytest.approx(2 * direct, rel=1e-5)


def _each(model: nn.Module, index: int) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"between": _each}, accumulation.CHANGED),
        ({"sizes": (4,)}, accumulation.SINGLE),
        ({"sizes": ()}, accumulation.NONE),
    ],
)
def test_steps_that_do_not_fit_are_counted_with_the_reason(settings: dict[str, Any], reason: str) -> None:
    stream, _ = watched(plain(), **settings)
    assert (stream.tracker.steps, dict(stream.skipped)) == (0, {reason: 3})
    assert f"3 steps not used: {reason}" in stream.note


def loop(stream: Any, optimizer: Any, model: nn.Module, counts: Sequence[int], zero: bool = True) -> None:
    for count in counts:
        for _ in range(count):
            mean_square(model(inputs(model, 4))).backward()
        optimizer.step()
        if zero:
            optimizer.zero_grad()


def stream_of(model: nn.Module, **settings: Any) -> tuple[MicrobatchStream, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return watch_microbatches(model, optimizer, NoiseTracker(1.0), **({"batch_size": 4} | settings)), optimizer


def test_gradients_left_over_do_not_count() -> None:
    model = plain()
    stream, optimizer = stream_of(model)
    loop(stream, optimizer, model, [2, 2, 2], zero=False)
    assert (stream.tracker.steps, dict(stream.skipped)) == (1, {accumulation.LEFT_OVER: 2})


def test_a_shorter_step_is_lost_once() -> None:
    model = plain()
    stream, optimizer = stream_of(model)
    loop(stream, optimizer, model, [4, 4, 2, 4, 2, 3])
    assert (stream.tracker.steps, dict(stream.skipped)) == (5, {accumulation.FEWER: 1})


def test_two_backward_passes_through_one_graph_are_no_two_micro_batches() -> None:
    model = plain()
    stream, optimizer = stream_of(model)
    for _ in range(3):
        loss = mean_square(model(inputs(model, 4)))
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (stream.tracker.steps, dict(stream.skipped)) == (0, {accumulation.KEPT: 3})


def test_backward_passes_of_separate_parts_are_no_two_micro_batches() -> None:
    model = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])
    stream, optimizer = stream_of(model)
    for part in model:
        mean_square(part(torch.randn(4, 3))).backward()
    optimizer.step()
    assert dict(stream.skipped) == {accumulation.APART: 1}


def test_amp_scales_are_divided_out_and_overflows_left_out() -> None:
    model = plain().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for to_none in (True, False):
        with watch_microbatches(model, optimizer, NoiseTracker(1.0), batch_size=4, scaler=scaler) as stream:
            expected: list[tuple[list[float], float]] = []
            for step in range(6):
                batches = [inputs(model, 4) for _ in range(3)]
                if step != 2:
                    expected.append(by_hand(model, batches, [1 / 3] * 3))
                optimizer.zero_grad(set_to_none=to_none)
                for batch in batches:
                    factor = math.inf if step == 2 else 1 / 3
                    scaler.scale(factor * mean_square(model(batch))).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
                scaler.step(optimizer)
                scaler.update()
        assert dict(stream.skipped) == {}
        assert_same(stream.tracker, fed(expected), 1e-9)


class Reentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)
        self.second.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(checkpoint(self.first, x.requires_grad_(), use_reentrant=True))  # type: ignore[no-any-return]


def _size_fails() -> int:
    raise ZeroDivisionError("no size today")


def _unfreeze(model: nn.Module) -> None:
    model[0].weight.requires_grad_(True)  # type: ignore[index, union-attr]


def _hook(model: nn.Module) -> None:
    model[0].weight.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))  # type: ignore[index, union-attr]


def stepping_in_the_backward_pass() -> nn.Module:
    def take(tensor: Tensor) -> None:
        tensor.grad = None

    model = plain()
    for tensor in model.parameters():
        tensor.register_post_accumulate_grad_hook(take)
    return model


@pytest.mark.parametrize(
    ("model", "change", "settings", "reason"),
    [
        (Reentrant, None, {}, "reentrant activation checkpoints.*use_reentrant=False"),
        (plain, None, {"batch_size": _size_fails}, "ZeroDivisionError: no size today"),
        (plain, None, {"batch_size": None}, "batch_size is not a number of examples"),
        (frozen, _unfreeze, {}, "began to train after watching began"),
        (plain, _hook, {}, "registered after ours"),
        (stepping_in_the_backward_pass, None, {}, "taken away as they arrive"),
        (plain, None, {"scaler": lambda: 1 / 0}, "ZeroDivisionError"),
    ],
)
def test_what_cannot_go_on_is_switched_off_and_training_goes_on(
    model: Any, change: Any, settings: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = model()
    stream, optimizer = stream_of(made, **settings)
    if change:
        change(made)
    hooked = len(made[0].weight._backward_hooks) if change is _hook else None
    loop(stream, optimizer, made, [2, 2, 2])
    assert stream.tracker.steps == 0
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(stream.off)
    assert len([record for record in caplog.records if "training goes on" in record.message]) == 1
    assert "switched off" in stream.note
    assert hooked in (None, 2)
    trainable = [tensor for tensor in made.parameters() if tensor.requires_grad]
    assert sum(len(tensor._backward_hooks or ()) for tensor in trainable) == (1 if hooked else 0)


def test_gradients_inside_a_closure_are_not_followed() -> None:
    model = plain()
    stream, optimizer = stream_of(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.zeros(())
        for _ in range(3):
            loss = mean_square(model(inputs(model, 4)))
            loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert (stream.tracker.steps, dict(stream.skipped)) == (0, {accumulation.NONE: 3})


def test_two_streams_may_watch_one_model() -> None:
    model = plain()
    first, optimizer = stream_of(model)
    second = watch_microbatches(model, optimizer, NoiseTracker(0.9), batch_size=4)
    loop(first, optimizer, model, [3, 3])
    second.close()
    loop(first, optimizer, model, [3])
    assert (first.tracker.steps, second.tracker.steps, first.off) == (3, 2, None)


def test_nothing_is_kept_and_no_hook_is_left() -> None:
    model = plain()
    stream, optimizer = stream_of(model, batch_size=lambda: 4)
    loop(stream, optimizer, model, [3, 3])
    stream.close()
    stream.close()
    tensors = list(model.parameters())
    assert [len(tensor._backward_hooks) for tensor in tensors] == [0] * 4
    assert [len(tensor._post_accumulate_grad_hooks) for tensor in tensors] == [0] * 4
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    gone = [weakref.ref(thing) for thing in (model, optimizer)]
    del model, optimizer, tensors
    gc.collect()
    assert [thing() for thing in gone] == [None, None]
    assert stream.tracker.steps == 2


def _tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_memory_is_flat_with_steps_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microbatches, "MOST", 20)
    model = plain()
    stream, optimizer = stream_of(model)
    loop(stream, optimizer, model, [3] * 10)
    before = _tensors()
    loop(stream, optimizer, model, [3] * 50)
    assert _tensors() == before
    for _ in range(25):
        mean_square(model(inputs(model, 4))).backward()
    assert len(stream._microbatches) <= 20
    optimizer.step()
    optimizer.zero_grad()
    assert dict(stream.skipped) == {accumulation.LEFT_OVER: 1}
    assert _tensors() == before


def test_copies_and_files_of_a_watched_model_are_as_ever() -> None:
    model = plain()
    stream, optimizer = stream_of(model)
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (twin, loaded):
        assert not any(tensor._backward_hooks for tensor in other.parameters())
        for _ in range(3):
            mean_square(other(inputs(other, 4))).backward()
    optimizer.step()
    assert dict(stream.skipped) == {accumulation.NONE: 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": None}, "model is not a module"),
        ({"optimizer": None}, "optimizer is not a torch optimizer"),
        ({"optimizer": torch.optim.LBFGS([nn.Parameter(torch.ones(1))])}, "LBFGS takes gradients in its own steps"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))])}, "holds no parameter of the model"),
        ({"tracker": 3}, "tracker is not a NoiseTracker"),
        ({"batch_size": 0}, "batch_size is not a number of examples"),
        ({"batch_size": 2.5}, "batch_size is not a number of examples"),
        ({"reduction": "none"}, "reduction is unknown"),
        ({"scaler": 65536.0}, "scaler has no scale"),
    ],
)
def test_bad_arguments_are_named(settings: dict[str, Any], message: str) -> None:
    model = plain()
    given = {"model": model, "optimizer": torch.optim.SGD(model.parameters()), "tracker": NoiseTracker()} | settings
    with pytest.raises(DiagnosticsError, match=message):
        watch_microbatches(**given)
    assert not any(tensor._backward_hooks for tensor in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_squares_are_exact_where_a_single_sum_is_not(dtype: torch.dtype) -> None:
    gradient = torch.randn(3, PIECE + 5, dtype=dtype).T
    exact = torch.view_as_real(gradient.to(torch.complex128)) if dtype.is_complex else gradient.double()
    assert sum(map(float, squares(gradient))) == pytest.approx(float(exact.square().sum()), rel=1e-4)
