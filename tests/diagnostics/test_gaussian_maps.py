"""The step from one layer's kernel to the next: closed forms, and integrals over a plane for the rest."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from diagnostics.initialisation.gaussian_maps import kernel_map, mean_square_slope, two_lines
from tests.reference.gaussian_integrals import expected_product, expected_square_slope

SMOOTH = {"tanh": torch.tanh, "erf": torch.erf, "gelu": F.gelu, "silu": F.silu, "sigmoid": torch.sigmoid}
KINKED = {"elu": F.elu, "hardtanh": F.hardtanh, "softsign": F.softsign}


def covariance(q: float, other: float, c: float) -> torch.Tensor:
    off = c * math.sqrt(q * other)
    return torch.tensor([[q, off], [off, other]], dtype=torch.float64)


@pytest.mark.parametrize("c", [-0.95, 0.0, 0.4, 0.99])
@pytest.mark.parametrize("slope", [0.0, 0.1, -1.0, 1.0])
def test_two_lines_have_the_arc_cosine_form(slope: float, c: float) -> None:
    """Cho and Saul: E relu(u) relu(v) = √(qq') (√(1−c²) + c(π − arccos c))/2π; and a line keeps the covariance."""
    given = covariance(1.7, 0.6, c)
    function = partial(F.leaky_relu, negative_slope=slope)
    kernel, bound = kernel_map(function, given)
    assert bound == 0.0
    arc = math.sqrt(1.7 * 0.6) * (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / (2 * math.pi)
    anti = math.sqrt(1.7 * 0.6) * (math.sqrt(1 - c * c) - c * math.acos(c)) / (2 * math.pi)
    expected = (1 + slope**2) * arc - 2 * slope * anti
    assert kernel[0, 1].item() == pytest.approx(expected, rel=1e-12)
    assert kernel.diagonal().tolist() == pytest.approx([(1 + slope**2) / 2 * q for q in (1.7, 0.6)])
    assert mean_square_slope(function, given.diagonal()).tolist() == pytest.approx([(1 + slope**2) / 2] * 2)


@pytest.mark.parametrize("c", [-0.9, 0.3, 0.999])
def test_the_error_function_has_the_arc_sine_form(c: float) -> None:
    """Williams: (2/π) asin(2k/√((1 + 2q)(1 + 2q')))."""
    given = covariance(3.0, 0.5, c)
    expected = 2 / math.pi * math.asin(2 * given[0, 1].item() / math.sqrt((1 + 6.0) * (1 + 1.0)))
    assert kernel_map(torch.erf, given)[0][0, 1].item() == pytest.approx(expected, rel=1e-12)
    slope = 4 / math.pi / math.sqrt(1 + 4 * 3.0)
    assert mean_square_slope(torch.erf, given.diagonal())[0].item() == pytest.approx(slope, rel=1e-12)


@pytest.mark.parametrize("c", [-0.5, 0.9])
@pytest.mark.parametrize("q", [0.05, 1.0, 6.0])
@pytest.mark.parametrize("name", [*SMOOTH, *KINKED])
def test_against_integrals_over_a_plane(name: str, q: float, c: float) -> None:
    function = (SMOOTH | KINKED)[name]
    given = covariance(q, 1.3, c)
    kernel, bound = kernel_map(function, given)
    exactly = 1e-9 if name in SMOOTH else 2e-5
    assert bound < 1e-5
    assert kernel[0, 1].item() == pytest.approx(expected_product(function, given), abs=exactly)
    slopes = mean_square_slope(function, given.diagonal())
    assert slopes[0].item() == pytest.approx(expected_square_slope(function, q), rel=1e-3)


@pytest.mark.parametrize("q", [30.0, 3000.0])
def test_what_the_series_leaves_out_is_within_its_bound(q: float) -> None:
    """A saturated tanh is nearly a step, whose series converges slowly where inputs are nearly the same."""
    given = covariance(q, q, 0.995)
    kernel, bound = kernel_map(torch.tanh, given)
    missing = expected_product(torch.tanh, given, points=3001) - kernel[0, 1].item()
    assert bound > 1e-5
    assert abs(missing) <= bound
    assert kernel[0, 0] >= kernel[0, 1]


def test_equal_inputs_stay_equal_and_zero_inputs_are_taken() -> None:
    kernel, _ = kernel_map(torch.tanh, torch.ones(2, 2))
    assert kernel[0, 1].item() == pytest.approx(kernel[0, 0].item(), rel=1e-12)
    zero, _ = kernel_map(torch.sigmoid, torch.diag(torch.tensor([0.0, 1.0])))
    assert zero[0].tolist() == pytest.approx([0.25, 0.25])
    assert kernel_map(torch.relu, torch.zeros(2, 2))[0].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_two_lines_are_told_from_curves() -> None:
    assert two_lines(torch.relu) == (0.0, 1.0)
    assert two_lines(lambda z: z) == (1.0, 1.0)
    assert two_lines(torch.abs) == (-1.0, 1.0)
    for function in (torch.tanh, F.gelu, F.hardtanh, F.relu6, F.hardshrink, lambda z: z + 1):
        assert two_lines(function) is None
