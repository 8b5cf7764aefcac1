"""Schedules against their plain definitions."""

from __future__ import annotations

import functools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diagnostics import DiagnosticsError
from probes import at, every, log_spaced
from probes.schedule import Schedule, as_schedule


@settings(deadline=None)
@given(st.integers(1, 50))
def test_every_is_the_multiples_and_zero(steps: int) -> None:
    assert [step for step in range(201) if every(steps)(step)] == list(range(0, 201, steps))


@settings(deadline=None)
@given(st.sets(st.integers(0, 200), min_size=1))
def test_at_is_a_set(steps: set[int]) -> None:
    assert {step for step in range(201) if at(*steps)(step)} == steps


@pytest.mark.parametrize("per_decade", [1, 2, 3, 8, 10, 20, 100])
def test_log_spaced_is_the_grid_of_powers_rounded_down(per_decade: int) -> None:
    """Written with exact integer arithmetic: 10^(i/d) is at least n exactly when 10^i is at least n^d."""
    grid = {0}
    for index in range(4 * per_decade + 1):
        step = round(10 ** (index / per_decade))
        while (step + 1) ** per_decade <= 10**index:
            step += 1
        while step**per_decade > 10**index:
            step -= 1
        grid.add(step)
    assert {step for step in range(10_001) if log_spaced(per_decade)(step)} == grid


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "10", None, math.nan])
def test_every_refuses_what_is_no_number_of_steps(wrong: object) -> None:
    with pytest.raises(DiagnosticsError, match="every takes a number of steps; given: "):
        as_schedule(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [(), ([1, 10],), ("1",), (1.5,), (-1,)])
def test_at_refuses_what_is_no_step_and_shows_how_it_is_written(wrong: tuple[object, ...]) -> None:
    with pytest.raises(DiagnosticsError, match=r"at takes steps; .* try: at\(1, 10, 100\)"):
        at(*wrong)  # type: ignore[arg-type]


def test_log_spaced_refuses_less_than_one_per_decade() -> None:
    with pytest.raises(DiagnosticsError, match="per_decade is too small; given: 0"):
        log_spaced(0)


def test_every_schedule_has_words_for_the_header() -> None:
    def when_hot(step: int) -> bool:
        return step == 3

    assert as_schedule(5).text == "every 5 steps"
    assert at(9, 1).text == "at steps 1, 9"
    assert log_spaced(4).text == "4 times per decade of steps"
    assert as_schedule(when_hot).text == "when_hot"
    assert as_schedule(functools.partial(when_hot)).text == "partial"
    own = Schedule("when it is hot", when_hot)
    assert as_schedule(own) is own
