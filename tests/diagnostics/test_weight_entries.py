"""Entries of a weight against torch's own conversions, and distances to shapes against sorting and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diagnostics.weights.entries import BY_CHANCE, read_entries, shape_distances
from tests.reference import weight_loops


def _wide(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.where(torch.rand(40, 50, generator=generator) < 0.5, -1.0, 1.0).double()
    weight = signs * 10.0 ** (100 * torch.rand(40, 50, generator=generator).double() - 55)
    weight[0, :5] = torch.tensor([0.0, math.nan, math.inf, -math.inf, 0.0])
    return weight


def _plain() -> Tensor:
    return torch.randn(30, 30, generator=torch.Generator().manual_seed(1)).double()


EDGES = [65_519.9, 65_520.0, 65_504.0, 2.0**-14, 2.0**-24, 2.0**-25, 2.0**-25 * 1.01, 2.0**-126, 2.0**-133, 2.0**-134]


@pytest.mark.parametrize("weight", [_wide(), _plain(), torch.tensor([EDGES]).double()], ids=["wide", "plain", "edges"])
def test_counts_are_those_of_torchs_conversions(weight: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diagnostics.weights.blocks.BLOCK", 64)
    found = read_entries(weight)
    assert (found.half_vanishing, found.half_subnormal, found.half_overflow) == pytest.approx(
        weight_loops.in_half(weight, torch.float16)
    )
    _, subnormal, overflow = weight_loops.in_half(weight, torch.bfloat16)
    assert (found.bfloat_subnormal, found.bfloat_overflow) == pytest.approx((subnormal, overflow))
    finite = weight[weight.isfinite()]
    assert (found.count, found.non_finite) == (weight.numel(), weight.numel() - len(finite))
    assert (found.zeros, found.largest) == (int((finite == 0).sum()), float(finite.abs().max()))
    assert found.mean == pytest.approx(float(finite.mean()), rel=1e-9)
    assert found.rms == pytest.approx(float(finite.square().mean().sqrt()), rel=1e-9)


def test_bfloat16_overflows_just_below_the_largest_float32() -> None:
    found = read_entries(torch.tensor([[3.39e38, 3.4e38]]).float())
    assert (found.bfloat_overflow, found.half_overflow) == (1, 2)


def test_nothing_at_all() -> None:
    assert read_entries(torch.zeros(0, 3)).count == 0
    assert math.isnan(read_entries(torch.full((2, 2), math.nan)).rms)
    zero = read_entries(torch.zeros(2, 2))
    assert (zero.zeros, zero.rms, zero.largest, zero.half_vanishing) == (4, 0.0, 0.0, 0.0)


SAMPLES = {
    "normal": torch.randn(60, 50, dtype=torch.float64),
    "uniform": 2 + 0.01 * torch.rand(60, 50, dtype=torch.float64),
    "heavy": torch.randn(60, 50, dtype=torch.float64) / torch.rand(60, 50, dtype=torch.float64),
    "two values": torch.tensor([[-1.0, 1.0]]).double().repeat(30, 4),
    "skewed": torch.rand(60, 50, dtype=torch.float64).exp() ** 3,
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("shape", ["normal", "uniform"])
def test_distances_are_those_of_sorted_scores(name: str, shape: str) -> None:
    """Also where scores lie far beyond the last edge."""
    weight = SAMPLES[name]
    found = getattr(shape_distances(weight, read_entries(weight)), shape)
    assert abs(found.value - weight_loops.distance_to_shape(weight, shape)) <= found.error + 1e-5


def test_closed_forms() -> None:
    """Two values ±1 against a normal: E|1 − |Z||; a uniform sample against a normal: 0.1543."""
    two = shape_distances(SAMPLES["two values"], read_entries(SAMPLES["two values"])).normal
    moved = 4 * math.exp(-0.5) / math.sqrt(2 * math.pi) + math.erf(math.sqrt(0.5)) * 2 - 1
    moved -= math.sqrt(2 / math.pi)
    assert two.value == pytest.approx(moved, abs=two.error)
    even = torch.linspace(-1, 1, 100_000, dtype=torch.float64)[None]
    found = shape_distances(even, read_entries(even))
    assert found.normal.value == pytest.approx(0.15428, abs=1e-3)
    assert found.uniform.value < 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_samples_of_a_shape_are_near_it_and_far_from_the_other(seed: int) -> None:
    torch.manual_seed(seed)
    limit = BY_CHANCE / math.sqrt(10_000)
    normal, uniform = 0.02 * torch.randn(100, 100), torch.empty(100, 100).uniform_(-0.1, 0.1)
    for weight, near, far in ((normal, "normal", "uniform"), (uniform, "uniform", "normal")):
        found = shape_distances(weight, read_entries(weight))
        assert getattr(found, near).value < limit < getattr(found, far).value
        assert "by chance 0.008" in getattr(found, near).how


@pytest.mark.parametrize("value", [0.5, 0.0, -1e200])
def test_entries_that_are_all_the_same_have_no_shape(value: float) -> None:
    weight = torch.full((5, 5), value, dtype=torch.float64)
    found = shape_distances(weight, read_entries(weight))
    assert not found.normal.determined
    assert found.uniform.how == "all entries are the same"
