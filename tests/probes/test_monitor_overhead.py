"""A step at which nothing is due costs no tensor work: counted in calls, for time cannot be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from probes import EffectiveLearningRate, Monitor, Run
from tests.probes.toy import Toy, Watch


class Functions(TorchFunctionMode):
    """Counts calls of torch functions from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


class Kernels(TorchDispatchMode):
    """Counts operations that reach a kernel, also those of autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def _calls(mode: type[Functions] | type[Kernels], folder: Path | None, **settings: Any) -> list[str]:
    toy, counting = Toy(), mode()
    if folder is None:
        with counting:
            toy.train(5)
        return counting.calls
    monitor = Monitor(toy.model, toy.optimizer, toy.objective, out=folder, budget=None, **settings)
    with monitor, counting:
        toy.train(5)
    return counting.calls


@pytest.mark.parametrize("mode", [Functions, Kernels])
def test_steps_at_which_nothing_is_due_do_no_tensor_work(mode: type[Functions] | type[Kernels], folder: Path) -> None:
    plain = _calls(mode, None)
    assert len(plain) > 0
    assert _calls(mode, folder / "idle", every=100) == plain
    assert len(_calls(mode, folder / "busy", every=5)) > len(plain), "the counting can tell"


def test_a_due_probe_that_needs_no_update_makes_no_copies(folder: Path) -> None:
    plain = _calls(Kernels, None)
    assert _calls(Kernels, folder / "a", probes=[Watch(every=1)]) == plain
    copies = _calls(Kernels, folder / "b", probes=[Watch(every=1, needs=frozenset({"updates"}))])
    assert copies.count("aten.clone.default") == plain.count("aten.clone.default") + 5 * 4


def test_copies_are_dropped_right_after_the_step(folder: Path) -> None:
    toy = Toy()
    monitor = Monitor(
        toy.model, toy.optimizer, toy.objective, out=folder, probes=[EffectiveLearningRate(every=2)], budget=None
    )
    with monitor:
        for _ in range(4):
            toy.step()
            assert monitor._updates._before == {}
    assert Run.open(folder).series("learning_rate", "relative_update", "0.weight").steps.tolist() == [2, 4]


def test_an_idle_step_writes_nothing(folder: Path) -> None:
    toy = Toy()
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, every=100):
        before = (folder / "records.jsonl").stat().st_size
        toy.train(20)
        assert (folder / "records.jsonl").stat().st_size == before
