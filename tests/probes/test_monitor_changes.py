"""A model or optimizer that changes under a running Monitor: a right number, or none, and never a stale one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from diagnostics import Objective, sharpness, stability
from probes import Monitor, Run
from probes.probe import Moment
from tests.probes.toy import Toy, Watch, cross_entropy


@pytest.mark.parametrize("width", [4, 9])
def test_a_replaced_layer_is_noticed_and_not_measured_by_its_old_weights(width: int, folder: Path) -> None:
    toy = Toy()
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, every=1, budget=None) as monitor:
        toy.step()
        toy.model[0], toy.model[2] = nn.Linear(3, width), nn.Linear(width, 2)
        toy.optimizer.add_param_group({"params": [*toy.model[0].parameters(), *toy.model[2].parameters()]})
        toy.train(2)
    assert monitor.step == 3
    run = Run.open(folder)
    assert run.series("sharpness", "loss").steps.tolist() == [0, 1]
    late = [record for record in run.records if record.step > 1 and record.probe != "monitor"]
    updates = [record for record in late if record.name == "relative_update"]
    assert {record.layer for record in updates} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert {record.status for record in updates} == {"ok"}, "taken on the weights themselves, old or new"
    taken = {record.name for record in late if record.status == "ok"}
    assert taken.isdisjoint({"lr", "effective", "weight_norm", "gradient_norm", "alignment"}), "from the objective"
    starts = {r.note for r in late if r.name == "distance"}
    assert starts == {"since step 2; ‖W−W0‖/‖W0‖"}, "new weights have not come from the old ones"
    rest = [record for record in late if record.status != "ok"]
    assert {(record.probe, record.name) for record in rest} == {
        ("sharpness", "measurement"),
        ("learning_rate", "effective"),
        ("units", "measurement"),
    }
    assert {record.status for record in rest} == {"skipped"}
    assert {record.note.partition(",")[0] for record in rest} == {
        "parameters of the model were replaced after the objective was built"
    }


def test_no_probe_is_handed_an_objective_that_holds_other_weights(folder: Path) -> None:
    toy, seen = Toy(), []

    def look(moment: Moment) -> float:
        seen.append((moment.objective is toy.objective, moment.no_objective.partition(",")[0]))
        return 0.0

    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[Watch(look)], every=1):
        toy.model[0] = nn.Linear(3, 4)
        toy.step()
    assert seen[0][0]
    assert seen[1] == (False, "parameters of the model were replaced after the objective was built")


def test_a_layer_resized_in_place_is_skipped_and_not_a_failure(folder: Path) -> None:
    toy, seen = Toy(), []

    def look(moment: Moment) -> float:
        seen.append(None if moment.objective else moment.no_objective)
        return 0.0

    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[Watch(look)], every=1):
        toy.model[2].weight.data, toy.model[2].bias.data = torch.randn(3, 4), torch.zeros(3)
        toy.step()
    assert seen == [None, "parameters of the model have another size than when the objective was built"]


def test_a_layer_put_back_is_measured_again(folder: Path) -> None:
    """Evaluation with averaged weights swaps modules for a while."""
    toy = Toy()
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, every=1, budget=None):
        kept, toy.model[0] = toy.model[0], nn.Linear(3, 4)
        for _ in range(4):
            toy.step()
        toy.model[0] = kept
        toy.step()
    assert Run.open(folder).series("sharpness", "loss").steps.tolist() == [0, 5]


def test_weights_loaded_in_place_are_the_ones_measured(folder: Path) -> None:
    toy, other = Toy(), Toy()
    other.train(20)
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, every=10, budget=None):
        toy.model.load_state_dict(other.model.state_dict())
    # Nothing was stepped, so the last state is the first one: measured once, before the loading.
    assert Run.open(folder).series("sharpness", "loss").steps.tolist() == [0]
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, every=10, resume=20):
        pass
    assert Run.open(folder).last("sharpness", "loss").value == pytest.approx(other.objective.loss())


def test_layers_frozen_and_unfrozen_on_the_way(folder: Path) -> None:
    """What the optimizer trains beyond the objective is said to be missing."""
    toy = Toy()
    toy.model[0].requires_grad_(False)
    objective = Objective(toy.model, cross_entropy, (toy.x, toy.y))
    with Monitor(toy.model, toy.optimizer, objective, out=folder, every=1, budget=None):
        toy.step()
        toy.model[0].requires_grad_(True)
        toy.step()
        toy.model[2].requires_grad_(False)
        toy.step()
    run = Run.open(folder)
    left_out = [(record.step, record.name) for record in run.records if record.status != "ok"]
    assert left_out == [(3, "ratio")]
    notes = {record.step: record.note for record in run.records if record.name == "ratio"}
    assert "lower bound" not in notes[1]
    assert "2 of the optimizer's 4 trainable parameters are not in the objective: a lower bound" in notes[2]
    assert "every selected parameter that the optimizer holds is frozen" in notes[3]
    assert [tensor.requires_grad for tensor in toy.model.parameters()] == [True, True, False, False]
    moved = {name: run.series("learning_rate", "relative_update", name).steps.tolist() for name in ("0.bias", "2.bias")}
    assert moved == {"0.bias": [2, 3], "2.bias": [1, 2]}


def test_a_parameter_group_and_a_rate_changed_on_the_way_count_at_once(folder: Path) -> None:
    toy = Toy()
    first, last = toy.model[0], toy.model[2]
    optimizer = torch.optim.SGD(last.parameters(), lr=0.1)
    ratios = []
    with Monitor(toy.model, optimizer, toy.objective, out=folder, every=1, budget=None):
        for change in (
            lambda: None,
            lambda: optimizer.add_param_group({"params": list(first.parameters()), "lr": 0.2}),
            lambda: optimizer.param_groups[0].update(lr=0.4),
        ):
            change()
            optimizer.step()
            ratios.append(float(stability(toy.objective, optimizer, tol=1e-6).ratio))
    measured = Run.open(folder).series("sharpness", "ratio")
    assert len(set(ratios)) == 3
    assert measured.values[1:] == pytest.approx(ratios, rel=0.01)


def test_a_model_cast_to_another_dtype_fails_its_probes_and_trains_on(folder: Path) -> None:
    """The Objective's batches and flat vectors have the dtype of before."""
    toy = Toy()
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, every=1, budget=None) as monitor:
        toy.step()
        toy.model.double()
        toy.x = toy.x.double()
        toy.train(5)
    assert monitor.step == 6
    run = Run.open(folder)
    failed = [record for record in run.records if record.status == "failed"]
    assert {record.probe for record in failed} == {"sharpness", "learning_rate", "units"}
    assert all("dtype" in record.note for record in failed)
    assert run.series("sharpness", "loss").steps.tolist() == [0, 1]


def test_batches_of_another_dtype_than_the_model(folder: Path) -> None:
    toy = Toy()
    half = Objective(toy.model, cross_entropy, (toy.x.half(), toy.y))
    with Monitor(toy.model, toy.optimizer, half, out=folder, every=1) as monitor:
        toy.train(4)
    assert monitor.step == 4
    assert {r.status for r in Run.open(folder).records if r.probe == "sharpness"} == {"failed"}


def test_a_float64_model_is_measured_in_float64(folder: Path) -> None:
    toy = Toy()
    toy.model.double()
    objective = Objective(toy.model, cross_entropy, (toy.x.double(), toy.y))
    with Monitor(toy.model, toy.optimizer, objective, out=folder, every=1, budget=None):
        pass
    ratio = Run.open(folder).last("sharpness", "sharpness")
    assert "float64" in ratio.note
    assert ratio.value == pytest.approx(float(sharpness(objective, tol=1e-6).estimate()), rel=0.01)
