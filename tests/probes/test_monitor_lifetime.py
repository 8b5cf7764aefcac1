"""A Monitor leaves no hook, no tensor and no open file behind, however its block ends."""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Objective, sharpness
from probes import EffectiveLearningRate, Monitor, Run, Sharpness, Units
from probes.probe import Moment
from tests.probes.toy import Toy, Watch


def _hooks(optimizer: torch.optim.Optimizer) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def _tensors() -> int:
    # isinstance would ask lazy proxies for their class, and warn.
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_tensors_alive_do_not_grow_with_measurements(optimizer: type[torch.optim.Optimizer], folder: Path) -> None:
    """Counted with the cycle collector off: kept graphs on a GPU must not wait for it."""
    toy = Toy(optimizer, lr=0.01)
    counts = []
    probes = [Sharpness(cold_every=4), EffectiveLearningRate(), Units()]
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=probes, every=1, budget=None):
        toy.train(4)
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                toy.train(4)
                counts.append(_tensors())
        finally:
            gc.enable()
    assert counts[0] == counts[1] == counts[2]


def test_nothing_is_left_alive_after_the_block(folder: Path) -> None:
    toy = Toy()
    toy.step()
    gc.collect()
    before = _tensors()
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, every=1, budget=None):
        toy.train(2)
    gc.collect()
    assert _tensors() == before


def test_a_failing_probe_keeps_no_tensor_alive_either(folder: Path) -> None:
    """A traceback holds every tensor of every frame it went through."""
    toy, counts = Toy(), []

    def fails(moment: Moment) -> None:
        big = torch.zeros(1000)
        raise ValueError(f"with {len(big)} numbers in hand")

    with Monitor(toy.model, toy.optimizer, out=folder, probes=[Watch(fails, every=1)]):
        toy.step()
        for _ in range(2):
            counts.append(_tensors())
            toy.step()
    assert counts[0] == counts[1]


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, SystemExit])
def test_hooks_go_and_what_the_loop_raised_comes_through(problem: type[BaseException], folder: Path) -> None:
    toy, watch, inside = Toy(), Watch(every=100), []

    def loop() -> None:
        with Monitor(toy.model, toy.optimizer, out=folder, probes=[watch]):
            inside.append(_hooks(toy.optimizer))
            toy.train(2)
            raise problem("from the loop")

    with pytest.raises(problem, match="from the loop"):
        loop()
    assert inside == [2]
    assert _hooks(toy.optimizer) == 0
    assert watch.steps == [0], "a state that the loop did not mean to reach is not measured as its last"
    assert Run.open(folder).last("monitor", "training_seconds") is not None


@pytest.mark.parametrize(
    ("problem", "note"),
    [
        (None, "completed"),
        (ValueError("\nfirst line\nsecond"), "ValueError: first line"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(3), "SystemExit: 3"),
        (RuntimeError("x" * 500), "RuntimeError: " + 186 * "x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_last_record_says_how_the_block_ended(problem: BaseException | None, note: str, folder: Path) -> None:
    toy = Toy()
    with suppress(BaseException), Monitor(toy.model, toy.optimizer, toy.objective, out=folder):
        toy.train(2)
        if problem is not None:
            raise problem
    ended = [record for record in Run.open(folder).records if record.name == "ended"]
    assert [(r.step, r.probe, r.value, r.status, r.note) for r in ended] == [(2, "monitor", 2.0, "ok", note)]


def test_an_exception_that_cannot_be_printed_is_named_by_its_kind(folder: Path) -> None:
    class Mute(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise TypeError

    toy = Toy()
    with suppress(Mute), Monitor(toy.model, toy.optimizer, out=folder, probes=[]):
        raise Mute
    assert Run.open(folder).last("monitor", "ended").note == "Mute"


@pytest.mark.parametrize("at", [0, 2, 3])
def test_an_interrupt_in_a_measurement_stops_everything(at: int, folder: Path) -> None:
    """At step 0 Python does not call __exit__; at step 3 it is __exit__ itself that is interrupted."""
    toy = Toy()

    def interrupted(moment: Moment) -> float:
        if moment.step == at:
            raise KeyboardInterrupt
        return 1.0

    open_before = _open_files()
    with (
        pytest.raises(KeyboardInterrupt),
        Monitor(toy.model, toy.optimizer, out=folder, probes=[Watch(interrupted, every=2)]),
    ):
        toy.train(3)
    assert _hooks(toy.optimizer) == 0
    assert _open_files() == open_before
    run = Run.open(folder)
    assert run.series("watch", "value").steps.tolist() == [step for step in (0, 2) if step < at]
    assert run.last("monitor", "ended").note == ("KeyboardInterrupt" if at < 3 else "completed")


def test_a_monitor_is_entered_once(folder: Path) -> None:
    """A second entry would count every step twice, or measure nothing at all."""
    toy = Toy()
    monitor = Monitor(toy.model, toy.optimizer, toy.objective, out=folder)
    with monitor:
        with pytest.raises(DiagnosticsError, match="entered before"):
            monitor.__enter__()
        toy.step()
    assert monitor.step == 1
    with pytest.raises(DiagnosticsError, match="resume=STEP"), monitor:
        pass
    assert _hooks(toy.optimizer) == 0


def test_two_monitors_on_one_model_measure_side_by_side(tmp_path: Path) -> None:
    toy = Toy()
    with (
        Monitor(toy.model, toy.optimizer, toy.objective, out=tmp_path / "a", every=1, budget=None) as outer,
        Monitor(toy.model, toy.optimizer, toy.objective, out=tmp_path / "b", every=2, budget=None) as inner,
    ):
        toy.train(4)
    assert (outer.step, inner.step) == (4, 4)
    left, right = (Run.open(tmp_path / name).series("sharpness", "loss") for name in "ab")
    assert left.steps.tolist() == [0, 1, 2, 3, 4]
    assert right.steps.tolist() == [0, 2, 4]
    assert left.values[::2].tolist() == right.values.tolist()


@pytest.fixture
def used_probe(tmp_path: Path) -> Sharpness:
    probe, toy = Sharpness(), Toy()
    with Monitor(toy.model, toy.optimizer, toy.objective, out=tmp_path / "first", probes=[probe], every=1, budget=None):
        toy.train(2)
    return probe


def test_a_probe_may_serve_a_second_run_of_another_model(used_probe: Sharpness, folder: Path) -> None:
    """Its warm start is then a vector of the wrong length."""
    model = nn.Linear(3, 2)
    objective = Objective(model, nn.CrossEntropyLoss(), (torch.randn(8, 3), torch.randint(2, (8,))))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, optimizer, objective, out=folder, probes=[used_probe]):
        pass
    run = Run.open(folder)
    assert {record.status for record in run.records} == {"ok"}
    assert run.last("sharpness", "sharpness").value == pytest.approx(float(sharpness(objective).estimate()), rel=0.02)


def test_after_the_block_logging_is_silent(folder: Path) -> None:
    toy = Toy()
    with Monitor(toy.model, toy.optimizer, out=folder, probes=[]) as monitor:
        monitor.log(loss=1.0)
    before = (folder / "records.jsonl").read_bytes()
    monitor.log(loss=2.0)
    toy.step()
    assert (folder / "records.jsonl").read_bytes() == before
    assert monitor.step == 0
