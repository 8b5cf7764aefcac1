"""What the Churn probe writes is what the last step changed, seen from the weights before it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diagnostics import Objective, churn
from probes import Churn, Monitor, Run
from probes.probe import Moment
from tests.probes.toy import Toy, Watch, cross_entropy


def test_each_record_is_the_churn_of_its_step(folder: Path) -> None:
    toy, twin = Toy(lr=2.0), Toy(lr=2.0)
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[Churn()], every=1):
        toy.train(4)
    run = Run.open(folder)
    assert run.series("churn", "changed").steps.tolist() == [1, 2, 3, 4]
    for step in range(1, 5):
        before = [tensor.detach().clone() for tensor in twin.model.parameters()]
        twin.step()
        after = torch.cat([tensor.detach().flatten() for tensor in twin.model.parameters()])
        update = after - torch.cat([tensor.flatten() for tensor in before])
        with torch.no_grad():
            now = [tensor.clone() for tensor in twin.model.parameters()]
            for tensor, old in zip(twin.model.parameters(), before, strict=True):
                tensor.copy_(old)
            expected = churn(twin.objective, update)
            for tensor, new in zip(twin.model.parameters(), now, strict=True):
                tensor.copy_(new)
        assert run.series("churn", "changed").values[step - 1] == float(expected.changed or 0.0)
        found = run.series("churn", "mean_change").values[step - 1]
        assert found == pytest.approx(float(expected.mean_change), rel=1e-4)
    note = str(run.last("churn", "changed").note)
    assert "for other examples" in note
    assert "%, with 95% confidence" in note


def test_the_first_state_has_no_update_and_outputs_must_be_seen(folder: Path, toy: Toy) -> None:
    (reading,) = Churn().measure(Moment(0, toy.model, toy.optimizer, toy.objective))
    assert (reading.status, reading.note) == (
        "skipped",
        "no update was kept; expected: a check that is due right after an optimizer step",
    )
    hidden = Objective.from_loss(toy.model, lambda m, b: cross_entropy(m(b[0]), b[1]), [(toy.x, toy.y)])
    with Monitor(toy.model, toy.optimizer, hidden, out=folder, probes=[Churn()], every=1):
        toy.train(1)
    record = Run.open(folder).records[-1]
    assert any("cannot be seen" in str(one.note) for one in Run.open(folder).records if one.probe == "churn"), record


def test_training_is_the_same_bit_for_bit(folder: Path) -> None:
    ends = []
    for probe in (Churn(axis=1), Watch()):
        toy = Toy(lr=0.1)
        with Monitor(toy.model, toy.optimizer, toy.objective, out=folder / probe.name, probes=[probe], every=1):
            toy.train(4)
        ends.append(torch.cat([tensor.detach().flatten() for tensor in toy.model.parameters()]))
    assert torch.equal(*ends)
    assert Churn(axis=1).settings() == {"axis": 1}
