"""What the TangentKernel probe writes is what ``diagnostics`` says of the kernels of a run; training is the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, Objective, kernel_layers, kernel_modes, linearisation, ntk, residuals
from probes import Monitor, Run, TangentKernel
from probes.checkpoint.examine import _probes
from probes.probe import Moment, Reading
from probes.tangent_kernel import some_examples, targets_of
from tests.probes.toy import Toy, Watch


def _readings(probe: TangentKernel, moment: Moment) -> dict[tuple[str, str | None], Reading]:
    return {(reading.name, reading.layer): reading for reading in probe.measure(moment)}


def test_every_number_is_that_of_a_direct_call() -> None:
    toy, probe = Toy(lr=0.5), TangentKernel(examples=12, top=2)
    space = toy.objective.space
    first, theta = ntk(toy.objective, outputs="trace"), space.flatten(space.values())
    start = _readings(probe, Moment(0, toy.model, toy.optimizer, toy.objective))
    assert float(start["distance", None].value) == 0.0
    assert "no update was kept" in str(start["step_linearisation", None].note)
    assert ("linearisation", None) not in start
    toy.train(5)
    got = _readings(probe, Moment(5, toy.model, toy.optimizer, toy.objective))
    now, end = ntk(toy.objective, outputs="trace", by_layer=True), space.flatten(space.values())
    assert got["distance", None].value == first.distance(now)
    assert float(got["velocity", None].value) == float(first.distance(now)) / 5
    moved = float(torch.linalg.vector_norm(end - theta, dtype=torch.float64))
    size = float(torch.linalg.vector_norm(theta, dtype=torch.float64))
    assert float(got["moved", None].value) == pytest.approx(moved / size)
    assert got["linearisation", None].value == linearisation(toy.objective, end - theta, at=theta).error
    assert got["alignment", None].value == now.alignment(toy.y, centred=True)
    assert got["alignment_uncentred", None].value == now.alignment(toy.y)
    table = kernel_layers(now, toy.y, centred=True)
    for row in table.rows:
        assert got["alignment", row.layer].value == row.alignment
        assert got["share", row.layer].value == row.share
    assert got["effective_rank", None].value == now.effective_rank
    assert float(got["top_eigenvalue", None].value) == float(now.eigenvalues[0])
    h = torch.eye(12).double() - 1 / 12
    left = float((h @ now.matrix @ h).trace() / now.matrix.trace())
    assert float(got["spread", None].value) == pytest.approx(left, abs=1e-12)
    assert got["label_energy", None].value == kernel_modes(now, toy.y).top(2)
    pull = residuals(toy.objective)
    assert got["residual_small", None].value == kernel_modes(now, pull).below(0.01)
    groups = ("mode 1", "modes 2 to 4", "modes 5 to 12")
    sizes = [float(got["residual", name].value) for name in groups]
    assert math.hypot(*sizes) == pytest.approx(float(got["residual", None].value))
    along = torch.linalg.eigh(first.matrix)[1].flip(1).T @ pull
    assert sizes[1] == pytest.approx(float(along[1:4].norm()))
    # The kernel is stored by class.
    order = toy.y.argsort(stable=True)
    kernel, classes = got["kernel", None].array, got["classes", None].array
    assert kernel is not None
    assert classes is not None
    numpy.testing.assert_allclose(kernel, now.matrix[order][:, order].numpy(), rtol=1e-6)
    assert classes.tolist() == toy.y[order].tolist()


def test_a_run_holds_it_and_is_the_same_bit_for_bit(folder: Path) -> None:
    ends = []
    for probe in (TangentKernel(examples=8), Watch()):
        torch.manual_seed(0)
        toy = Toy(torch.optim.Adam, lr=0.01)
        with Monitor(toy.model, toy.optimizer, toy.objective, out=folder / probe.name, probes=[probe], every=2):
            toy.train(4)
        state = [value for one in toy.optimizer.state.values() for value in one.values()]
        ends.append([*toy.model.state_dict().values(), *state, torch.rand(3)])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
    run = Run.open(folder / "tangent_kernel")
    assert run.series("tangent_kernel", "distance").steps.tolist() == [0, 2, 4]
    assert run.series("tangent_kernel", "step_linearisation").steps.tolist() == [2, 4]
    assert run.layers("tangent_kernel", "share") == ["0", "2"]
    record = run.last("tangent_kernel", "kernel")
    assert record is not None
    array = run.array(record)
    assert array is not None
    assert (array.shape, array.dtype) == ((8, 8), numpy.float32)


def test_another_run_begins_anew() -> None:
    toy, probe = Toy(), TangentKernel()
    assert float(_readings(probe, Moment(3, toy.model, None, toy.objective))["distance", None].value) == 0.0
    toy.train(1)
    assert float(_readings(probe, Moment(4, toy.model, None, toy.objective))["distance", None].value) > 0.0
    assert float(_readings(probe, Moment(0, toy.model, None, toy.objective))["distance", None].value) == 0.0
    other = Toy()
    assert float(_readings(probe, Moment(9, other.model, None, other.objective))["distance", None].value) == 0.0


def test_examples_at_even_distances_of_ragged_batches() -> None:
    toy = Toy()
    ragged = Objective(toy.model, nn.CrossEntropyLoss(), [(toy.x[:5], toy.y[:5]), (toy.x[5:], toy.y[5:])])
    some = some_examples(ragged, 6)
    places = [0, 2, 4, 7, 9, 11]
    assert [len(batch[0]) for batch in some.batches] == [3, 3]
    assert targets_of(some).equal(toy.y[places])
    whole = Objective(toy.model, nn.CrossEntropyLoss(), (toy.x[places], toy.y[places]))
    assert some.loss() == pytest.approx(whole.loss(), rel=1e-6)
    assert [len(batch[0]) for batch in some_examples(ragged, 100).batches] == [5, 7]
    in_order = Objective(toy.model, nn.CrossEntropyLoss(), (toy.x, toy.y.sort().values))
    assert len(targets_of(some_examples(in_order, 4)).unique()) == 2


def test_classes_of_one_hot_targets_and_values_without_classes() -> None:
    toy = Toy()
    for targets, classes in ((nn.functional.one_hot(toy.y, 2).float(), 2.0), (toy.x[:, :2], None)):
        objective = Objective(toy.model, nn.MSELoss(), (toy.x, targets))
        got = _readings(TangentKernel(), Moment(0, toy.model, None, objective))
        assert got["alignment", None].status == "ok"
        assert (got["classes", None].value if classes else got.get(("classes", None))) == classes


def test_what_cannot_be_measured_says_why(toy: Toy) -> None:
    hidden = Objective.from_loss(toy.model, lambda model, batch: model(batch).square().mean(), [toy.x])
    (reading,) = TangentKernel().measure(Moment(0, toy.model, None, hidden))
    assert (reading.status, reading.value) == ("skipped", None)
    assert "cannot be seen" in str(reading.note)
    tokens = torch.randint(2, (6, 4))
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    objective = Objective(
        model, lambda f, t: nn.functional.cross_entropy(f.flatten(0, 1), t.flatten()), (tokens, tokens)
    )
    got = _readings(TangentKernel(), Moment(0, model, None, objective))
    assert "a class for each example" in str(got["alignment", None].note)
    assert got["distance", None].status == got["residual", None].status == "ok"
    with torch.no_grad():
        toy.model[0].weight.fill_(float("nan"))
    (diverged,) = TangentKernel().measure(Moment(0, toy.model, toy.optimizer, toy.objective))
    assert "finite" in str(diverged.note)


def test_on_a_checkpoint_it_is_measured_when_named() -> None:
    assert [probe.name for probe in _probes(["tangent_kernel"])] == ["tangent_kernel"]
    assert "tangent_kernel" not in [probe.name for probe in _probes(None)]


@pytest.mark.parametrize("settings", [{"examples": 3}, {"examples": 8.5}, {"top": 0}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(DiagnosticsError, match="out of range"):
        TangentKernel(**settings)
    assert TangentKernel(16, 3).settings() == {"examples": 16, "top": 3}
