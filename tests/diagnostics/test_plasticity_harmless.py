"""Plasticity and churn leave the run as it was: weights, buffers, moments, gradients, modes, hooks and random states,
also when they are interrupted, and nothing of theirs stays in memory.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

from diagnostics import Objective, churn, plasticity

Measure = Callable[[Objective, torch.optim.Optimizer], object]

MEASURES: dict[str, Measure] = {
    "fresh adam": lambda objective, optimizer: plasticity(objective, steps=3, draws=2),
    "own optimizer": lambda objective, optimizer: plasticity(objective, steps=3, draws=2, optimizer=optimizer),
    "own moments": lambda objective, optimizer: plasticity(
        objective, steps=3, draws=2, optimizer=optimizer, moments=True, unlearn=True
    ),
    "churn": lambda objective, optimizer: churn(objective, torch.linspace(-1, 1, objective.num_parameters)),
}


def _start() -> tuple[nn.Module, torch.optim.Optimizer, tuple[Tensor, Tensor]]:
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):
        seed(3)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2))
    return model, torch.optim.Adam(model.parameters(), lr=0.1), (torch.randn(12, 3), torch.randint(2, (12,)))


def _trained(measure: Measure | None) -> list[Tensor]:
    model, optimizer, data = _start()
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        if measure is not None:
            measure(Objective(model, nn.CrossEntropyLoss(), data, mode="train"), optimizer)
        optimizer.step()
    drawn = torch.tensor([torch.rand(1).item(), random.random(), numpy.random.rand()])
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return [*model.state_dict().values(), *(p.grad for p in model.parameters()), *moments, drawn]


@pytest.mark.parametrize("name", MEASURES)
def test_training_with_a_measure_in_every_step_is_bit_identical(name: str) -> None:
    for probed, plain in zip(_trained(MEASURES[name]), _trained(None), strict=True):
        assert torch.equal(probed, plain)


@pytest.mark.parametrize("name", MEASURES)
def test_the_same_in_inference_mode_and_without_gradients(name: str) -> None:
    model, optimizer, data = _start()
    objective = Objective(model, nn.CrossEntropyLoss(), data, mode="train")
    plain = str(MEASURES[name](objective, optimizer))
    with torch.inference_mode():
        assert str(MEASURES[name](objective, optimizer)) == plain
    with torch.no_grad():
        assert str(MEASURES[name](objective, optimizer)) == plain


@pytest.mark.parametrize("own", [False, True])
def test_an_interrupt_inside_leaves_no_trace(own: bool) -> None:
    model, optimizer, data = _start()
    model[3].eval()
    seen: list[object] = []
    torch_optimizer.register_optimizer_step_post_hook(lambda *_: seen.append(1))
    calls = 0

    def interrupted() -> nn.Module:
        nonlocal calls
        calls += 1
        torch.rand(5)
        if calls == 2:
            raise KeyboardInterrupt
        return _start_again()

    before = [tensor.clone() for tensor in model.state_dict().values()]
    states = torch.get_rng_state(), random.getstate(), str(numpy.random.get_state())
    flags, hooks = [m.training for m in model.modules()], dict(torch_optimizer._global_optimizer_post_hooks)
    objective = Objective(model, nn.CrossEntropyLoss(), data, mode="train")
    try:
        with pytest.raises(KeyboardInterrupt):
            plasticity(objective, steps=2, draws=3, fresh=interrupted, optimizer=optimizer if own else None)
        assert torch_optimizer._global_optimizer_post_hooks == hooks
    finally:
        torch_optimizer._global_optimizer_post_hooks.clear()
    assert not seen, "the copies' steps are nobody's business"
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert str(numpy.random.get_state()) == states[2]
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert not optimizer.state


def _start_again() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2))


@pytest.mark.parametrize("name", MEASURES)
def test_nothing_stays_in_memory(name: str) -> None:
    model, optimizer, data = _start()
    objective = Objective(model, nn.CrossEntropyLoss(), data, mode="train")
    MEASURES[name](objective, optimizer)
    gc.collect()
    before = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
    MEASURES[name](objective, optimizer)
    gc.collect()
    assert sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()) == before


def test_copies_carry_no_hooks_and_hooks_see_no_copy() -> None:
    model, _, data = _start()

    class Trainer:
        def __deepcopy__(self, memo: object) -> object:
            raise AssertionError("a hook's owner was copied")

        def hook(self, *_: object) -> None:
            pass

    model[0].register_forward_hook(Trainer().hook)
    measured = plasticity(Objective(model, nn.CrossEntropyLoss(), data, mode="train"), steps=1, draws=2)
    assert measured.fresh_fitted.determined
    assert len(model[0]._forward_hooks) == 1
