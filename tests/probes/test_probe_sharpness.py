"""What the Sharpness probe writes is what ``diagnostics`` says of the same moment."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diagnostics import sharpness, stability
from diagnostics.curvature.operators import Hessian
from probes import Monitor, Run, Sharpness
from probes.probe import Moment
from probes.sharpness import NO_EDGE
from tests.probes.toy import Toy, Watch

TIGHT = 1e-6


def _run(toy: Toy, folder: Path, probe: Sharpness, steps: int = 6) -> tuple[Run, list[Any], list[Any]]:
    """The run, and cold measurements of the same states."""
    ratios: list[Any] = []
    plain: list[Any] = []

    def cold(moment: Moment) -> float:
        plain.append(sharpness(toy.objective, tol=TIGHT, seed=99).estimate())
        ready = moment.step > 0 or not isinstance(toy.optimizer, torch.optim.Adam)
        ratios.append(stability(toy.objective, toy.optimizer, tol=TIGHT, seed=99) if ready else None)
        return 0.0

    probes = [probe, Watch(cold)]
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=probes, every=1, budget=None):
        toy.train(steps)
    return Run.open(folder), ratios, plain


@pytest.mark.parametrize(
    "make",
    [lambda: Toy(lr=0.5), lambda: Toy(lr=0.5, momentum=0.9, weight_decay=0.1), lambda: Toy(torch.optim.AdamW, lr=0.02)],
    ids=["SGD", "SGD with momentum and decay", "AdamW"],
)
def test_ratio_curvature_threshold_and_sharpness_are_those_of_the_moment(make: Callable[[], Toy], folder: Path) -> None:
    toy = make()
    run, ratios, plain = _run(toy, folder, Sharpness(tol=TIGHT, cold_every=3))
    assert run.series("sharpness", "sharpness").values == pytest.approx([float(value) for value in plain], rel=1e-4)
    taken = [measured for measured in ratios if measured is not None]
    for name in ("ratio", "curvature"):
        expected = [float(getattr(measured, name)) for measured in taken]
        assert run.series("sharpness", name).values == pytest.approx(expected, rel=1e-4)
    assert run.series("sharpness", "threshold").values.tolist() == [measured.threshold for measured in taken]
    assert run.last("sharpness", "threshold").note == taken[-1].rule
    assert run.last("sharpness", "loss").value == pytest.approx(toy.objective.loss())


def test_a_warm_start_agrees_with_a_cold_one_within_the_tolerance(folder: Path) -> None:
    """Step by step along a run whose curvature moves, with one cold start only, at the beginning."""
    toy = Toy(lr=2.0, momentum=0.9)
    run, _, plain = _run(toy, folder, Sharpness(cold_every=1000), steps=40)
    measured, exact = run.series("sharpness", "sharpness"), [float(value) for value in plain]
    assert max(exact) > 1.5 * min(exact), "the curvature does move"
    for value, error, truth in zip(measured.values, measured.errors, exact, strict=True):
        assert abs(value - truth) <= max(error, 1e-2 * abs(truth)) * 1.05


def test_every_so_many_measurements_start_cold(toy: Toy, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    def noting(*args: Any, **settings: Any) -> Any:
        starts.append(settings["start"])
        return stability(*args, **settings)

    monkeypatch.setattr("probes.sharpness.stability", noting)
    _run(toy, folder, Sharpness(cold_every=3), steps=7)
    assert [start is None for start in starts] == [True, False, False, True, False, False, True, False]
    assert all(len(start) == toy.objective.num_parameters for start in starts if start is not None)


@pytest.mark.parametrize(("optimizer", "problems"), [(torch.optim.SGD, 1), (torch.optim.Adam, 2)])
def test_sgd_takes_one_eigenproblem_and_adam_two(
    optimizer: type[torch.optim.Optimizer], problems: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, hessians, solved = Toy(optimizer, lr=0.01), [], []
    toy.step()
    # Reached by its name: as an attribute, ``diagnostics.stability`` is the function.
    place = sys.modules["diagnostics.stability.sharpness"]
    search = place.top_eigenpairs
    monkeypatch.setattr(place, "top_eigenpairs", lambda *a, **k: solved.append(1) or search(*a, **k))
    monkeypatch.setattr("probes.sharpness.Hessian", lambda objective: hessians.append(1) or Hessian(objective))
    readings = list(Sharpness().measure(Moment(1, toy.model, toy.optimizer, toy.objective)))
    names = [reading.name for reading in readings]
    assert names == ["loss", "ratio", "curvature", "threshold", "sharpness"]
    assert (len(hessians), len(solved)) == (1, problems)


def test_adam_before_its_first_step_has_sharpness_and_no_ratio(folder: Path) -> None:
    toy = Toy(torch.optim.Adam, lr=0.01)
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[Sharpness()], every=1):
        toy.step()
    run = Run.open(folder)
    assert run.series("sharpness", "sharpness").steps.tolist() == [0, 1]
    assert run.series("sharpness", "ratio").steps.tolist() == [1]
    [skipped] = [record for record in run.records if record.status == "skipped"]
    assert (skipped.step, skipped.name) == (0, "ratio")
    assert "the optimizer has no preconditioner yet" in skipped.note


def test_an_optimizer_without_a_rule_still_has_sharpness(folder: Path) -> None:
    toy = Toy(torch.optim.Rprop)
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, every=1, budget=None):
        toy.step()
    run = Run.open(folder)
    assert len(run.series("sharpness", "sharpness")) == 2
    last = {name: run.last("sharpness", name) for name in ("ratio", "threshold")}
    assert last["threshold"].note.startswith("realised update of Rprop")
    assert "Rprop has no curvature threshold: along one step of it, a lower bound" in last["ratio"].note
    assert len(run.series("learning_rate", "relative_update", "0.weight")) == 1


def test_the_record_says_how_and_how_well(toy: Toy, folder: Path) -> None:
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[Sharpness()]):
        pass
    record = Run.open(folder).last("sharpness", "sharpness")
    assert 0 < record.error <= 0.01 * record.value
    for part in ("Lanczos", "products", "double backward", "float32", "12 loss terms in one batch, eval mode"):
        assert part in record.note
    assert Run.open(folder).header["probes"] == [
        {"name": "sharpness", "settings": {"tol": 0.01, "cold_every": 10}, "schedule": "every 100 steps"}
    ]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_schedule_that_ends_at_zero_leaves_sharpness_and_no_edge(
    optimizer: type[torch.optim.Optimizer], folder: Path
) -> None:
    toy = Toy(optimizer, lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(toy.optimizer, lambda step: max(0.0, 1 - step / 4))
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[Sharpness()], every=1, budget=None):
        for _ in range(6):
            toy.step()
            schedule.step()
    run = Run.open(folder)
    # The hooks see a step before the schedule moves on: 5 and 6 were taken at a rate of 0.
    assert run.series("sharpness", "sharpness").steps.tolist() == [0, 1, 2, 3, 4, 5, 6]
    for name in ("ratio", "curvature", "threshold"):
        series = run.series("sharpness", name)
        assert series.steps.tolist()[-4:] == [1, 2, 3, 4], name
        assert (series.values > 0).all()
        assert all(math.isfinite(value) for value in series.values)
    skipped = [(one.step, one.name, one.note) for one in run.records if one.status == "skipped" and one.step > 0]
    assert skipped == [(5, "ratio", NO_EDGE), (6, "ratio", NO_EDGE)]


def test_one_group_at_zero_beside_one_that_trains_has_an_edge() -> None:
    toy = Toy(lr=0.1)
    frozen = {"params": list(toy.model[0].parameters()), "lr": 0.0}
    optimizer = torch.optim.SGD([frozen, {"params": list(toy.model[2].parameters())}], lr=0.1)
    readings = {one.name: one for one in Sharpness().measure(Moment(1, toy.model, optimizer, toy.objective))}
    assert readings["ratio"].status == "ok"
