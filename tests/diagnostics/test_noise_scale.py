"""The noise scale is that of gradients built one by one, its errors those of leaving examples out, and they cover."""

from __future__ import annotations

import itertools
import math

import numpy
import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Objective, noise_scale
from tests.reference.dense_hessian import dense_hessian


class Mean(nn.Module):
    """½‖θ − x‖²: the gradient of an example is θ − x, and H is the identity."""

    def __init__(self, at: Tensor) -> None:
        super().__init__()
        self.at = nn.Parameter(at)

    def forward(self, x: Tensor) -> Tensor:
        return self.at - x


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(1).mean()


def _gaussian(count: int, seed: int) -> Objective:
    """tr Σ = 12.5 over |G|² = 1, in ten dimensions that are not alike."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(0.5, 1.5, 10, dtype=torch.float64)
    sizes *= math.sqrt(12.5 / float(sizes.square().sum()))
    x = sizes * torch.randn(count, 10, dtype=torch.float64, generator=generator)
    at = torch.zeros(10, dtype=torch.float64)
    at[0] = 1.0
    return Objective(Mean(at), half_square, (x, torch.zeros_like(x)))


def _network(count: int = 24) -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(count, 3).double(), torch.randn(count, 2).double() + 2.0
    return Objective(model, nn.MSELoss(), [(x[:9], y[:9]), (x[9:], y[9:])])


def _gradients(objective: Objective) -> Tensor:
    """(N, P), one backward pass each."""
    rows = []
    for x, y in objective.batches:
        for place in range(len(x)):
            one = Objective(objective.model, nn.MSELoss(), (x[place : place + 1], y[place : place + 1]))
            rows.append(one.gradient())
    return torch.stack(rows)


def _by_hand(gradients: Tensor) -> tuple[float, float]:
    """|G|² and tr Σ, unbiased."""
    mean = gradients.mean(0)
    trace = float((gradients - mean).square().sum() / (len(gradients) - 1))
    return float(mean @ mean) - trace / len(gradients), trace


def test_it_is_that_of_gradients_built_one_by_one() -> None:
    objective = _network()
    gradients = _gradients(objective)
    n = noise_scale(objective, draws=0)
    signal, trace = _by_hand(gradients)
    assert float(n.gradient_sq) == pytest.approx(signal, rel=1e-9)
    assert float(n.trace_covariance) == pytest.approx(trace, rel=1e-9)
    assert n.hessian is None
    without = [_by_hand(torch.cat([gradients[:i], gradients[i + 1 :]])) for i in range(len(gradients))]
    ratios = numpy.array([one[1] / one[0] for one in without])
    count = len(gradients)
    assert float(n.simple) == pytest.approx(count * trace / signal - (count - 1) * ratios.mean(), rel=1e-7)
    spread = math.sqrt((count - 1) / count * numpy.square(ratios - ratios.mean()).sum())
    assert n.simple.error == pytest.approx(spread * 2.0687 / 1.96, rel=1e-3)
    assert float(n.coherence) == pytest.approx(count / (1 + float(n.simple)))


def _weighted(objective: Objective, scale: Tensor | float = 1.0) -> float:
    """B_noise of steps that are the gradient times ``scale``, from gradients built one by one and the dense Hessian."""
    x, y = (torch.cat([batch[place] for batch in objective.batches]) for place in (0, 1))
    gradients, H = _gradients(objective), dense_hessian(objective.model, lambda: nn.MSELoss()(objective.model(x), y))
    gradients = gradients * scale
    mean = gradients.mean(0)
    covariance = (gradients - mean).T @ (gradients - mean) / (len(gradients) - 1)
    weighted = float((H * covariance).sum())
    return weighted / (float(mean @ H @ mean) - weighted / len(gradients))


def test_curvature_weighs_noise_and_signal() -> None:
    objective = _network(240)
    exact = _weighted(objective)
    n = noise_scale(objective, draws=200)
    assert n.hessian is not None
    assert abs(float(n.hessian) - exact) < 1.5 * 1.96 * n.hessian.error
    assert n.hessian.error < 0.2 * exact


def test_with_a_product_for_every_example_only_the_examples_are_left_to_chance() -> None:
    objective = _network()
    drawn, whole = noise_scale(objective, draws=23), noise_scale(objective, draws=24)
    again = noise_scale(objective, draws=1000, seed=7)
    assert drawn.hessian is not None
    assert whole.hessian is not None
    assert again.hessian == whole.hessian
    assert "random halves" in drawn.hessian.how
    assert "jackknife over examples" in whole.hessian.how
    gradients = _gradients(objective)
    x, y = (torch.cat([batch[place] for batch in objective.batches]) for place in (0, 1))
    H = dense_hessian(objective.model, lambda: nn.MSELoss()(objective.model(x), y))

    def ratio(rows: Tensor) -> float:
        mean = rows.mean(0)
        noise = float((((rows - mean) @ H) * (rows - mean)).sum()) / (len(rows) - 1)
        return noise / (float(mean @ H @ mean) - noise / len(rows))

    left = [ratio(torch.cat([gradients[:i], gradients[i + 1 :]])) for i in range(24)]
    assert float(whole.hessian) == pytest.approx(24 * ratio(gradients) - 23 * numpy.mean(left), rel=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_enumeration_of_every_batch_gives_both_scales_exactly(weighted: bool) -> None:
    """Least squares on 8 examples: mean g_BᵀHg_B over all batches of 2 and of 4, with and without replacement.

    Without replacement they differ by tr(HΣ)(1/2 − 1/4) N/(N − 1): what is unbiased for the population behind.
    """
    torch.manual_seed(3)
    model, x, y = nn.Linear(3, 1).double(), 0.3 * torch.randn(8, 3).double(), torch.randn(8, 1).double() + 4
    objective = Objective(model, nn.MSELoss(), [(x[:5], y[:5]), (x[5:], y[5:])])
    H = dense_hessian(model, lambda: nn.MSELoss()(model(x), y)) if weighted else torch.eye(4, dtype=torch.float64)
    rows = _gradients(objective)

    def parts(some: Tensor, replaced: bool) -> tuple[float, float]:
        """Signal and noise, from two batch sizes."""
        found = []
        for size in (2, 4):
            places = range(len(some))
            batches = itertools.product(places, repeat=size) if replaced else itertools.combinations(places, size)
            means = torch.stack([some[list(batch)].mean(0) for batch in batches])
            found.append(float(((means @ H) * means).sum(1).mean()))
        noise = (found[0] - found[1]) / (1 / 2 - 1 / 4)
        return found[1] - noise / 4, noise

    mean = rows.mean(0)
    trace = float((((rows - mean) @ H) * (rows - mean)).sum() / 8)
    along = float(mean @ H @ mean)
    assert parts(rows, replaced=True) == pytest.approx((along, trace), rel=1e-9)
    assert parts(rows, replaced=False) == pytest.approx((along - trace / 7, trace * 8 / 7), rel=1e-9)
    n = noise_scale(objective, draws=8)
    measured = n.hessian if weighted else n.simple
    assert measured is not None
    ratios = [parts(torch.cat([rows[:i], rows[i + 1 :]]), replaced=False) for i in range(8)]
    signal, noise = parts(rows, replaced=False)
    corrected = 8 * noise / signal - 7 * numpy.mean([above / below for below, above in ratios])
    assert float(measured) == pytest.approx(corrected, rel=1e-8)


def test_the_noise_scale_in_the_metric_of_the_optimizer() -> None:
    """Adam's coordinates: √(√v̂ + ε) times as long; plain descent changes nothing."""
    torch.manual_seed(0)
    x, y = torch.randn(24, 3).double(), torch.randn(24, 2).double() + 6.0
    x[:, 2] *= 0.1
    objective = Objective(nn.Linear(3, 2).double(), nn.MSELoss(), [(x[:9], y[:9]), (x[9:], y[9:])])
    optimizer = torch.optim.Adam(objective.model.parameters(), lr=1e-3, eps=5.0)
    for _ in range(3):
        optimizer.zero_grad()
        nn.MSELoss()(objective.model(objective.batches[0][0]), objective.batches[0][1]).backward()
        optimizer.step()
    n = noise_scale(objective, optimizer=optimizer, draws=24)
    state = [optimizer.state[p] for p in objective.model.parameters()]
    second = torch.cat([(one["exp_avg_sq"] / (1 - 0.999**3)).sqrt().flatten() for one in state]) + 5.0
    gradients = _gradients(objective) / second.sqrt()
    signal, trace = _by_hand(gradients)
    assert n.preconditioned is not None
    without = [_by_hand(torch.cat([gradients[:i], gradients[i + 1 :]])) for i in range(24)]
    ratios = numpy.array([one[1] / one[0] for one in without])
    assert float(n.preconditioned) == pytest.approx(24 * trace / signal - 23 * ratios.mean(), rel=1e-6)
    assert float(n.preconditioned) != pytest.approx(float(n.simple), rel=0.05)
    exact = _weighted(objective, 1 / second)
    drawn = noise_scale(objective, optimizer=optimizer, draws=23).preconditioned_hessian
    assert n.preconditioned_hessian is not None
    assert drawn is not None
    assert float(n.preconditioned_hessian) == pytest.approx(exact, rel=0.25)
    assert abs(float(drawn) - exact) < 3 * drawn.error
    assert "as the optimizer scales" in str(n)
    assert "optimizer's own step" in str(n)
    plain = noise_scale(objective, optimizer=torch.optim.SGD(objective.model.parameters(), lr=0.1), draws=0)
    assert plain.preconditioned is not None
    assert float(plain.preconditioned) == pytest.approx(float(plain.simple), rel=1e-9)
    with pytest.raises(DiagnosticsError, match="no preconditioner yet"):
        noise_scale(objective, optimizer=torch.optim.Adam(objective.model.parameters()), draws=0)


def test_layers_add_up_and_each_has_its_own_scale() -> None:
    objective = _network()
    n, gradients = noise_scale(objective, draws=0), _gradients(objective)
    assert [row.layer for row in n.by_layer] == ["0", "2"]
    for row, span in zip(n.by_layer, (slice(0, 20), slice(20, 32)), strict=True):
        signal, trace = _by_hand(gradients[:, span])
        assert float(row.gradient_sq) == pytest.approx(signal, rel=1e-9)
        assert float(row.trace_covariance) == pytest.approx(trace, rel=1e-9)
    assert sum(float(row.trace_covariance) for row in n.by_layer) == pytest.approx(float(n.trace_covariance), rel=1e-9)


def test_a_few_examples_that_make_all_the_noise_are_told() -> None:
    """Planted: P(‖g‖ > x) = x^−1.2. Control: Gaussian noise."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(400, 10, dtype=torch.float64, generator=generator))
    sizes = torch.rand(400, 1, dtype=torch.float64, generator=generator) ** (-1 / 1.2)
    at = torch.zeros(10, dtype=torch.float64)
    at[0] = 50.0
    heavy = noise_scale(Objective(Mean(at), half_square, (sizes * directions, torch.zeros(400, 10).double())), draws=0)
    assert heavy.heavy_tailed
    assert "heavy tails" in str(heavy)
    light = noise_scale(_gaussian(400, 0), draws=0)
    assert not light.heavy_tailed
    assert float(light.tail) > 4
    assert "heavy tails" not in str(light)
    assert not noise_scale(_gaussian(99, 0), draws=0).tail.determined


def test_with_the_identity_for_curvature_both_are_one_number() -> None:
    n = noise_scale(_gaussian(400, 0), draws=64)
    assert n.hessian is not None
    plain = float(n.trace_covariance) / float(n.gradient_sq)
    assert abs(float(n.hessian) - plain) < 1.96 * n.hessian.error < 0.2 * plain
    assert "B_simple" in str(n)
    assert "weighted by curvature" in str(n)


@pytest.mark.parametrize("count", [50, 200])
def test_intervals_cover(count: int) -> None:
    """95 % is claimed; of 300 data sets this leaves room for chance: three standard errors are 3.8 points."""
    held = 0
    for seed in range(300):
        simple = noise_scale(_gaussian(count, seed), draws=0).simple
        low, high = simple.interval()
        held += simple.determined and low <= 12.5 <= high
    assert 0.912 <= held / 300 <= 0.988


def test_at_a_minimum_there_is_no_noise_scale() -> None:
    objective = _gaussian(60, 1)
    with torch.no_grad():
        objective.model.at.copy_(objective.batches[0][0].mean(0))
    n = noise_scale(objective, draws=4)
    assert n.hessian is not None
    assert not n.simple.determined
    assert not n.hessian.determined
    assert "the interval of |G|² reaches zero" in n.simple.how
    assert "undetermined" in str(n)


def test_a_sum_over_examples_has_the_noise_of_their_mean() -> None:
    """Gradients are scaled alike, so their quotients stay."""
    mean = _network()
    total = Objective(
        mean.model,
        nn.MSELoss(reduction="sum"),
        [(torch.cat([b[0] for b in mean.batches]), torch.cat([b[1] for b in mean.batches]))],
    )
    one, other = noise_scale(mean, draws=8), noise_scale(total, draws=8)
    assert float(one.simple) == pytest.approx(float(other.simple), rel=1e-8)
    assert one.hessian is not None
    assert other.hessian is not None
    assert float(one.hessian) == pytest.approx(float(other.hessian), rel=1e-6)


@pytest.mark.parametrize(
    ("count", "draws", "words"),
    [(3, 0, "too few examples"), (20, 1, "draws is too small"), (20, -1, "draws is not a number"), (20, 2.5, "draws")],
)
def test_refusals(count: int, draws: float, words: str) -> None:
    with pytest.raises(DiagnosticsError, match=words):
        noise_scale(_network(count) if count > 9 else _gaussian(count, 0), draws=draws)


def test_coupled_examples_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    objective = Objective(model, nn.MSELoss(), (torch.randn(16, 3), torch.randn(16, 1)), mode="train")
    with pytest.raises(DiagnosticsError, match="couples the examples"):
        noise_scale(objective)
