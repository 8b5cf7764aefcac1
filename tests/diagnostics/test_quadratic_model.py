"""The closed form against moments step by step and against torch's SGD; steps to a target against looking at each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diagnostics import DiagnosticsError, noisy_quadratic, spectral_density
from tests.reference.quadratic_simulation import losses_by_recursion, losses_by_training

H = [1.0, 0.3, 0.02, 0.001]


def one_over_i(count: int = 10_000, entries: int = 60) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The spectrum of the source, h_i = 1/i, neighbours taken together."""
    edges = numpy.unique(numpy.geomspace(1, count + 1, entries).astype(int))
    spans = list(itertools.pairwise(edges))
    return numpy.array([(1 / numpy.arange(a, b)).mean() for a, b in spans]), numpy.diff(edges).astype(float)


@given(
    lr=st.floats(1e-3, 1.9),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    preconditioning=st.sampled_from([0.0, 0.5, 1.0]),
    batch_size=st.sampled_from([1.0, 7.0, 1e4, math.inf]),
    steps=st.integers(0, 60),
)
def test_the_closed_form_is_the_recursion(
    lr: float, momentum: float, preconditioning: float, batch_size: float, steps: int
) -> None:
    c = [0.5, 1.0, 0.02, 0.3]
    found = noisy_quadratic(H, c).loss(steps, lr, batch_size, momentum=momentum, preconditioning=preconditioning)
    assert found == pytest.approx(
        losses_by_recursion(H, c, steps, lr, batch_size, momentum, preconditioning)[-1], rel=1e-8, abs=1e-9
    )


@pytest.mark.parametrize(("lr", "momentum"), [(2.0, 0.0), (3.8, 0.9), (2.5, 0.0), (4.5, 0.9)])
def test_at_the_edge_and_beyond_it_the_closed_form_holds_too(lr: float, momentum: float) -> None:
    """At η = 2(1+β)/h moments grow linearly and their fixed point does not exist."""
    for steps in (1, 2, 50):
        expected = losses_by_recursion(H, H, steps, lr, 3.0, momentum)[-1]
        assert noisy_quadratic(H).loss(steps, lr, 3.0, momentum=momentum) == pytest.approx(expected, rel=1e-5)
    assert noisy_quadratic(H).loss(10**6, 2.5, 3.0) == math.inf


@pytest.mark.parametrize(
    ("lr", "momentum", "preconditioning"), [(0.5, 0.0, 0.0), (0.1, 0.9, 0.0), (0.2, 0.0, 0.5), (0.05, 0.9, 0.5)]
)
def test_the_closed_form_against_torchs_optimizer(lr: float, momentum: float, preconditioning: float) -> None:
    h, c = torch.tensor(H, dtype=torch.float64), torch.tensor([0.5, 1.0, 0.02, 0.3], dtype=torch.float64)
    losses = losses_by_training(h, c, 40, lr, 2.0, momentum=momentum, preconditioning=preconditioning)
    found = noisy_quadratic(H, c.tolist()).loss(40, lr, 2.0, momentum=momentum, preconditioning=preconditioning)
    error = float(losses.std()) / math.sqrt(len(losses))
    assert error < 0.01 * found
    assert abs(found - float(losses.mean())) < 4 * error


def test_the_noise_floor_of_descent_has_its_closed_form() -> None:
    """½ Σ η c/(B (2 − ηh))."""
    expected = 0.5 * sum(0.7 * h / (5 * (2 - 0.7 * h)) for h in H)
    assert noisy_quadratic(H).loss(10**6, 0.7, 5.0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("batch_size", [4.0, 300.0, math.inf])
def test_steps_to_a_target_are_the_first_that_reach_it(momentum: float, batch_size: float) -> None:
    model, rates = noisy_quadratic(H[:3]), [0.004, 0.05, 0.3, 1.7, 3.0]
    found = model.steps_to(0.02, batch_size, momentum=momentum, rates=rates)
    losses = [losses_by_recursion(H[:3], H[:3], 1000, rate, batch_size, momentum) for rate in rates]
    first = next(step for step in range(1001) if min(one[step] for one in losses) <= 0.02)
    assert found.steps.value == first
    assert losses[rates.index(found.lr)][first] <= 0.02
    assert found.examples == first * batch_size


def test_the_ordering_of_the_source() -> None:
    """Momentum helps at large batches only; preconditioning raises the critical batch size; both are the source's."""
    h, counts = one_over_i()
    model = noisy_quadratic(h, multiplicities=counts)
    sizes = [1.0, 4.0, 4096.0, math.inf]
    plain, heavy, divided = (
        [one.steps.value for one in model.steps_by_batch_size(0.1, sizes, **kind)]
        for kind in ({}, {"momentum": 0.9}, {"preconditioning": 0.5})
    )
    assert heavy[0] == pytest.approx(plain[0], rel=0.03)
    assert heavy[3] < plain[3] / 10
    assert all(few < many for few, many in zip(divided, plain, strict=True))
    assert plain[0] / plain[1] == pytest.approx(4, rel=0.03)  # small batches: steps fall as 1/B
    assert plain[2] / plain[3] < 1.05  # large ones: no more
    critical = [
        model.critical_batch_size(0.1, **kind).value for kind in ({}, {"momentum": 0.9}, {"preconditioning": 0.5})
    ]
    assert critical[1] > 10 * critical[0]
    assert critical[2] > 10 * critical[0]


def test_at_the_critical_batch_size_both_costs_are_equal_and_less_than_doubled() -> None:
    """The hyperbola with its 2 is of one direction; over four decades of curvature the turn is sharper."""
    h, counts = one_over_i()
    model = noisy_quadratic(h, multiplicities=counts)
    critical = model.critical_batch_size(0.1).value
    at, one, whole = (model.steps_to(0.1, size) for size in (critical, 1.0, math.inf))
    assert at.steps.value / whole.steps.value == pytest.approx(1.69, abs=0.02)
    assert at.examples / one.examples == pytest.approx(1.69, abs=0.02)


def test_multiplicities_and_spectra_stand_for_single_directions() -> None:
    values = torch.tensor([0.1] * 30 + [0.7] * 5 + [2.0], dtype=torch.float64)
    single = noisy_quadratic(values)
    grouped = noisy_quadratic([0.1, 0.7, 2.0], multiplicities=[30, 5, 1])
    measured = noisy_quadratic(spectral_density(torch.diag(values), probes=200, steps=3))
    expected = single.loss(20, 0.3, 4.0, momentum=0.5)
    assert grouped.loss(20, 0.3, 4.0, momentum=0.5) == pytest.approx(expected, rel=1e-12)
    assert measured.loss(20, 0.3, 4.0, momentum=0.5) == pytest.approx(expected, rel=0.1)
    assert float(measured.multiplicities.sum()) == pytest.approx(36)


def test_what_is_out_of_reach_says_so() -> None:
    found = noisy_quadratic([1.0]).steps_to(0.01, 1.0, rates=[1.0])  # floor ½
    assert not found.steps.determined
    assert math.isnan(found.lr)
    assert "does not come down to 0.01" in found.steps.how
    never = noisy_quadratic([1.0, 1e-12], start=[0.0, 1e12]).critical_batch_size(0.1)
    assert not never.determined


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: noisy_quadratic([1.0, 0.0]), "eigenvalues are not all positive"),
        (lambda: noisy_quadratic([]), "eigenvalues are not all positive"),
        (lambda: noisy_quadratic(["a"]), "eigenvalues are not finite"),
        (lambda: noisy_quadratic([1.0, math.nan]), "eigenvalues are not finite"),
        (lambda: noisy_quadratic([1.0], [1.0, 2.0]), "noise does not fit"),
        (lambda: noisy_quadratic([1.0], [-1.0]), "noise does not fit"),
        (lambda: noisy_quadratic([1.0], start=-1.0), "start does not fit"),
        (lambda: noisy_quadratic(spectral_density(torch.diag(torch.tensor([1.0, -1.0])))), "negative eigenvalues"),
        (lambda: noisy_quadratic(spectral_density(torch.eye(3)), [1.0]), "not for a Spectrum"),
        (lambda: noisy_quadratic(H).loss(1, 0.0, 1), "lr is out of range"),
        (lambda: noisy_quadratic(H).loss(1.5, 0.1, 1), "steps is out of range"),
        (lambda: noisy_quadratic(H).loss(1, 0.1, 0), "batch_size is out of range"),
        (lambda: noisy_quadratic(H).loss(1, 0.1, 1, momentum=1.0), "momentum is out of range"),
        (lambda: noisy_quadratic(H).loss(1, 0.1, 1, preconditioning=2), "preconditioning is out of range"),
        (lambda: noisy_quadratic(H).steps_to(0.0, 1), "target is out of range"),
        (lambda: noisy_quadratic(H).steps_to(0.1, 1, rates=[-1.0]), "rates are no learning rates"),
    ],
)
def test_bad_arguments_are_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(DiagnosticsError, match=message):
        build()


def test_steps_to_a_target_are_told_in_words() -> None:
    model = noisy_quadratic([1.0, 0.1])
    assert str(model.steps_to(0.3, batch_size=8)) == "1 step at batch size 8, with a learning rate of 0.925"
    assert str(model.steps_to(1e-9, batch_size=8)).startswith("no number of steps at batch size 8: the loss does not")
