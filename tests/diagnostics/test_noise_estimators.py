"""Norms at two batch sizes against known noise: bias, coverage, exact enumerations, and what must be refused.

Seen on the standard case (per-example norms, B = 64): 95 % intervals of B_simple cover in .956 of 2000 seeds at K = 5
steps, .951 at 20, .954 at 50, and in .940 of 800 at 200; Fieller's one-sided bound in .936 to .942. Where the
batch is a seventh of B_simple and signal is just seen (B = 8, K = 50, determined in 99 %), in .925.
"""

from __future__ import annotations

import itertools
import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics import DiagnosticsError, GradientNoise, noise_from_norms, noise_of_population
from diagnostics.noise.estimators import unbiased_pair

SIGMA = numpy.linspace(0.5, 1.5, 50)
SIMPLE = float(numpy.square(SIGMA).sum())
"""B_simple of Gaussian gradients with mean e₁ and these standard deviations: 54.3367."""


def per_example(random: numpy.random.Generator, steps: int, examples: int) -> numpy.ndarray:
    """Gradients (steps, examples, 50)."""
    drawn = SIGMA * random.standard_normal((steps, examples, 50))
    drawn[..., 0] += 1
    return drawn


def from_groups(gradients: numpy.ndarray, size: int) -> GradientNoise:
    """Norms of groups of so many examples against those of all."""
    groups = gradients.reshape(len(gradients), -1, size, gradients.shape[2]).mean(2)
    return noise_from_norms(numpy.square(groups).sum(2), numpy.square(gradients.mean(1)).sum(1), size)


def test_two_batches_within_half_a_per_cent() -> None:
    """8 against 64, independent of each other, 20 000 draws."""
    random = numpy.random.default_rng(0)
    means = [SIGMA * random.standard_normal((20000, 50)) / math.sqrt(size) for size in (8, 64)]
    for mean in means:
        mean[:, 0] += 1
    small, big = (numpy.square(mean).sum(1) for mean in means)
    found = noise_from_norms(small, big, 8, 64)
    assert found.gradient_sq.value == pytest.approx(1, rel=5e-3)
    assert found.trace_covariance.value == pytest.approx(SIMPLE, rel=5e-3)
    assert found.simple.value == pytest.approx(SIMPLE, rel=5e-3)


@pytest.mark.parametrize(("steps", "seeds"), [(20, 300), (50, 300), (200, 100)])
def test_intervals_cover(steps: int, seeds: int) -> None:
    random = numpy.random.default_rng(steps)
    found = [from_groups(per_example(random, steps, 64), 1) for _ in range(seeds)]
    slack = 3 * math.sqrt(0.05 * 0.95 / seeds)
    for name, truth in (("simple", SIMPLE), ("gradient_sq", 1.0), ("trace_covariance", SIMPLE)):
        intervals = [getattr(one, name).interval() for one in found]
        covered = sum(low <= truth <= high for low, high in intervals) / seeds
        assert 0.95 - slack <= covered <= min(0.95 + slack, 0.995), (name, covered)
    assert abs(sum(one.at_least <= SIMPLE for one in found) / seeds - 0.95) < 1.5 * slack
    mean = numpy.mean([one.simple.value for one in found])
    assert mean == pytest.approx(SIMPLE, rel=0.02), "the quotient's bias should be taken out"


def test_more_groups_are_better() -> None:
    """Single examples know tr Σ best; two halves of the batch hardly know it."""
    gradients = per_example(numpy.random.default_rng(0), 200, 64)
    errors = [from_groups(gradients, size).trace_covariance.error for size in (1, 8, 32)]
    assert errors[0] < 0.5 * errors[1] < 0.25 * errors[2]


def test_quotients_and_plugged_in_norms_are_biased_where_this_is_not() -> None:
    """The reason for averaging apart: plain ‖g_B‖² at B = 64 gives 29.4 instead of 54.3."""
    gradients = per_example(numpy.random.default_rng(1), 4000, 64)
    big, trace = numpy.square(gradients.mean(1)).sum(1), gradients.var(1, ddof=1).sum(1)
    assert trace.mean() / big.mean() == pytest.approx(29.4, rel=0.02)
    assert from_groups(gradients, 1).simple.value == pytest.approx(SIMPLE, rel=0.02)


def test_enumeration_with_and_without_replacement() -> None:
    """Linear regression on 8 examples, every batch of 4: exact, with Bessel's factor where nothing is put back."""
    random = numpy.random.default_rng(3)
    x, y = random.standard_normal((8, 3)), random.standard_normal(8)
    gradients = (x @ numpy.ones(3) - y)[:, None] * x
    whole = noise_of_population(numpy.square(gradients).sum(1), numpy.square(gradients.mean(0)).sum())
    for replaced, factor, less in ((True, 1.0, 0.0), (False, 8 / 7, 1 / 7)):
        squares = []
        for size in (2, 4):
            draws = itertools.product(range(8), repeat=size) if replaced else itertools.combinations(range(8), size)
            squares.append(float(numpy.mean([numpy.square(gradients[list(d)].mean(0)).sum() for d in draws])))
        gradient, trace = unbiased_pair(squares[0], squares[1], 2, 4)
        assert trace == pytest.approx(factor * whole.trace_covariance.value, rel=1e-12)
        assert gradient == pytest.approx(
            whole.gradient_sq.value - less * whole.trace_covariance.value, rel=1e-12, abs=1e-12
        )


def test_identities_of_a_population() -> None:
    """mean‖g_i‖²/‖ḡ‖² = 1 + B_simple, and m-coherence m/(1 + B_simple), against their definitions."""
    gradients = numpy.random.default_rng(0).standard_normal((30, 5)) + 1
    squares, mean = numpy.square(gradients).sum(1), numpy.square(gradients.mean(0)).sum()
    found = noise_of_population(squares, mean)
    assert found.simple.value == pytest.approx(numpy.cov(gradients.T, ddof=0).trace() / mean, rel=1e-12)
    assert squares.mean() / mean == pytest.approx(1 + found.simple.value, rel=1e-12)
    coherence = (gradients @ gradients.T).sum() / squares.sum()
    assert found.coherence(30).value == pytest.approx(coherence, rel=1e-12)
    assert found.coherence(30).kind == "exact"


def test_the_noisy_quadratic_has_its_noise_scale() -> None:
    """g_i = h θ + √c ξ: B_simple = Σ c / Σ h²θ²."""
    random = numpy.random.default_rng(0)
    h, theta = numpy.geomspace(1, 0.01, 20), random.standard_normal(20)
    gradients = h * theta + numpy.sqrt(h) * random.standard_normal((300, 32, 20))
    found = from_groups(gradients, 4).simple
    assert abs(found.value - h.sum() / numpy.square(h * theta).sum()) < 3 * found.error
    assert found.error < 0.1 * found.value


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    square=st.floats(0.01, 100),
    trace=st.floats(0.0, 100),
)
def test_groups_of_uneven_sizes_are_unbiased(sizes: list[int], square: float, trace: float) -> None:
    """At the expected norms the pair is the truth."""
    expected = [square + trace / size for size in sizes]
    found = unbiased_pair(expected, square + trace / sum(sizes), sizes)
    assert found == pytest.approx((square, trace), rel=1e-9, abs=1e-9)


def test_the_scale_of_gradients_does_not_enter() -> None:
    gradients = per_example(numpy.random.default_rng(0), 30, 64)
    one, other = from_groups(gradients, 1), from_groups(1e-3 * gradients, 1)
    assert other.simple.value == pytest.approx(one.simple.value, rel=1e-9)
    assert other.simple.error == pytest.approx(one.simple.error, rel=1e-9)
    assert other.gradient_sq.value == pytest.approx(1e-6 * one.gradient_sq.value, rel=1e-9)


def test_a_signal_lost_in_noise_is_undetermined_with_a_bound() -> None:
    """Batches of 4 where B_simple is 543: no value, and a bound that is below the truth in 95 % of seeds."""
    random = numpy.random.default_rng(0)
    wrong = 0
    for _ in range(100):
        gradients = per_example(random, 20, 4)
        gradients[..., 0] -= 1 - math.sqrt(0.1)
        found = from_groups(gradients, 1)
        wrong += found.at_least > 10 * SIMPLE
        if found.simple.determined:
            continue
        assert found.gradient_sq.interval()[0] <= 0
        assert "the interval of |G|² reaches zero" in found.simple.how
        assert "undetermined (" in str(found)
        if found.at_least:
            assert f"B_simple is above {found.at_least:.3g}" in found.simple.how
    assert wrong <= 11
    assert found.at_least > 5


def test_one_step_has_no_error_and_no_quotient() -> None:
    found = from_groups(per_example(numpy.random.default_rng(0), 1, 64), 1)
    assert found.gradient_sq.determined
    assert math.isinf(found.gradient_sq.error)
    assert not found.simple.determined
    assert found.at_least == 0


def test_equal_gradients_have_no_noise() -> None:
    found = noise_from_norms([[2.0, 2.0]] * 5, [2.0] * 5, 1)
    assert (found.simple.value, found.simple.error) == (0, 0)
    zero = noise_from_norms([[0.0, 0.0]] * 5, [0.0] * 5, 1)
    assert not zero.simple.determined
    assert not noise_of_population([1.0, 1.0], 0.0).simple.determined


def test_losses_divided_by_accumulation_steps_are_caught() -> None:
    """The usual mistake: micro-batch gradients of loss/4, whose sum is the gradient."""
    gradients = per_example(numpy.random.default_rng(0), 50, 64)
    small = numpy.square(gradients.reshape(50, 4, 16, 50).mean(2) / 4).sum(2)
    big = numpy.square(gradients.mean(1)).sum(1)
    with pytest.raises(DiagnosticsError, match="multiply a micro-batch's gradient by the accumulation steps"):
        noise_from_norms(small, big, 16)
    # Already averaged over micro-batches it cannot be seen in one step, but over all of them.
    found = noise_from_norms(small.mean(1), big, 16, 64)
    assert "tr Σ is negative" in found.simple.how
    healthy = noise_from_norms(16 * small.mean(1), big, 16, 64)
    assert healthy.simple.determined


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0], 1, 2), "do not fit together"),
        (([], [], 1, 2), "do not fit together"),
        (([[[1.0]]], [1.0], 1, 2), "do not fit together"),
        ((["a"], [1.0], 1, 2), "small_squares is no squared norm"),
        (([1.0], [math.nan], 1, 2), "big_squares is no squared norm"),
        (([-1.0], [1.0], 1, 2), "small_squares is no squared norm"),
        (([1.0], [1.0], 0, 2), "small_size does not fit"),
        (([[1.0, 1.0]], [1.0], [1, 2, 3]), "small_size does not fit"),
        (([1.0], [1.0], 4, 4), "big_size is not larger"),
        (([1.0], [1.0], 4), "big_size is not larger"),
        (([1.0], [1.0], 4, math.inf), "big_size is not larger"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(DiagnosticsError, match=message):
        noise_from_norms(*arguments)
    with pytest.raises(DiagnosticsError, match="example_squares is no row"):
        noise_of_population([], 1.0)
    with pytest.raises(DiagnosticsError, match="above the mean of its parts"):
        noise_of_population([1.0, 1.0], 2.0)
