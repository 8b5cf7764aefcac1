"""The budget, on a clock that only moves when it is told to."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from probes import Monitor, Run
from probes.budget import GRACE
from tests.probes.toy import Toy, Watch


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def costs(self, seconds: float, name: str, cost: str) -> Watch:
        """A probe that takes so long."""

        def does(moment: object) -> float:
            self.now += seconds
            return seconds

        return Watch(does, every=1, name=name, cost=cost)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def _train(clock: Clock, probes: list[Watch], folder: Path, *, steps: int, budget: float | None) -> Run:
    """Each step takes one second."""
    toy = Toy()
    with Monitor(toy.model, toy.optimizer, out=folder, probes=probes, budget=budget):
        for _ in range(steps):
            clock.now += 1.0
            toy.step()
    return Run.open(folder)


def test_an_expensive_probe_keeps_to_its_share_and_a_cheap_one_goes_on(clock: Clock, folder: Path) -> None:
    dear, cheap = clock.costs(10.0, "dear", "expensive"), clock.costs(0.0, "cheap", "cheap")
    run = _train(clock, [dear, cheap], folder, steps=1000, budget=0.05)
    # The first takes the grace; then each ten seconds need two hundred of training. The last state is always measured.
    assert dear.steps == [0, 400, 600, 800, 1000]
    assert cheap.steps == list(range(1001))
    skipped = [record for record in run.records if record.status == "skipped"]
    assert [record.step for record in skipped] == [1, 401, 601, 801], "one line for each wait, where it begins"
    assert {(r.probe, r.name, r.note) for r in skipped} == {
        ("dear", "measurement", "waits: more would exceed the budget of 5% of training time")
    }


def test_the_share_is_kept_whatever_the_cost(clock: Clock, folder: Path) -> None:
    """Apart from the grace, and from the first state and the last."""
    dear = clock.costs(3.0, "dear", "expensive")
    run = _train(clock, [dear], folder, steps=2000, budget=0.02)
    spent = run.last("monitor", "seconds", "dear").value
    assert spent == 3.0 * len(dear.steps)
    assert run.last("monitor", "training_seconds").value == 2000.0
    assert 0.02 * 2000 - 3.0 < spent - 3.0 <= 0.02 * 2000


def test_short_runs_are_measured_within_the_grace(clock: Clock, folder: Path) -> None:
    dear = clock.costs(GRACE / 4, "dear", "expensive")
    _train(clock, [dear], folder, steps=6, budget=0.05)
    assert dear.steps == [0, 1, 2, 3, 6]


def test_without_a_budget_everything_due_is_measured(clock: Clock, folder: Path) -> None:
    dear = clock.costs(1e6, "dear", "expensive")
    run = _train(clock, [dear], folder, steps=5, budget=None)
    assert dear.steps == [0, 1, 2, 3, 4, 5]
    assert {record.status for record in run.records} == {"ok"}


def test_the_share_is_of_training_and_not_of_the_time_that_probes_take(clock: Clock, folder: Path) -> None:
    run = _train(clock, [clock.costs(50.0, "dear", "free")], folder, steps=4, budget=0.5)
    assert run.last("monitor", "training_seconds").value == 4.0
    assert run.last("monitor", "seconds", "dear").value == 250.0


def test_no_copies_are_taken_for_an_update_that_will_not_be_measured(
    clock: Clock, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dear = clock.costs(100.0, "dear", "expensive")
    dear.needs = frozenset({"updates"})
    copies = []
    monkeypatch.setattr("probes.updates.UpdateMeter.before_step", lambda meter: copies.append(1))
    _train(clock, [dear], folder, steps=10, budget=0.05)
    assert dear.steps == [0, 10]
    assert copies == []


@pytest.mark.parametrize("wrong", [0, -0.1, float("nan"), "5%", True])
def test_a_budget_that_is_no_share_is_refused(wrong: object, folder: Path) -> None:
    toy = Toy()
    with pytest.raises(ValueError, match="budget is not positive; given: "):
        Monitor(toy.model, toy.optimizer, out=folder, budget=wrong)  # type: ignore[arg-type]
    assert not folder.exists()


def test_one_probe_that_is_too_dear_does_not_silence_the_others(clock: Clock, folder: Path) -> None:
    """Eighty seconds at the first state; the other has half of the grace to itself, and then half of the share."""
    dear, light = clock.costs(80.0, "dear", "expensive"), clock.costs(0.1, "light", "expensive")
    _train(clock, [dear, light], folder, steps=1000, budget=0.05)
    assert dear.steps == [0, 1000]
    assert light.steps[:49] == list(range(49))
    spent, share = 0.1 * (len(light.steps) - 1), 0.05 * 1000 / 2
    assert share - 0.2 <= spent <= share
    assert not [step for step in light.steps if 60 < step < 200], "5 % of training pass the grace at step 200"


def test_what_one_probe_does_not_take_another_may(clock: Clock, folder: Path) -> None:
    busy, idle = clock.costs(1.0, "busy", "expensive"), clock.costs(0.0, "idle", "expensive")
    _train(clock, [busy, idle], folder, steps=100, budget=0.05)
    assert len(busy.steps) == GRACE + 1, "all of the grace, and the last state"


def test_several_greedy_probes_keep_to_the_share_together(clock: Clock, folder: Path) -> None:
    probes = [clock.costs(cost, f"costs {cost}", "expensive") for cost in (0.5, 2.0, 3.0)]
    run = _train(clock, probes, folder, steps=5000, budget=0.05)
    spent = sum(run.last("monitor", "seconds", probe.name).value for probe in probes)
    assert spent <= 0.05 * 5000 + 5.5, "but for the last state"
