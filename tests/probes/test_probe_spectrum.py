"""What the Spectrum probe writes is what ``diagnostics`` says of the same moment, and it leaves training alone."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, Hessian, Objective, layer_curvature, top_eigenpairs
from diagnostics.curvature.spectrum import spectral_density
from probes import Monitor, Run, Spectrum
from probes.checkpoint.examine import examine
from probes.probe import Moment, Reading
from reports import Report
from tests.probes.bits import differences
from tests.probes.stories import STORIES
from tests.probes.toy import Toy
from tests.reference.dense_hessian import dense_hessian

SETTINGS: dict[str, Any] = {"probes": 3, "steps": 8, "top": 3}


def measured(probe: Spectrum, toy: Toy, step: int = 0) -> dict[Any, Reading]:
    readings = probe.measure(Moment(step, toy.model, toy.optimizer, toy.objective))
    return {reading.name if reading.layer is None else (reading.name, reading.layer): reading for reading in readings}


def test_every_number_is_that_of_a_direct_call(toy: Toy) -> None:
    got = measured(Spectrum(**SETTINGS), toy)
    hessian = Hessian(toy.objective)
    density = spectral_density(hessian, probes=3, steps=8, seed=0)
    for name in ("trace", "frobenius", "effective_rank", "negative_mass", "near_zero_mass"):
        expected = getattr(density, name)
        assert (got[name].value.value, got[name].value.error) == pytest.approx(
            (expected.value, expected.error), rel=1e-5
        )
    bound = 0.01 * float(density.nodes.abs().max())
    assert float(got["flat_mass"].value) == pytest.approx(float(density.mass(-bound, bound)), rel=1e-4)
    assert float(got["outliers"].value) == float(density.outliers().count)
    assert float(got["edge"].value) == pytest.approx(density.outliers().edge, rel=1e-5)
    expected_raw = torch.stack([density.nodes, density.weights, density.residuals]).numpy()
    assert got["density"].array == pytest.approx(expected_raw, rel=1e-4, abs=1e-6)
    assert got["density"].value == toy.objective.num_parameters
    assert float(got["largest"].value) == pytest.approx(float(top_eigenpairs(hessian, tol=1e-4).values[0]), rel=1e-4)
    assert got["outputs"].value == 2
    for row in layer_curvature(toy.objective, tol=1e-3, probes=3).rows:
        for name in ("top", "trace", "share"):
            assert float(got[name, row.layer].value) == pytest.approx(float(getattr(row, name)), rel=1e-3)


def test_ends_shares_and_overlaps_are_those_of_the_whole_matrix(toy: Toy) -> None:
    """Against dense eigenvectors, before and after some steps, within the error that is claimed."""
    probe, spaces, k = Spectrum(**SETTINGS), [], 3
    for step in (0, 5):
        got = measured(probe, toy, step)
        dense = dense_hessian(toy.model, toy.loss).double().numpy()
        values, vectors = numpy.linalg.eigh(dense)
        gradient = toy.objective.gradient().double().numpy()
        top = vectors[:, ::-1][:, :k]
        spaces.append(top)
        assert float(got["largest"].value) == pytest.approx(values[-1], rel=1e-3)
        assert abs(float(got["smallest"].value) - values[0]) <= got["smallest"].value.error + 1e-6
        share = ((top.T @ gradient) ** 2).sum() / (gradient**2).sum()
        assert abs(float(got["gradient_share"].value) - share) <= got["gradient_share"].value.error + 1e-4
        along = gradient @ dense @ gradient / (gradient**2).sum()
        assert float(got["gradient_curvature"].value) == pytest.approx(along, rel=1e-3)
        if step == 0:
            assert "overlap" not in got
            toy.train(5)
    overlap = (spaces[0].T @ spaces[1]) ** 2
    assert abs(float(got["overlap"].value) - overlap.sum() / k) <= got["overlap"].value.error + 1e-4
    kept = numpy.trace(spaces[0].T @ dense @ spaces[0]) / values[::-1][:k].sum()
    assert float(got["kept_curvature"].value) == pytest.approx(kept, abs=5e-3)
    assert "step 0" in got["overlap"].value.how
    assert "k = 3" in got["overlap"].value.how


def test_the_density_comes_back_from_the_run_folder(toy: Toy, folder: Path) -> None:
    probe = Spectrum(**SETTINGS)
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[probe], every=2, budget=None):
        toy.train(4)
    run = Run.open(folder)
    records = [record for record in run.records if record.name == "density"]
    assert [record.step for record in records] == [0, 2, 4]
    for record in records:
        raw = run.array(record)
        assert raw is not None
        assert raw.shape == (3, 3, 8)
        assert raw[1].sum(axis=1) == pytest.approx(numpy.ones(3))
        trace = run.series("spectrum", "trace")
        assert (raw[0] * raw[1]).sum(axis=1).mean() * record.value == pytest.approx(
            trace.values[trace.steps == record.step][0], rel=1e-6
        )
    assert [record.status for record in run.records if record.status != "ok"] == []
    assert run.series("spectrum", "overlap").steps.tolist() == [2, 4]
    assert run.layers("spectrum", "share") == ["0", "2"]
    (header,) = run.header["probes"]
    assert header["settings"]["steps"] == 8
    report = Report.from_run(folder)
    assert "spectrum-density" in {figure.id for figure in report.document.figures}


# Dynamo imports a deprecated corner of torch when it compiles an optimizer.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("story", STORIES)
def test_training_is_bit_identical(story: str, folder: Path) -> None:
    def watch(model: nn.Module, optimizer: Any, make_objective: Any) -> Monitor:
        probes = [Spectrum(**SETTINGS)]
        return Monitor(model, optimizer, make_objective(), out=folder, probes=probes, every=3, budget=None)

    assert differences(STORIES[story](watch), STORIES[story](lambda *_: nullcontext())) == []
    run = Run.open(folder)
    assert [record.note for record in run.records if record.status == "failed"] == []
    assert len(run.series("spectrum", "density")) >= 3


def test_what_does_not_fit_is_skipped_with_the_reason(toy: Toy) -> None:
    got = measured(Spectrum(**SETTINGS, memory=1e-6), toy)
    for name in ("smallest", "largest", "layers"):
        assert got[name].status == "skipped"
        assert "do not fit into memory" in got[name].note
    # Without a stored basis sums over nodes are as good.
    assert float(got["trace"].value) == pytest.approx(
        float(measured(Spectrum(**SETTINGS), toy)["trace"].value), rel=1e-3
    )


@pytest.mark.parametrize(
    ("problem", "caught"),
    [(MemoryError(), True), (RuntimeError("can't allocate memory: 9 GB"), True), (RuntimeError("shape"), False)],
)
def test_running_out_of_memory_costs_one_part_and_a_fault_is_a_fault(
    toy: Toy, problem: Exception, caught: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise problem

    monkeypatch.setattr("probes.spectrum.top_eigenpairs", fail)
    if not caught:
        with pytest.raises(RuntimeError, match="shape"):
            measured(Spectrum(**SETTINGS), toy)
        return
    got = measured(Spectrum(**SETTINGS), toy)
    assert [got[name].status for name in ("smallest", "largest")] == ["skipped", "skipped"]
    assert got["trace"].status == got["top", "0"].status == "ok"


def test_weights_that_are_not_finite_give_no_number(folder: Path) -> None:
    toy = Toy()
    with torch.no_grad():
        next(toy.model.parameters()).fill_(float("nan"))
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[Spectrum(**SETTINGS)], every=1):
        toy.train(1)
    run = Run.open(folder)
    assert all(
        record.value is None for record in run.records if record.name not in ("outputs",) and record.probe == "spectrum"
    )
    finding = next(one for one in Report.from_run(folder).findings if one.id.startswith("spectrum/"))
    assert finding.level == "unmeasured"


def test_a_gradient_of_zero_has_no_place(toy: Toy) -> None:
    with torch.no_grad():
        for tensor in toy.model.parameters():
            tensor.zero_()
    toy.objective = Objective(toy.model, lambda outputs, targets: outputs.square().mean(), (toy.x, toy.y))
    got = measured(Spectrum(**SETTINGS), toy)
    assert got["gradient_share"].status == "skipped"
    assert "norm is 0" in got["gradient_share"].note


def test_nothing_is_kept_of_another_model_or_an_earlier_run(toy: Toy) -> None:
    probe = Spectrum(**SETTINGS)
    measured(probe, toy, step=5)
    assert "overlap" not in measured(probe, toy, step=0)
    assert "overlap" in measured(probe, toy, step=1)
    model = nn.Linear(3, 2)
    other = Toy()
    other.model, other.objective = model, Objective(model, nn.CrossEntropyLoss(), (toy.x, toy.y))
    assert "overlap" not in measured(probe, other, step=9)


@pytest.mark.parametrize(
    ("model", "loss", "data", "k"),
    [
        (nn.Linear(1, 1, bias=False), nn.MSELoss(), (torch.ones(4, 1), torch.zeros(4, 1)), 1),
        (nn.Linear(3, 2), nn.CrossEntropyLoss(), (torch.randn(6, 3), torch.randint(2, (6,))), 2),
        (nn.Linear(12, 7), nn.CrossEntropyLoss(), (torch.randn(9, 12), torch.randint(7, (9,))), 7),
        (nn.Linear(3, 1), nn.MSELoss(), (torch.randn(6, 3), torch.randn(6, 1)), 4),
    ],
    ids=["one parameter", "two classes", "seven classes", "one output"],
)
def test_as_many_directions_as_classes_and_never_more_than_parameters(model: Any, loss: Any, data: Any, k: int) -> None:
    objective = Objective(model, loss, data)
    readings = {one.name: one for one in Spectrum(steps=8).measure(Moment(0, model, None, objective))}
    assert f"k = {k} " in readings["gradient_share"].value.how
    assert readings["largest"].status == "ok"


@pytest.mark.parametrize(
    "bad", [{"probes": 0}, {"steps": 1.5}, {"top": 0}, {"tol": 0.0}, {"memory": -1}, {"cold_every": 0}]
)
def test_arguments_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(DiagnosticsError, match=next(iter(bad))):
        Spectrum(**bad)


def test_a_planted_saddle_is_found_and_leaving_it_is_not(folder: Path) -> None:
    """Two linear layers next to zero stand at the saddle of x ↦ W₂W₁x; later they have left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 4, bias=False))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.mul_(1e-4)
    x = torch.randn(64, 6)
    y = x @ torch.randn(6, 4)
    objective = Objective(model, nn.MSELoss(), (x, y))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with Monitor(model, optimizer, objective, out=folder / "there", probes=[Spectrum()], every=60, budget=None):
        _train(model, optimizer, x, y, 60)
    report = Report.from_run(folder / "there")
    assert [one.level for one in report.findings if one.id == "spectrum/negative"] == ["warn"]
    assert "near a saddle" in report.document.diagnosis
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, optimizer, objective, out=folder / "left", probes=[Spectrum()], every=200, budget=None):
        _train(model, optimizer, x, y, 400)
    levels = {one.id: one.level for one in Report.from_run(folder / "left").findings}
    assert {level for id, level in levels.items() if id.startswith("spectrum/")} == {"ok"}


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def test_a_healthy_classifier_raises_nothing(folder: Path) -> None:
    toy = Toy(lr=0.5)
    with Monitor(toy.model, toy.optimizer, toy.objective, out=folder, probes=[Spectrum()], every=100, budget=None):
        toy.train(300)
    assert {one.level for one in Report.from_run(folder).findings if one.id.startswith("spectrum/")} == {"ok"}


def test_a_checkpoint_with_a_task_has_a_density_when_it_is_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    torch.save({"model": model.state_dict()}, tmp_path / "checkpoint.pt")
    task = tmp_path / "task.py"
    task.write_text(
        "import torch\nfrom torch import nn\nfrom diagnostics import Objective\n"
        "def build(checkpoint):\n"
        "    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))\n"
        "    model.load_state_dict(checkpoint['model'])\n"
        "    generator = torch.Generator().manual_seed(0)\n"
        "    data = torch.randn(8, 3, generator=generator), torch.arange(8) % 2\n"
        "    return Objective(model, nn.CrossEntropyLoss(), data)\n"
    )
    run = examine(tmp_path / "checkpoint.pt", task=str(task), only=("spectrum",))
    record = run.last("spectrum", "density")
    assert record is not None
    assert run.array(record).shape[0] == 3
    report = Report.from_checkpoint(tmp_path / "checkpoint.pt", task=str(task), only=("spectrum",))
    assert "spectrum-density" in {figure.id for figure in report.document.figures}
    assert not any(one.probe == "spectrum" for one in examine(tmp_path / "checkpoint.pt", task=str(task)).records)
