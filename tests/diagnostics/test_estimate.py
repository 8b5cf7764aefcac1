"""A value is printed to the place its error allows, and never as if it were known better."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics import Estimate
from diagnostics.estimate import exact, format_value


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.0234, 0.0031, "1.023 ± 0.003"),
        (1234.567, 31.0, "1230 ± 30"),
        (0.5, 0.0, "0.5"),
        (0.5, None, "0.5"),
        (0.5, math.nan, "0.5 ± ?"),
        (math.nan, 0.1, "undetermined"),
        (math.inf, 0.1, "undetermined"),
        (-2.5, 0.04, "-2.50 ± 0.04"),
        (0.0, 0.001, "0.000 ± 0.001"),
        (1.2345e-6, 2e-8, "1.23e-06 ± 2e-08"),
        (3.0e9, 1e7, "3.00e+09 ± 1e+07"),
        (12.0, 9.7, "12 ± 10"),
    ],
)
def test_format(value: float, error: float | None, text: str) -> None:
    assert format_value(value, error) == text


@given(
    st.floats(-1e6, 1e6).filter(lambda value: abs(value) >= 1e-3),
    st.floats(1e-6, 1e3),
)
def test_what_is_printed_is_within_the_error_of_the_value(value: float, error: float) -> None:
    shown = format_value(value, error).split(" ± ")
    told = float(shown[1])
    assert abs(float(shown[0]) - value) <= 0.51 * told * (1 + 1e-9) + 1e-12
    fifth_digit = 10.0 ** (math.floor(math.log10(abs(value))) - 4)
    assert told == pytest.approx(max(error, fifth_digit), rel=0.5)


def test_an_estimate_is_its_value_and_says_whether_it_has_one() -> None:
    estimate = Estimate(2.0, 0.5, "residual", "by hand")
    assert (float(estimate), str(estimate), estimate.determined) == (2.0, "2.0 ± 0.5", True)
    assert not Estimate(math.nan, math.nan, "residual", "nothing").determined
    assert (exact(3, "count").error, exact(3, "count").kind) == (0.0, "exact")
