"""Laws of the batch size against descents that obey them, their limits, errors, and what an unknown scale says."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diagnostics import (
    DiagnosticsError,
    Estimate,
    GradientNoise,
    Objective,
    batch_size_advice,
    noise_from_norms,
    noise_of_population,
    noise_scale,
    noisy_quadratic,
    optimal_learning_rate,
    rescaled_learning_rate,
)
from diagnostics.estimate import exact

sizes = st.floats(0.1, 1e6)


def noise(scale: float) -> GradientNoise:
    return noise_of_population([1 + scale] * 2, 1.0)


@given(batch_size=sizes, scale=sizes)
def test_steps_and_examples_are_on_the_hyperbola(batch_size: float, scale: float) -> None:
    """(S/S_min − 1)(E/E_min − 1) = 1, and S·B = E."""
    found = batch_size_advice(noise(scale), batch_size)
    steps, examples = found.steps.value, found.examples.value
    assert (steps - 1) * (examples - 1) == pytest.approx(1, rel=1e-5)
    assert steps * batch_size == pytest.approx(examples * found.critical.value, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1.0, 10.0, 200.0])
def test_the_law_of_descent_is_the_best_step_on_a_noisy_quadratic(batch_size: float) -> None:
    """Equal curvature, one step from E θ² = 1: the best of many rates is η_max/(1 + B_noise/B) with η_max = 1/h."""
    h, c, n = 0.5, 3.0, 4
    model = noisy_quadratic([h] * n, [c] * n)
    best = min(numpy.geomspace(1e-3, 4, 20001), key=lambda rate: model.loss(1, float(rate), batch_size))
    scale = exact(n * c / (n * h**2), "tr Σ/|G|²")
    assert optimal_learning_rate(batch_size, scale, 1 / h).value == pytest.approx(best, rel=1e-3)


def test_the_law_of_adam_is_the_best_step_along_signs() -> None:
    """d coordinates with gradient G and noise σ/√B each: a step −η sign(g) changes the loss by −ηdG s + ½η²(T + O s²).

    s = E sign = erf(G √(B/2)/σ), T the trace of H and O the sum of its other entries, which only steps that agree feel.
    The source's form is the best η of this while signs are mostly noise.
    """
    gradient, sigma, trace, others = 1.0, 50.0, 1.0, 1e4

    def best(batch_size: float) -> float:
        sign = math.erf(gradient * math.sqrt(batch_size / 2) / sigma)
        return gradient * sign / (trace + others * sign**2)

    grid = numpy.geomspace(1e-3, 1e3, 6001)
    rates = numpy.array([best(size) for size in grid])
    peak = float(grid[rates.argmax()])
    for size in (peak / 30, peak / 3, peak, peak * 3, peak * 30):
        law = optimal_learning_rate(size, exact(peak, "where the peak is"), float(rates.max()), "adam").value
        assert law == pytest.approx(best(size), rel=1e-2)


@given(batch_size=sizes, scale=sizes)
def test_adams_rate_peaks_at_the_noise_scale_and_is_symmetric(batch_size: float, scale: float) -> None:
    known = exact(scale, "known")
    found = optimal_learning_rate(batch_size, known, 0.3, "adam").value
    assert found <= 0.3 * (1 + 1e-12)
    assert optimal_learning_rate(scale, known, 0.3, "adam").value == pytest.approx(0.3)
    assert optimal_learning_rate(scale**2 / batch_size, known, 0.3, "adam").value == pytest.approx(found, rel=1e-9)


def test_rescaling_is_the_familiar_rules_at_the_ends() -> None:
    """Linear and none for SGD; square root and its inverse for Adam."""
    huge, tiny = exact(1e12, "huge"), exact(1e-12, "tiny")
    assert rescaled_learning_rate(0.1, 8, 32, huge).value == pytest.approx(0.4)
    assert rescaled_learning_rate(0.1, 8, 32, tiny).value == pytest.approx(0.1)
    assert rescaled_learning_rate(0.1, 8, 32, huge, "adam").value == pytest.approx(0.2)
    assert rescaled_learning_rate(0.1, 8, 32, tiny, "adam").value == pytest.approx(0.05)
    assert rescaled_learning_rate(0.1, 8, 32, exact(0.0, "none"), "adam").value == pytest.approx(0.05)
    assert rescaled_learning_rate(0.1, 8, 32, exact(0.0, "none")).value == pytest.approx(0.1)


@pytest.mark.parametrize("law", ["sgd", "adam"])
def test_rescaling_there_and_back_changes_nothing(law: str) -> None:
    known = exact(50, "known")
    there = rescaled_learning_rate(0.1, 8, 300, known, law).value
    assert rescaled_learning_rate(there, 300, 8, known, law).value == pytest.approx(0.1, rel=1e-12)
    ratio = optimal_learning_rate(300, known, 1.0, law).value / optimal_learning_rate(8, known, 1.0, law).value
    assert there / 0.1 == pytest.approx(ratio, rel=1e-12)


def test_errors_reach_as_far_as_the_ends_of_the_interval() -> None:
    measured = Estimate(100.0, 20.0, "standard error", "ten steps")
    low, high = measured.interval()
    found = optimal_learning_rate(50, measured, 1.0)
    assert found.interval()[1] == pytest.approx(1 / (1 + low / 50))
    assert found.interval()[0] <= 1 / (1 + high / 50)
    peak = optimal_learning_rate(100, measured, 1.0, "adam")
    assert peak.error > 0, "at the peak the slope is zero, and the error is not"
    around = Estimate(500.0, 230.0, "standard error", "ten steps")
    assert optimal_learning_rate(100, around, 1.0, "adam").interval()[1] >= 1, "the peak is within the interval"
    wide = Estimate(100.0, 80.0, "standard error", "two steps")
    assert math.isfinite(optimal_learning_rate(50, wide, 1.0, "adam").error)
    assert math.isinf(batch_size_advice(noise_of_population([1.0, 1.0], 1.0), 50).examples.value)


def test_advice_prints_its_interval_and_its_caveat() -> None:
    steps = numpy.random.default_rng(0).normal(1.0, 2.0, (300, 8, 6))
    measured = noise_from_norms(numpy.square(steps).sum(2), numpy.square(steps.mean(1)).sum(1), 1)
    found = batch_size_advice(measured, 8)
    assert abs(found.critical.value - 4) < 3 * found.critical.error
    assert found.steps.value == pytest.approx(1.5, abs=0.1)
    assert "95 % interval" in str(found)
    assert "B_simple is a proxy" in str(found)


def test_advice_takes_what_noise_scale_returns() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 3).double()
    model = torch.nn.Linear(3, 1).double()
    measured = noise_scale(Objective(model, torch.nn.MSELoss(), (x, x.sum(1, keepdim=True) + 1)), draws=0)
    found = batch_size_advice(measured, 8)
    assert found.critical == measured.simple
    assert float(found.steps) == pytest.approx(1 + float(measured.simple) / 8)
    for wrong in (measured.simple, 4.0):
        with pytest.raises(DiagnosticsError, match=r"noise is not .* try: noise_scale\(objective\)"):
            batch_size_advice(wrong, 8)
    for wrong in (measured, 4.0):
        with pytest.raises(DiagnosticsError, match=r"not an Estimate.*try: noise\.hessian or noise\.simple"):
            rescaled_learning_rate(0.1, 8, 16, wrong)


def test_an_unknown_scale_gives_a_bound_or_nothing() -> None:
    random = numpy.random.default_rng(0)
    steps = random.normal(0.0, 2.0, (30, 8, 60))
    lost = noise_from_norms(numpy.square(steps).sum(2), numpy.square(steps.mean(1)).sum(1), 1)
    found = batch_size_advice(lost, 8)
    assert not found.critical.determined
    assert not found.steps.determined
    assert not found.examples.determined
    assert not optimal_learning_rate(8, found.critical, 1.0).determined
    assert "a batch of 8 is below it" in str(found)
    nothing = noise_from_norms([[3.0, 5.0]], [3.0], 4)
    assert str(batch_size_advice(nothing, 8)).startswith("critical batch size undetermined (the interval")


@pytest.mark.parametrize("wrong", [0, -1, math.inf, math.nan, "8", None])
def test_bad_sizes_and_rates_are_named(wrong: object) -> None:
    known = exact(50, "known")
    with pytest.raises(DiagnosticsError, match="batch_size is not positive"):
        batch_size_advice(noise(1.0), wrong)
    with pytest.raises(DiagnosticsError, match="largest is not positive"):
        optimal_learning_rate(1, known, wrong)
    with pytest.raises(DiagnosticsError, match="new_batch_size is not positive"):
        rescaled_learning_rate(1, 1, wrong, known)
    with pytest.raises(DiagnosticsError, match="lr is not positive"):
        rescaled_learning_rate(wrong, 1, 1, known)
    with pytest.raises(DiagnosticsError, match="law is unknown; given: 'lion'"):
        optimal_learning_rate(1, known, 1, "lion")
