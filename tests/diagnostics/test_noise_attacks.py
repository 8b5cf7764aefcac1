"""Noise measures at the ends of their range: gradients that are equal, cancel, or are very small or large; what is no
matrix, label or norm. Numbers are right, or it is said why there are none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from diagnostics import (
    DiagnosticsError,
    NoiseTracker,
    Objective,
    batch_size_tests,
    clipping,
    empirical_fisher_spectrum,
    gradient_alignment,
    gradient_gram,
    gradient_signal_to_noise,
    group_conflict,
    noise_scale,
    per_example_gradient_norms,
)
from diagnostics.averages import mean, quotient
from diagnostics.noise.estimators import noise_of_blocks, unbiased_pair
from diagnostics.noise.gram import GradientGram
from diagnostics.noise.tails import tail_index, top_share


def gram_of(rows: Tensor) -> GradientGram:
    return GradientGram(rows @ rows.T, {}, "by hand")


def planted(scale: float) -> Tensor:
    """(200, 9), |G|² = 4 and tr Σ = 9 at scale 1."""
    noise = torch.randn(200, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return scale * (2.0 * torch.eye(9, dtype=torch.float64)[0] + noise)


def nearly_equal(apart: float, dtype: torch.dtype) -> Objective:
    """Examples whose inputs differ in the last digits."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x, y = (torch.randn(1, n, dtype=torch.float64, generator=generator).repeat(200, 1) for n in (3, 2))
    x = x + apart * torch.randn(200, 3, dtype=torch.float64, generator=generator)
    return Objective(model.to(dtype), nn.MSELoss(), (x.to(dtype), (y + 2.0).to(dtype)))


@pytest.mark.parametrize("apart", [1e-4, 1e-5, 0.0])
def test_noise_that_is_lost_in_rounding_has_its_error_and_no_tail(apart: float) -> None:
    """The same gradients in float64 say what it is; in float32 it was off by up to thousands of errors."""
    torch.manual_seed(0)
    precise = noise_scale(nearly_equal(apart, torch.float64), draws=0)
    torch.manual_seed(0)
    coarse = noise_scale(nearly_equal(apart, torch.float32), draws=0)
    for one, other in ((precise.simple, coarse.simple), (precise.trace_covariance, coarse.trace_covariance)):
        assert abs(one.value - other.value) < 1.96 * other.error
    assert coarse.trace_covariance.error < 1e-5 * float(coarse.gradient_sq)
    assert not coarse.top_share.determined
    assert not coarse.tail.determined
    assert "equal but for rounding" in coarse.top_share.how
    assert precise.top_share.determined is bool(apart)


def test_gradients_that_are_all_zero_are_not_said_to_need_more_examples() -> None:
    model = nn.Linear(3, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    n = noise_scale(Objective(model, nn.MSELoss(), (torch.randn(20, 3), torch.zeros(20, 1))), draws=0)
    assert n.simple.how.startswith("the gradient of every example is zero")


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_at_the_foot_of_its_warm_up_has_no_metric(kind: Any) -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 1), torch.randn(40, 3), torch.randn(40, 1) + 9.0
    optimizer = kind(model.parameters(), lr=0.0)
    nn.MSELoss()(model(x), y).backward()
    optimizer.step()
    objective = Objective(model, nn.MSELoss(), (x, y))
    with pytest.raises(DiagnosticsError, match="a learning rate of zero, as warm-up begins with"):
        noise_scale(objective, optimizer=optimizer, draws=0)
    optimizer.param_groups[0]["lr"] = 1e-12
    found = noise_scale(objective, optimizer=optimizer, draws=0).preconditioned
    assert found is not None
    assert found.determined


@pytest.mark.parametrize("scale", [1e-90, 1e-60, 1e60, 1e90])
def test_quotients_do_not_depend_on_the_unit_of_gradients(scale: float) -> None:
    rows, other = planted(1.0), planted(scale)
    one, two = batch_size_tests(gram_of(rows)), batch_size_tests(gram_of(other))
    for name in ("norm", "inner_product", "orthogonality"):
        assert getattr(two, name).value == pytest.approx(getattr(one, name).value, rel=1e-9)
        assert getattr(two, name).error == pytest.approx(getattr(one, name).error, rel=1e-9)
    labels = [0, 1] * 100
    pair, again = (group_conflict(gram_of(some), labels).pairs[0].cosine for some in (rows, other))
    assert again.value == pytest.approx(pair.value, rel=1e-9)
    assert again.error == pytest.approx(pair.error, rel=1e-9)
    spectra = [empirical_fisher_spectrum(gram_of(some)).effective_directions for some in (rows, other)]
    assert float(spectra[1]) == pytest.approx(float(spectra[0]), rel=1e-9)
    kept = [clipping(gram_of(some), 2.0 * size, 4) for some, size in ((rows, 1.0), (other, scale))]
    assert float(kept[1].bias) == pytest.approx(float(kept[0].bias), rel=1e-9)
    assert kept[1].bias.error == pytest.approx(kept[0].bias.error, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-160, 1e-80, 1e80, 1e140])
def test_averages_of_draws_do_not_depend_on_their_unit(scale: float) -> None:
    drawn = numpy.random.default_rng(0).normal(4.0, 1.0, 50) ** 2
    one, other = mean(drawn.tolist(), ""), mean((scale * drawn).tolist(), "")
    assert other.error == pytest.approx(scale * one.error, rel=1e-9)
    below = (drawn + 1.0).tolist()
    error = quotient(drawn.tolist(), below, "").error
    assert quotient((scale * drawn).tolist(), below, "").error == pytest.approx(scale * error, rel=1e-9)
    weights, traces = numpy.ones(50), numpy.random.default_rng(1).normal(9.0, 1.0, 50) ** 2
    small, large = (noise_of_blocks(weights, unit * drawn, unit * traces, "") for unit in (1.0, scale))
    assert large.simple.value == pytest.approx(small.simple.value, rel=1e-9)
    assert large.at_least == pytest.approx(small.at_least, rel=1e-9)
    assert float(top_share(scale * drawn)) == pytest.approx(float(top_share(drawn)), rel=1e-9)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_tests_that_allow_next_to_nothing_or_everything(size: float) -> None:
    found = batch_size_tests(gram_of(planted(1.0)), theta=size, nu=size)
    for one in (found.norm, found.inner_product, found.orthogonality):
        assert one.value in (0.0, math.inf)


def test_equal_gradients_have_noise_in_no_direction() -> None:
    rows = planted(1.0)[:1].repeat(50, 1)
    found = empirical_fisher_spectrum(gram_of(rows)).effective_directions
    assert not found.determined
    assert "no noise beyond rounding" in found.how
    assert float(empirical_fisher_spectrum(gram_of(planted(1.0))).effective_directions) > 5
    sideways = clipping(gram_of(rows), 0.5).sideways
    assert float(sideways) < 1e-12


def test_at_a_minimum_clipping_has_no_gradient_to_be_held_against() -> None:
    """∇L was 1e-8 by rounding, and kept 500000 of it."""
    rows = planted(1.0)
    rows -= rows.mean(0)
    with pytest.raises(DiagnosticsError, match="the gradient is zero"):
        clipping(gram_of(rows), 1.0)
    assert not gradient_alignment(gram_of(rows)).diversity.determined


def test_clipping_that_turns_nothing_says_so_and_not_that_nothing_was_clipped() -> None:
    """One example in ten has a gradient: what is left of it points its way."""
    rows = torch.zeros(40, 3, dtype=torch.float64)
    rows[::10, 0] = 5.0
    found = clipping(gram_of(rows), 1.0, 4)
    assert float(found.rate) > 0.1
    assert found.sideways.how.startswith("it is within its error of zero")
    assert clipping(gram_of(rows), 100.0, 4).sideways.how.startswith("no batch was clipped")


def test_a_turn_is_seen_where_every_batch_is_clipped_to_next_to_nothing() -> None:
    """A few long gradients along another axis, held against all pairs: errors were larger than the numbers."""
    rows = 0.1 * torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[:, 0] += 2.0
    rows[::8] = torch.tensor([2.0, 40.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    pairs = torch.combinations(torch.arange(40))
    batches = rows[pairs].mean(1)
    clipped = (batches * (0.1 / batches.norm(dim=1, keepdim=True))).mean(0)
    whole = rows.mean(0)
    kept = float(clipped @ whole / whole.square().sum())
    turned = float((clipped - kept * whole).norm() / whole.norm())
    found = clipping(gram_of(rows), 0.1, 2)
    assert abs(float(found.kept) - kept) < 1.96 * found.kept.error < 0.6 * kept
    assert abs(float(found.sideways) - turned) < 1.96 * found.sideways.error < 0.2 * turned


def test_a_threshold_of_infinity_clips_nothing() -> None:
    found = clipping(gram_of(planted(1.0)), math.inf, 4)
    assert (float(found.rate), float(found.kept)) == (0.0, 1.0)


def test_any_seed_will_do() -> None:
    matrix = gram_of(planted(1.0))
    assert float(clipping(matrix, 1.0, 4, seed=-1).kept) == float(clipping(matrix, 1.0, 4, seed=-1).kept)
    assert float(clipping(matrix, 1.0, 4, seed=-1).kept) != float(clipping(matrix, 1.0, 4, seed=1).kept)


@pytest.mark.parametrize(
    "labels", [None, 5, torch.tensor(3), torch.zeros(200, 2), numpy.zeros((200, 2)), [torch.ones(2)] * 200]
)
def test_what_is_no_label_for_each_example(labels: Any) -> None:
    with pytest.raises(DiagnosticsError, match="not one label for each example"):
        group_conflict(gram_of(planted(1.0)), labels)


@pytest.mark.parametrize(
    "matrix",
    [torch.full((8, 8), torch.nan), torch.ones(3, 5), torch.ones(5), torch.ones(0, 0), -torch.eye(8)],
    ids=["nan", "oblong", "vector", "empty", "negative"],
)
def test_what_is_no_gram_matrix(matrix: Tensor) -> None:
    for measure in (gradient_alignment, batch_size_tests, empirical_fisher_spectrum, lambda gram: clipping(gram, 1.0)):
        with pytest.raises(DiagnosticsError, match="not one of inner products"):
            measure(GradientGram(matrix.double(), {}, "by hand"))


def test_a_matrix_that_was_made_by_hand_with_gradients_on() -> None:
    matrix = torch.eye(8).requires_grad_()
    assert float(gradient_alignment(GradientGram(matrix, {}, "by hand")).mean_cosine) == 0.0


def test_a_parameter_without_elements_has_no_part_in_anything() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.empty = nn.Linear(3, 2), nn.Parameter(torch.zeros(0))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.empty.sum()

    objective = Objective(Odd(), nn.MSELoss(), (torch.randn(12, 3), torch.randn(12, 2)))
    norms = per_example_gradient_norms(objective).norms
    torch.testing.assert_close(gradient_gram(objective).matrix.diagonal().sqrt(), norms, rtol=1e-5, atol=0)


def test_a_mean_gradient_whose_square_is_no_number_is_refused() -> None:
    model = nn.Linear(3, 1, bias=False)
    objective = Objective(model, lambda outputs, _: 1e18 * outputs.mean(), (torch.full((40, 3), 9.0), torch.zeros(40)))
    with pytest.raises(DiagnosticsError, match=r"the mean gradient is too long|too long for its precision"):
        noise_scale(objective, draws=0)


@pytest.mark.parametrize(("size", "kept"), [(1e-12, True), (1e-21, False), (1e-30, False), (0.0, True)])
def test_gradients_whose_squares_vanish_do_not_pass_for_zero(size: float, kept: bool) -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.randn(20, 3), torch.randn(20, 2)
    objective = Objective(model, lambda outputs, targets: size * nn.functional.mse_loss(outputs, targets), (x, y))
    if not kept:
        with pytest.raises(DiagnosticsError, match=r"too short for their precision.*in float32.*try: model\.double"):
            per_example_gradient_norms(objective)
        model.double()
        objective = Objective(model, objective.form.criterion, (x.double(), y.double()))
    usual = per_example_gradient_norms(Objective(model, nn.MSELoss(), objective.batches)).norms
    torch.testing.assert_close(per_example_gradient_norms(objective).norms, size * usual, rtol=1e-6, atol=0.0)


def test_a_metric_below_zero_is_refused_as_such() -> None:
    objective = Objective(nn.Linear(3, 2), nn.MSELoss(), (torch.randn(20, 3), torch.randn(20, 2)))
    for bad in (-1.0, math.nan):
        with pytest.raises(DiagnosticsError, match="metric is below zero"):
            per_example_gradient_norms(objective, metric=torch.full((8,), bad))


def test_batches_below_one_are_explained() -> None:
    assert "(below 1, or by chance below 0: a single example passes)" in str(
        batch_size_tests(gram_of(planted(1.0)), nu=99)
    )
    assert "by chance" not in str(batch_size_tests(gram_of(planted(1.0)), theta=0.01, nu=0.01))


def test_a_median_of_ratios_is_not_rounded_to_its_spread() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 2) * torch.tensor([1.0, 1e-3])
    found = gradient_signal_to_noise(
        Objective(nn.Linear(2, 3), nn.MSELoss(), (x, x.sum(1, keepdim=True) + torch.ones(3)))
    )
    first = str(found).splitlines()[0]
    assert first.startswith("gradient signal-to-noise of 60 examples: median ")
    assert f"{found.median.value:.3g} (spread {found.median.error:.2g} over parameters)" in first


def test_ratios_beyond_all_noise_say_why_they_have_no_median() -> None:
    model = nn.Linear(2, 1)
    found = gradient_signal_to_noise(Objective(model, nn.MSELoss(), (torch.ones(20, 2), torch.full((20, 1), 9.0))))
    assert found.median.how.startswith("most parameters have no noise beyond rounding")
    assert "no noise beyond rounding" in str(found)


@pytest.mark.parametrize("norms", [("x", 1.0, 1), (1.0, "x", 1), ([1.0], [1.0, 2.0], 1), ([], 1.0, 1)])
def test_a_tracker_refuses_what_is_no_norm_and_keeps_what_it_had(norms: Any) -> None:
    tracker = NoiseTracker()
    tracker.update([2.0, 3.0], 1.5, 4)
    before = tracker.state_dict()
    with pytest.raises(DiagnosticsError):
        tracker.update(*norms)
    assert tracker.state_dict() == before
    with pytest.raises(DiagnosticsError):
        unbiased_pair(*norms)


def test_a_loss_scale_beyond_all_reason_is_a_step_that_is_skipped() -> None:
    tracker = NoiseTracker()
    tracker.update([2.0, 3.0], 1.5, 4, scale=1e-200)
    assert (tracker.steps, tracker.skipped) == (0, 1)
    tracker.update([2.0, 3.0], 1.5, 4, scale=1e200)
    assert tracker.steps == 1


@pytest.mark.parametrize("change", [{"blocks": []}, {"blocks": [[math.nan] * 4]}, {"length": 0}, {"steps": 0}])
def test_a_damaged_state_of_a_tracker_is_refused(change: dict[str, Any]) -> None:
    tracker = NoiseTracker()
    tracker.update([2.0, 3.0], 1.5, 4)
    with pytest.raises(DiagnosticsError, match="damaged"):
        NoiseTracker().load_state_dict(tracker.state_dict() | change)


def test_distances_with_gradients_on_are_refused() -> None:
    with pytest.raises(DiagnosticsError, match="no row of sizes"):
        tail_index(torch.rand(200).requires_grad_())
