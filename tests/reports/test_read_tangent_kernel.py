"""Lazy and rich runs are told apart and neither is alleged; a kernel that tells no examples apart is warned of."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy
import pytest
import torch
from matplotlib.figure import Figure as Canvas
from runs import Key, run_of
from torch import Tensor, nn

from diagnostics import Objective
from probes import Monitor, TangentKernel
from probes.run import Record, Run
from reports.chapter import Chapter
from reports.demo.digits import digits
from reports.finding import Finding
from reports.tangent_kernel import chapter
from reports.tangent_kernel.alignment import _shown
from reports.tangent_kernel.regime import verdict

Values = dict[Key, list[float | None]]


def key(name: str, layer: str | None = None) -> Key:
    return ("tangent_kernel", name) if layer is None else ("tangent_kernel", name, layer)


def quantities(error: float = 1.2, distance: float = 0.1, spread: float = 0.5) -> Values:
    return {
        key("distance"): [0.0, 0.3 * distance, distance],
        key("linearisation"): [None, 0.3 * error, error],
        key("moved"): [0.0, 0.2, 0.4],
        key("spread"): [0.4, 0.4, spread],
        key("effective_rank"): [20.0, 12.0, 10.0],
        key("examples"): [64.0] * 3,
        key("alignment"): [0.3, 0.5, 0.6],
        key("alignment", "0"): [0.3, 0.3, 0.3],
        key("alignment", "2"): [0.3, 0.5, 0.7],
        key("alignment_unbiased"): [0.2, 0.4, 0.55],
        key("residual"): [5.0, 2.0, 1.0],
        key("residual_small"): [0.1, 0.4, 0.8],
        key("residual", "mode 1"): [4.0, 0.5, 0.1],
        key("residual", "modes 2 to 4"): [3.0, 2.0, 1.0],
    }


def found(read: Chapter, name: str) -> Finding:
    (finding,) = [one for one in read.findings if one.id == f"tangent_kernel/{name}"]
    assert "arXiv" in finding.citation
    return finding


@pytest.mark.parametrize(
    ("error", "distance", "word"),
    [(0.01, 1e-4, "lazy"), (1.2, 0.1, "rich"), (0.3, 0.01, "between"), (1.2, 1e-4, "between"), (0.01, 0.1, "between")],
)
def test_the_gauge_needs_both_numbers(error: float, distance: float, word: str) -> None:
    assert verdict(error, distance) == word
    finding = found(chapter.read(run_of(quantities(error, distance))), "regime")
    assert (finding.level, finding.advice) == ("ok", ())
    assert f"Training is {word}" in finding.claim
    assert finding.value is not None
    assert float(finding.value) == error


def test_at_the_start_itself_nothing_is_said_of_the_regime() -> None:
    run = run_of({name: values[:1] for name, values in quantities().items()})
    read = chapter.read(run)
    assert "tangent_kernel/regime" not in [one.id for one in read.findings]
    assert read.figures == ()
    assert "is aligned with the targets by 0.30 at step 0" in found(read, "alignment").claim


def test_a_resumed_run_is_read_since_it_was_resumed() -> None:
    values = quantities()
    values[key("moved")] = [0.0, 0.3, 0.0, 0.01]
    values[key("distance")] = [0.0, 0.1, 0.0, 1e-4]
    values[key("linearisation")] = [None, 0.9, None, 0.02]
    read = chapter.read(run_of(values))
    assert "is lazy: by step 30 the first-order prediction from step 20" in found(read, "regime").claim
    assert len(read.figures[0].table.rows) == 1


def test_alignment_names_the_layer_that_is_aligned_best() -> None:
    finding = found(chapter.read(run_of(quantities())), "alignment")
    assert "from 0.30 to 0.60 in 20 steps; the layer with the best aligned part is 2 (0.70)" in finding.claim
    assert "it is 0.55" in finding.meaning
    assert finding.level == "ok"


def test_many_layers_are_thinned_to_the_ends_and_the_highest() -> None:
    heights = {f"block.{place}": [0.0, 0.1 + (0.5 if place in (4, 6) else 0.0)] for place in range(12)}
    run = run_of({key("alignment", name): values for name, values in heights.items()})
    shown = _shown(run, list(heights))
    assert len(shown) == 6
    assert {"block.0", "block.4", "block.6", "block.11"} <= set(shown)
    assert shown == sorted(shown, key=list(heights).index)


def test_a_kernel_that_tells_no_examples_apart_is_warned_of_and_a_small_spread_is_not() -> None:
    sick = found(chapter.read(run_of(quantities(spread=2e-9))), "alike")
    assert sick.level == "warn"
    assert "does not tell examples apart" in sick.claim
    assert "dead or saturated" in sick.advice[0]
    assert found(chapter.read(run_of(quantities(spread=-1e-9))), "alike").level == "warn"
    healthy = found(chapter.read(run_of(quantities(spread=3e-5))), "alike")
    assert (healthy.level, healthy.advice) == ("ok", ())
    assert "effective rank is 10 of 64 examples" in healthy.claim


def test_what_is_left_is_told_and_not_alleged() -> None:
    finding = found(chapter.read(run_of(quantities())), "left")
    assert finding.level == "ok"
    assert "80% of the residual stands in modes of the kernel below 1% of the largest" in finding.claim
    assert "0.2 of what it was at step 0" in finding.claim
    assert "noise" in finding.meaning


def test_figures_draw_what_was_measured() -> None:
    run = run_of(quantities())
    matrix = numpy.kron(numpy.eye(2), numpy.ones((3, 3))) + 0.5
    records = [
        Record(step=20, time=0.0, probe="tangent_kernel", name=name, value=6.0) for name in ("kernel", "classes")
    ]
    arrays = {("tangent_kernel", "kernel"): matrix, ("tangent_kernel", "classes"): numpy.array([0, 0, 0, 1, 1, 1])}
    read = chapter.read(Run({}, [*run.records, *records], arrays=arrays))
    figures = {figure.id: figure for figure in read.figures}
    assert list(figures) == ["lazy-rich", "kernel-alignment", "kernel-matrix", "kernel-modes"]
    for figure in read.figures:
        canvas = Canvas()
        figure.draw(canvas)
        assert canvas.axes
        assert "nan" not in figure.alt
    ((step, within, between),) = figures["kernel-matrix"].table.rows
    assert (step, within, between) == (20, pytest.approx(1.0), pytest.approx(1 / 3))
    assert len(figures["kernel-alignment"].table.columns) == 4
    # A damaged folder costs the figure and nothing else.
    broken = Run({}, [*run.records, *records], arrays={("tangent_kernel", "kernel"): numpy.zeros(3)})
    assert "kernel-matrix" not in [figure.id for figure in chapter.read(broken).figures]


@pytest.mark.parametrize(
    ("error", "distance", "decades"), [(0.74, 0.2, (-3, 1)), (1e-2, 2e-5, (-6, 1)), (30, 9, (-3, 2))]
)
def test_the_gauge_is_as_wide_as_zones_and_numbers_need(
    error: float, distance: float, decades: tuple[int, int]
) -> None:
    figures = {figure.id: figure for figure in chapter.read(run_of(quantities(error, distance))).figures}
    canvas = Canvas()
    figures["lazy-rich"].draw(canvas)
    assert canvas.axes[0].get_xlim() == pytest.approx([10.0**end for end in decades])


def test_what_was_not_measured_says_why_and_nobody_asked_means_nothing() -> None:
    record = Record(step=0, time=0.0, probe="tangent_kernel", name="distance", status="skipped", note="too large")
    other = Record(step=0, time=0.0, probe="tangent_kernel", name="residual", status="skipped", note="no outputs")
    finding = found(chapter.read(Run({}, [record, other])), "alignment")
    assert finding.level == "unmeasured"
    assert "too large" in finding.claim
    assert chapter.read(Run({}, [])) == Chapter()


class Scaled(nn.Module):
    """α (f − f₀): the larger α, the less the network has to move."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale
        self.start = copy.deepcopy(network).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.scale * (self.network(x) - self.start(x))
        return outputs


def trained(model: nn.Module, lr: float, steps: int, folder: Path) -> Chapter:
    images, labels = digits(96)
    wanted, loss = nn.functional.one_hot(labels, 10).float(), nn.MSELoss()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    objective = Objective(model, loss, (images, wanted))
    probes = [TangentKernel(examples=32)]
    with Monitor(model, optimizer, objective, out=folder, probes=probes, every=100, budget=None):
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(images), wanted).backward()
            optimizer.step()
    return chapter.read(Run.open(folder))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 10))


@pytest.mark.parametrize(("scale", "word"), [(50.0, "is lazy"), (0.3, "is rich")])
def test_a_run_of_large_outputs_is_lazy_and_one_of_small_outputs_is_rich(
    scale: float, word: str, tmp_path: Path
) -> None:
    read = trained(Scaled(network(), scale), 0.5 / scale**2, 300, tmp_path / "run")
    assert {one.level for one in read.findings} == {"ok"}
    assert f"Training {word}" in found(read, "regime").claim


def test_a_dead_network_is_warned_of(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    assert found(trained(model, 0.5, 20, tmp_path / "run"), "alike").level == "warn"
