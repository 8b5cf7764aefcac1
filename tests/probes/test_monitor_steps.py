"""Steps are what the optimizer did, not what the loop tried; each due state is measured once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from probes import Monitor, Run, Sharpness, at, every, log_spaced
from probes.monitor import EARLY
from probes.probe import Moment, Reading
from tests.probes.toy import Toy, Watch, cross_entropy


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, [0, 3, 6, 7]),
        (7, [0, 7]),
        (100, [0, 7]),
        (every(2), [0, 2, 4, 6, 7]),
        (at(2, 5), [0, 2, 5, 7]),
        (at(0, 7), [0, 7]),
        (log_spaced(3), [0, 1, 2, 4, 7]),
        (lambda step: step == 4, [0, 4, 7]),
        (lambda step: torch.tensor(step > 5), [0, 6, 7]),
    ],
)
def test_due_states_the_first_and_the_last_are_measured_once(
    schedule: object, expected: list[int], toy: Toy, folder: Path
) -> None:
    own, by_default = Watch(every=schedule), Watch(name="other")  # type: ignore[arg-type]
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[own, by_default], every=schedule):  # type: ignore[arg-type]
        toy.train(7)
    assert own.steps == by_default.steps == expected


def test_a_probe_sees_the_state_after_the_step_it_is_called_at(toy: Toy, folder: Path) -> None:
    weights = []
    watch = Watch(lambda moment: weights.append(moment.model[0].weight.sum().item()) or 0.0, every=1)
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[watch]):
        expected = [toy.model[0].weight.sum().item()]
        for _ in range(2):
            toy.step()
            expected.append(toy.model[0].weight.sum().item())
    assert weights == expected


def test_a_block_without_steps_measures_its_one_state_once(toy: Toy, folder: Path) -> None:
    watch = Watch(every=1)
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[watch]):
        pass
    assert watch.steps == [0]


def test_a_schedule_that_raises_takes_down_its_own_probe_only(
    toy: Toy, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Watch(every=lambda step: step // 0 == 1), Watch(every=1, name="good")
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[bad, good]):
        toy.train(5)
    assert good.steps == [0, 1, 2, 3, 4, 5]
    notes = [record.note for record in Run.open(folder).records if record.status == "failed"]
    assert len(notes) == 3
    assert notes[0].startswith("its schedule: ZeroDivisionError")
    assert notes[2].endswith("(switched off after 3 failures in a row)")
    assert len(caplog.records) == 1


def test_each_schedule_is_asked_once_per_step_so_that_it_may_have_a_memory(toy: Toy, folder: Path) -> None:
    asked = []
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[Watch(every=lambda step: asked.append(step) or False)]):
        toy.train(3)
    assert asked == [1, 2, 3]


def test_accumulated_gradients_are_one_step(toy: Toy, folder: Path) -> None:
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[]) as monitor:
        for micro in range(8):
            toy.loss().backward()
            if micro % 4 == 3:
                toy.optimizer.step()
                toy.optimizer.zero_grad()
    assert monitor.step == 2


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_amp_skips_do_not_count(fused: bool, folder: Path) -> None:
    """A fused optimizer is called for a skipped step too, hooks and all."""
    toy, watch = Toy(torch.optim.AdamW, fused=fused), Watch(every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[watch]) as monitor:
        for factor in (1.0, float("inf"), float("nan"), 1.0):
            toy.optimizer.zero_grad()
            scaler.scale(toy.loss() * factor).backward()
            scaler.step(toy.optimizer)
            scaler.update()
    assert float(toy.optimizer.state[toy.model[0].weight]["step"]) == 2
    assert (monitor.step, watch.steps) == (2, [0, 1, 2])


def test_a_closure_called_many_times_is_one_step(folder: Path) -> None:
    toy = Toy(torch.optim.LBFGS, max_iter=5)
    calls = []

    def closure() -> torch.Tensor:
        calls.append(1)
        toy.optimizer.zero_grad()
        loss = toy.loss()
        loss.backward()
        return loss

    with Monitor(toy.model, toy.optimizer, out=folder, probes=[]) as monitor:
        toy.optimizer.step(closure)
    assert len(calls) > 1
    assert monitor.step == 1


def test_a_step_that_raises_does_not_count_and_leaves_no_update_behind(folder: Path) -> None:
    """The loop may catch an out-of-memory error in its closure and go on, or stop."""
    toy = Toy(torch.optim.LBFGS)

    def closure() -> torch.Tensor:
        raise MemoryError

    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, every=1, budget=None) as monitor:
        with pytest.raises(MemoryError):
            toy.optimizer.step(closure)
        with torch.no_grad():
            toy.model[0].weight.mul_(2.0)
        monitor.step = 5
    assert Run.open(folder).layers("learning_rate", "relative_update") == []


def test_the_optimizer_inside_a_wrapper_is_the_clock(folder: Path) -> None:
    """As accelerate's, which has no hooks of its own."""

    class Wrapped:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

        def step(self) -> None:
            self.optimizer.step()

    toy = Toy()
    wrapped = Wrapped(toy.optimizer)
    with Monitor(nn.DataParallel(toy.model), wrapped, toy.objective, out=folder) as monitor:  # type: ignore[arg-type]
        cross_entropy(toy.model(toy.x), toy.y).backward()
        wrapped.step()
    assert monitor.step == 1
    assert Run.open(folder).header["optimizer"]["class"] == "SGD"
    assert Run.open(folder).series("sharpness", "ratio").steps.tolist() == [0, 1]


def test_a_resumed_run_counts_on_from_its_step(toy: Toy, folder: Path) -> None:
    watch = Watch(every=10)
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[]):
        pass
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[watch], resume=38) as monitor:
        toy.train(4)
    assert monitor.step == 42
    assert watch.steps == [38, 40, 42]


def _gap(until: int) -> Watch:
    """Leaves something out at every state before a step."""

    def does(moment: Moment) -> Reading:
        if moment.step < until:
            return Reading("value", None, status="skipped", note="not yet")
        return Reading("value", 1.0)

    return Watch(does)


@pytest.mark.parametrize(
    ("until", "schedule", "expected"),
    [
        (0, 50, [0, 50, 60]),
        (1, 50, [0, EARLY, 50, 60]),
        # Once more, and no more often, however long the gap lasts.
        (99, 50, [0, EARLY, 50, 60]),
        # A check that comes sooner fills the gap, or one at the same step.
        (1, at(4, 50), [0, 4, 50, 60]),
        (1, EARLY, [0, *range(EARLY, 61, EARLY)]),
    ],
)
def test_a_first_state_with_a_gap_is_followed_up_early_and_one_without_is_not(
    until: int, schedule: object, expected: list[int], toy: Toy, folder: Path
) -> None:
    probe = _gap(until)
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[probe], every=schedule):  # type: ignore[arg-type]
        toy.train(60)
    assert probe.steps == expected


def test_a_run_that_goes_on_counts_early_from_where_it_goes_on(toy: Toy, folder: Path) -> None:
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[_gap(0)]):
        toy.train(20)
    probe = _gap(21)
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[probe], resume=20):
        toy.train(15)
    assert probe.steps == [20, 20 + EARLY, 35]


def test_adam_has_a_ratio_soon_after_the_first_step_and_sgd_keeps_to_its_schedule(folder: Path) -> None:
    steps = {}
    for optimizer in (torch.optim.Adam, torch.optim.SGD):
        toy = Toy(optimizer, lr=0.01)
        out = folder / optimizer.__name__
        with Monitor(toy.model, toy.optimizer, toy.objective, out=out, probes=[Sharpness()], budget=None):
            toy.train(15)
        steps[optimizer.__name__] = Run.open(out).series("sharpness", "ratio").steps.tolist()
    assert steps == {"Adam": [EARLY, 15], "SGD": [0, 15]}


def test_tensors_that_another_optimizer_trains_are_told_from_those_that_nobody_does(toy: Toy, folder: Path) -> None:
    """The other's steps lie outside the one that is watched."""
    watched = torch.optim.SGD([toy.model[2].weight], lr=0.1)
    other = torch.optim.SGD([toy.model[0].bias], lr=0.1)
    with Monitor(toy.model, watched, out=folder, probes=[]):
        for _ in range(3):
            toy.loss().backward()
            watched.step()
            other.step()
    run = Run.open(folder)
    moved = {name: run.last("monitor", "moved", name).value for name in run.layers("monitor", "moved")}
    assert moved == {"0.weight": 0.0, "0.bias": 1.0, "2.bias": 0.0}
    assert run.records[-1].name == "ended"
