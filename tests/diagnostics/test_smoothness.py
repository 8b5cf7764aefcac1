"""The line of curvature over gradient norm: its coefficients, its errors, and how often it cries wolf."""

from __future__ import annotations

import math

import numpy
import pytest

from diagnostics import DiagnosticsError, smoothness_fit


def _run(
    stream: numpy.random.Generator, l0: float, l1: float, memory: float = 0.0
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """200 points: a gradient norm that decays tenfold with wiggles, curvature with correlated noise around the line."""
    norms = 3 * numpy.exp(-numpy.linspace(0, 2.3, 200)) * numpy.exp(0.3 * stream.standard_normal(200))
    noise = stream.standard_normal(200)
    for index in range(1, 200):
        noise[index] = memory * noise[index - 1] + math.sqrt(1 - memory**2) * noise[index]
    return norms, numpy.abs(l0 + l1 * norms + noise)


def test_a_line_is_found_exactly() -> None:
    norms = numpy.linspace(0.5, 4, 30)
    fit = smoothness_fit(norms, 3 + 2 * norms)
    assert (fit.l0.value, fit.l1.value) == (pytest.approx(3), pytest.approx(2))
    assert max(fit.l0.error, fit.l1.error) < 1e-10
    assert fit.r_squared == pytest.approx(1)
    assert fit.excess == pytest.approx(1)
    assert fit.grows is True
    assert "clipping lets" in str(fit)


def test_constant_curvature_does_not_grow() -> None:
    fit = smoothness_fit(numpy.linspace(0.5, 4, 30), numpy.full(30, 7.0))
    assert fit.l0.value == pytest.approx(7)
    assert fit.l1.value == pytest.approx(0, abs=1e-9)
    assert not fit.grows
    assert "nothing speaks for clipping" in fit.verdict


def test_coefficients_are_never_negative_and_their_errors_do_not_vanish_with_them() -> None:
    stream = numpy.random.default_rng(0)
    norms = numpy.linspace(0.5, 4, 50)
    falling = smoothness_fit(norms, 10 - 2 * norms + 0.3 * stream.standard_normal(50))
    assert falling.l1.value == 0.0
    assert falling.l1.error > 0
    assert not falling.grows
    assert falling.r_squared == pytest.approx(0, abs=1e-9)


def test_intervals_cover_and_growth_is_claimed_as_seldom_as_promised() -> None:
    """Over seeds, with independent noise and with noise that remembers; measured: see the assertions."""
    for memory, least, most in ((0.0, 0.9, 0.06), (0.7, 0.85, 0.12)):
        stream = numpy.random.default_rng(1)
        held = sum(
            low <= 2.0 <= high
            for low, high in (smoothness_fit(*_run(stream, 5, 2.0, memory)).l1.interval() for _ in range(200))
        )
        false = sum(bool(smoothness_fit(*_run(stream, 5, 0.0, memory)).grows) for _ in range(200))
        assert held / 200 >= least, (memory, held)
        assert false / 200 <= most, (memory, false)


def test_excess_turns_the_line_into_a_bound() -> None:
    norms, bends = _run(numpy.random.default_rng(2), 5, 1.0)
    fit = smoothness_fit(norms, bends)
    bound = fit.excess * (fit.l0.value + fit.l1.value * norms)
    assert (bends <= bound * (1 + 1e-12)).all()
    assert (bends >= bound * (1 - 1e-12)).any()


def test_gradient_norms_that_hardly_vary_tell_nothing() -> None:
    fit = smoothness_fit(numpy.linspace(1.0, 1.2, 40), numpy.linspace(1.0, 5.0, 40))
    assert fit.grows is None
    assert not fit.l1.determined
    assert "too narrow" in fit.l1.how
    assert "too little" in fit.verdict


def test_gaps_in_a_run_are_left_out_and_said() -> None:
    norms = numpy.linspace(0.5, 4, 30)
    bends = 3 + 2 * norms
    bends[::7] = math.nan
    fit = smoothness_fit(norms.tolist(), bends.tolist())
    assert fit.l1.value == pytest.approx(2)
    assert fit.points == 25
    assert "5 pairs not finite" in fit.l1.how


@pytest.mark.parametrize(
    ("norms", "bends", "said"),
    [
        ([1.0] * 12, [1.0] * 11, "do not belong together"),
        ([1.0] * 5, [1.0] * 5, "too few"),
        ([1.0, *[math.nan] * 15], [1.0] * 16, "too few"),
        ([-1.0, *[1.0] * 15], [1.0] * 16, "gradient_norms are negative"),
        ([1.0] * 16, [-1.0, *[1.0] * 15], "curvatures are negative"),
        ([[1.0] * 16], [1.0] * 16, "not a series"),
    ],
)
def test_bad_series_are_refused(norms: list[float], bends: list[float], said: str) -> None:
    with pytest.raises(DiagnosticsError, match=said):
        smoothness_fit(norms, bends)
